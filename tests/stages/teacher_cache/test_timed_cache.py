"""Caches whose targets carry times for a share of the utterances: against a plain forward pass, and against training."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_makers import rows_of
from makers import make_tiny_whisper, make_utterance_shards, run_captured, speaking
from references import assert_is_distribution, prompt_of, reference, targets_of
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from cache.errors import PipelineError
from cache.shards import ShardReader
from stages.shared.whisper.models import Whisper, load_whisper
from stages.shared.whisper.timestamps import is_timed
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.vocabulary import Vocabulary, vocabulary_of
from stages.train_student.data import TrainingData
from stages.train_student.settings import TrainSettings

CPU = torch.device("cpu")
BOUNDS = {"top_k": 8, "top_p": 0.5, "min_k": 2, "bits": 7}
HALF = 0.5


def cache(
    teacher: Whisper,
    source: Path,
    out: Path,
    share: float,
    student: Vocabulary | None = None,
    rerun="refuse",
    **changes,
) -> dict:
    settings = TeacherCacheSettings(**{**BOUNDS, "batch_size": 4, "dtype": "fp32", **changes})
    return cache_teacher(ScoringJob(teacher, "cs", settings, CPU, student, share), source, out, rerun)


@pytest.fixture(scope="module")
def teacher(tiny_whisper: Path) -> Whisper:
    return speaking(load_whisper(str(tiny_whisper), 1), listen=20, end=2.5, seed=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_utterance_shards(tmp_path_factory.mktemp("source"), [7, 5], first=0)


def timed_targets(whisper: Whisper, utterance: dict, words: list[int]) -> list[int]:
    """`words`, which end with end of text, between times."""
    *text, end = words
    start, stop = whisper.tokenizer.convert_tokens_to_ids(
        ["<|0.00|>", f"<|{round(utterance['seconds'] * 50) / 50:.2f}|>"]
    )
    return [start, *text, stop, end]


def timed(utterance: dict) -> bool:
    return is_timed(utterance["id"], HALF)


def test_it_is_the_forward_pass_of_the_targets_with_times(teacher, source, tmp_path):
    """Rows with times and rows without lie in the same batches."""
    manifest = cache(teacher, source, tmp_path / "out", HALF)
    assert manifest["settings"]["timestamps"] == HALF
    assert manifest["settings"]["prompt"] == prompt_of(teacher)
    counts = {True: 0, False: 0}
    for row, utterance in zip(rows_of(tmp_path / "out"), rows_of(source, "utterances"), strict=True):
        targets, prompt = targets_of(teacher, utterance), prompt_of(teacher)
        if timed(utterance):
            targets, prompt = timed_targets(teacher, utterance, targets), prompt[:-1]
        assert row["targets"].tolist() == targets
        assert_is_distribution(row, reference(teacher, utterance, targets, prompt), **BOUNDS)
        counts[timed(utterance)] += 1
    assert min(counts.values()) >= 4


def test_a_share_of_nothing_is_a_cache_as_ever(teacher, source, tmp_path):
    """Byte for byte, the manifest included; a job that knows of no share makes the other."""
    cache(teacher, source, tmp_path / "out", 0.0)
    settings = TeacherCacheSettings(**BOUNDS, batch_size=4, dtype="fp32")
    cache_teacher(ScoringJob(teacher, "cs", settings, CPU), source, tmp_path / "other")
    found, other = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "other"))
    assert found == other
    assert "timestamps" not in json.loads(found["manifest.json"])["settings"]


def test_the_teachers_own_words_get_the_same_times(teacher, source, tmp_path):
    """In a mixed cache, where some transcripts are used. What could not be used without times cannot with them."""
    for share in (0.0, HALF):
        cache(teacher, source, tmp_path / str(share), share, targets="mixed", transcribed_fraction=0.3)
    sources = []
    triples = (rows_of(tmp_path / "0.0"), rows_of(tmp_path / str(HALF)), rows_of(source, "utterances"))
    for plain, row, utterance in zip(*triples, strict=True):
        words, prompt = plain["targets"].tolist(), prompt_of(teacher)
        if words and timed(utterance):
            words, prompt = timed_targets(teacher, utterance, words), prompt[:-1]
        assert row["targets"].tolist() == words
        assert row["target_source"] == plain["target_source"]
        assert row["teacher_text"] == plain["teacher_text"]
        if words:
            assert_is_distribution(row, reference(teacher, utterance, words, prompt), **BOUNDS)
            sources.append((row["target_source"], timed(utterance)))
    assert len(set(sources)) == 4


def test_the_longest_own_words_still_fit_with_times(tiny_whisper, source, tmp_path):
    """The prompt is shorter by one token, the targets longer by two: one more than any ended text takes without."""
    teacher = speaking(load_whisper(str(tiny_whisper), 1), listen=20, end=2.5, seed=4)
    free = cache(teacher, source, tmp_path / "free", 1.0, targets="pseudo")
    longest = max(len(row["targets"]) for row in rows_of(tmp_path / "free"))
    teacher.model.config.max_target_positions = longest + 2  # words and end, the prompt, and no more
    tight = cache(teacher, source, tmp_path / "tight", 1.0, targets="pseudo")
    assert max(len(row["targets"]) for row in rows_of(tmp_path / "tight")) == longest
    assert tight["left_out"].keys() == free["left_out"].keys()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Whisper:
    """Lacks a language that the teacher has: all tokens after it, those of time among them, have other ids."""
    languages = [code for code in LANGUAGES if code != "uk"]
    return load_whisper(str(make_tiny_whisper(tmp_path_factory.mktemp("student"), seed=5, languages=languages)), 1)


def test_times_are_mapped_to_the_students_ids(teacher, student, source, tmp_path):
    cache(teacher, source, tmp_path / "out", HALF, vocabulary_of(student))
    shifted = teacher.tokenizer.convert_tokens_to_ids("<|0.00|>")
    assert student.tokenizer.convert_tokens_to_ids("<|0.00|>") == shifted - 1
    for row, utterance in zip(rows_of(tmp_path / "out"), rows_of(source, "utterances"), strict=True):
        words = targets_of(student, utterance)
        assert row["targets"].tolist() == (timed_targets(student, utterance, words) if timed(utterance) else words)
    reader = ShardReader(source, "utterances")
    data = TrainingData(reader, ShardReader(tmp_path / "out", "teacher"), student, "cs", TrainSettings(timestamps=HALF))
    assert sum(len(batch.ids) for batch in data.batches(4, 0, 0) if batch) == 12


def test_a_student_without_times_is_refused(teacher, source, tmp_path):
    cut = vocabulary_of(teacher)
    start = teacher.tokenizer.convert_tokens_to_ids("<|0.00|>")
    cut = dataclasses.replace(cut, size=start + 10, model_id="cut")
    with pytest.raises(PipelineError, match=rf"^cut: no token <\|1\.00\|> at {start + 50}, where Whisper has it"):
        cache(teacher, source, tmp_path / "out", HALF, cut)
    assert not list((tmp_path / "out").glob("*.parquet"))
    assert cache(teacher, source, tmp_path / "plain", 0.0, cut)["tokens"] > 0


def test_another_share_is_another_cache(teacher, source, tmp_path):
    cache(teacher, source, tmp_path / "out", HALF)
    with pytest.raises(PipelineError, match=r"timestamps: found 0\.5, wanted None\): give --update"):
        cache(teacher, source, tmp_path / "out", 0.0)
    cache(teacher, source, tmp_path / "out", 0.25, rerun="update")
    found = [row["targets"][0] > prompt_of(teacher)[-1] for row in rows_of(tmp_path / "out")]
    assert found == [is_timed(row["id"], 0.25) for row in rows_of(source, "utterances")]


# The share is that of the training


def test_training_with_another_share_is_refused(teacher, source, tmp_path):
    """Also by a cache of before there were times, whose manifest names none."""
    reader = ShardReader(source, "utterances")
    for cached, asked in ((HALF, 0.0), (0.0, HALF), (HALF, 1.0)):
        out = tmp_path / f"{cached}"
        cache(teacher, source, out, cached)
        with pytest.raises(PipelineError) as caught:
            TrainingData(reader, ShardReader(out, "teacher"), teacher, "cs", TrainSettings(timestamps=asked))
        assert str(caught.value) == (
            f"{out}: targets with times for a share of {cached:g} of the utterances, train.timestamps is {asked:g}: set it to "
            f"{cached:g}, or make the cache again: pipeline teacher-cache --update"
        )


@pytest.fixture
def project(tmp_path: Path, tiny_whisper: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for split, rows in {"train": [5, 4], "validation": [3]}.items():
        make_utterance_shards(tmp_path / "data/utterances/cs" / split, rows, split)
    params = f"""
languages: {{cs: {{}}}}
audio_window_s: 1
student: {tiny_whisper}
teacher: {{model: {tiny_whisper}}}
teacher_cache: {{top_k: 8, dtype: fp32}}
train: {{timestamps: 0.5, max_steps: 1, batch_size: 4, dtype: fp32, max_validation: 2}}
"""
    (tmp_path / "params.yaml").write_text(params, encoding="utf-8")
    return tmp_path


def test_the_cache_is_made_with_the_share_of_the_training(project, monkeypatch, capsys):
    assert run_captured(monkeypatch, capsys, "teacher-cache", "--lang", "cs")[0] == 0
    assert ShardReader(project / "data/teacher/cs/train", "teacher").provenance["timestamps"] == 0.5
    assert "timestamps 0.5" in run_captured(monkeypatch, capsys, "cache", "info", "data/teacher/cs/train")[1]
    assert run_captured(monkeypatch, capsys, "train-student", "--lang", "cs", "--method", "lora-kd")[0] == 0
    result = json.loads((project / "models/cs/lora-kd/training.json").read_text())
    assert result["settings"]["timestamps"] == result["changes"]["timestamps"] == 0.5
    status, _, said = run_captured(
        monkeypatch, capsys, "--set", "train.timestamps=0", "train-student", "--lang", "cs", "--method", "full-kd"
    )
    assert status == 1 and "for a share of 0.5 of the utterances, train.timestamps is 0: set it to 0.5" in said


def test_a_method_with_another_share_than_its_cache_is_refused_at_once(project, monkeypatch, capsys):
    """What a method without a teacher does is its own affair."""
    own = "methods.from_transcripts.lora.timestamps=1"
    assert run_captured(monkeypatch, capsys, "--set", own, "params", "--method", "lora")[0] == 0
    of_teacher = "methods.from_teacher.lora-kd.timestamps=0.2"
    status, _, said = run_captured(monkeypatch, capsys, "--set", of_teacher, "teacher-cache", "--lang", "cs")
    assert status == 1 and said.count("\n") == 1
    assert "methods.from_teacher.lora-kd.timestamps is 0.2, train.timestamps is 0.5" in said
    assert not np.any([*project.glob("data/teacher/*")])
