"""Targets of both sources in one cache: which record has which, and what a student makes of them, on a tiny Whisper."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_makers import rows_of
from makers import make_utterance_shards, run_captured, speaking
from references import assert_is_distribution, reference, targets_of
from training import train_one

from cache.errors import PipelineError
from cache.info import statistics
from cache.shards import ShardReader
from cache.verify import faults
from stages.shared.whisper.models import Whisper, load_whisper
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.vocabulary import vocabulary_of
from stages.teacher_cache.worker import ScoringRequest, Worker
from stages.train_student.data import TrainingData
from stages.train_student.settings import TrainSettings

CPU = torch.device("cpu")
BOUNDS = {"top_k": 8, "top_p": 0.5, "min_k": 2, "bits": 7}
TEXTS = [
    "Ano.",
    "",
    "Dej pokoj!",
    "To je vrak.",
    "",
    "Sedadla.",
    "Kde jsme?",
    "",
    "Tady ne.",
    "Ano, ano.",
    "",
    "Co je?",
]
TOO_LONG = "a" * 500  # more tokens than the decoder has positions
HEARD = ("teacher_text", "compression_ratio", "word_errors", "words")


@pytest.fixture(scope="module")
def teacher(tiny_whisper: Path) -> Whisper:
    """Ends most clips before its last token."""
    return speaking(load_whisper(str(tiny_whisper), 1), listen=20, end=2.5, seed=4)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_utterance_shards(tmp_path / "corpus/train", [7, 5], first=0, texts=TEXTS)


def cache(teacher: Whisper, source: Path, out: Path, **changes) -> dict:
    chosen = {**BOUNDS, "targets": "mixed", "batch_size": 5, "dtype": "fp32", **changes}
    return cache_teacher(ScoringJob(teacher, "cs", TeacherCacheSettings(**chosen), CPU), source, out)


def left_out(folder: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines()]
    return {row["id"]: row["reason"] for row in rows}


def student_data(source: Path, out: Path | None, student: Whisper, **settings) -> TrainingData:
    shards = ShardReader(source, "utterances"), ShardReader(out, "teacher") if out else None
    return TrainingData(*shards, student, "cs", TrainSettings(**{"max_compression_ratio": None, **settings}))


def read_targets(data: TrainingData) -> dict[str, list[int]]:
    found = {}
    for batch in data.batches(2, 0, 0):
        for number, name in enumerate(batch.ids):
            found[name] = batch.targets[batch.positions[0] == number].tolist()
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_each_record_is_that_of_its_source(batch_size, teacher, corpus, tmp_path):
    """A transcript's as in a cache of transcripts, and the others as in a cache of the teacher's words."""
    folders = {targets: tmp_path / targets for targets in ("reference", "pseudo", "mixed")}
    for targets, folder in folders.items():
        manifest = cache(teacher, corpus, folder, targets=targets, batch_size=batch_size)
    by_source = {"transcript": rows_of(folders["reference"]), "teacher": rows_of(folders["pseudo"])}
    counts = {"transcript": 0, "teacher": 0}
    for number, (row, utterance) in enumerate(
        zip(rows_of(folders["mixed"]), rows_of(corpus, "utterances"), strict=True)
    ):
        source = "transcript" if utterance["text"] else "teacher"
        expected = by_source[source][number]
        assert row["target_source"] == expected["target_source"] == (source if len(row["targets"]) else None)
        assert np.array_equal(row["targets"], expected["targets"])
        assert all(row[name] == expected[name] for name in HEARD)
        if len(row["targets"]):
            log_probs = reference(teacher, utterance, row["targets"].tolist())
            assert_is_distribution(row, log_probs, **BOUNDS)
            counts[source] += 1
        if source == "transcript":
            assert row["targets"].tolist() == targets_of(teacher, utterance)
            assert row["teacher_text"] is None  # nobody asked for it
    assert counts["transcript"] == 8
    assert 0 < counts["teacher"] < 4
    assert (manifest["transcript_targets"], manifest["teacher_targets"]) == (8, counts["teacher"])
    assert statistics(ShardReader(folders["mixed"], "teacher"))["target_sources"] == counts
    assert left_out(folders["mixed"]).items() <= left_out(folders["pseudo"]).items()


@pytest.mark.parametrize("targets", ["reference", "pseudo", "mixed"])
def test_verify_finds_no_fault_and_a_wrong_source_is_one(targets, teacher, corpus, tmp_path):
    cache(teacher, corpus, tmp_path / "out", targets=targets)
    reader = ShardReader(tmp_path / "out", "teacher")
    assert list(faults(tmp_path / "out", ShardReader(corpus, "utterances"))) == []
    wrong = {"reference": "pseudo", "pseudo": "reference", "mixed": "reference"}[targets]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    manifest["settings"]["targets"] = wrong
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
    lines = [line for line in faults(tmp_path / "out") if "target_source" in line]
    kept = [row for row in rows_of(tmp_path / "out") if len(row["targets"])]
    other = [row for row in kept if row["target_source"] != {"reference": "transcript", "pseudo": "teacher"}[wrong]]
    assert len(lines) == len(other) > 0
    assert f"in a cache of {wrong} targets" in lines[0]
    assert reader.rows == [7, 5]


def test_counts_that_do_not_add_up_are_faults(teacher, corpus, tmp_path):
    cache(teacher, corpus, tmp_path / "out")
    path = tmp_path / "out/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["teacher_targets"] += 1
    path.write_text(json.dumps(manifest))
    lines = list(faults(tmp_path / "out"))
    assert any("teacher_targets is" in line and line.startswith(str(path)) for line in lines)
    assert any("teacher_targets is" in line and "shard-00000" in line for line in lines)


def test_the_command_line_says_how_many_of_each(teacher, corpus, tmp_path, monkeypatch, capsys):
    cache(teacher, corpus, tmp_path / "one")
    cache(teacher, corpus, tmp_path / "two", targets="reference")
    words = sum(row["target_source"] == "teacher" for row in rows_of(tmp_path / "one"))
    status, output, _ = run_captured(monkeypatch, capsys, "cache", "info", tmp_path / "one")
    assert status == 0
    assert f"8 transcripts, {words} of the teacher's own words" in output
    assert "targets mixed, transcribed_fraction 1.0" in output
    status, output, _ = run_captured(monkeypatch, capsys, "cache", "diff", tmp_path / "one", tmp_path / "two")
    assert f"field target_source: differs in {words} records" in output
    run_captured(monkeypatch, capsys, "cache", "convert", tmp_path / "one", tmp_path / "tar", "--format", "webdataset")
    assert [row["target_source"] for row in rows_of(tmp_path / "tar")] == [
        row["target_source"] for row in rows_of(tmp_path / "one")
    ]
    assert list(faults(tmp_path / "tar")) == []


def test_with_transcribe_the_teacher_is_heard_everywhere(teacher, corpus, tmp_path):
    """And word errors are counted where there is a transcript."""
    manifest = cache(teacher, corpus, tmp_path / "out", transcribe=True)
    cache(teacher, corpus, tmp_path / "pseudo", targets="pseudo")
    for row, heard in zip(rows_of(tmp_path / "out"), rows_of(tmp_path / "pseudo"), strict=True):
        assert all(row[name] == heard[name] for name in HEARD)
        assert row["teacher_text"] is not None
    assert manifest["words"] > 0


# The student


def test_a_student_takes_each_record_by_its_source(teacher, corpus, tmp_path):
    cache(teacher, corpus, tmp_path / "out")
    data = student_data(corpus, tmp_path / "out", teacher)
    expected = {row["id"]: row["targets"].tolist() for row in rows_of(tmp_path / "out") if len(row["targets"])}
    assert read_targets(data) == expected
    assert data.target_sources == {"transcript": 8, "teacher": len(expected) - 8}
    assert {row["id"]: row["reason"] for row in data.left_out} == left_out(tmp_path / "out")


def test_the_limit_on_repetition_is_for_the_teacher_s_words(teacher, corpus, tmp_path):
    """Also where its words are kept beside a transcript."""
    cache(teacher, corpus, tmp_path / "out", transcribe=True)
    rows = [row for row in rows_of(tmp_path / "out") if len(row["targets"])]
    least = min(row["compression_ratio"] for row in rows)
    data = student_data(corpus, tmp_path / "out", teacher, max_compression_ratio=least / 2)
    assert data.target_sources == {"transcript": 8}
    reasons = {row["id"]: row["reason"] for row in data.left_out}
    own = {row["id"] for row in rows if row["target_source"] == "teacher"}
    assert own
    assert {name for name, reason in reasons.items() if reason == "teacher_repeats"} == own


def test_a_transcript_whose_tokens_are_others_is_refused(teacher, corpus, tmp_path):
    """And not taken for the teacher's own words."""
    cache(teacher, corpus, tmp_path / "out")
    data = student_data(corpus, tmp_path / "out", teacher)
    read = data.teacher.read

    def harmed(index: int, only: tuple[str, ...] = ()) -> list[dict]:
        rows = read(index, only)
        rows[0]["targets"] = rows[0]["targets"][::-1].copy()
        return rows

    assert rows_of(tmp_path / "out")[0]["target_source"] == "transcript"
    data.teacher.read = harmed
    with pytest.raises(PipelineError, match=r"clip-000: its targets are not the transcript's tokens"):
        data.load(0)


def test_more_of_the_teacher_s_words_than_the_student_has_positions(teacher, corpus, tiny_whisper, tmp_path):
    """They are left out, and the run goes on."""
    cache(teacher, corpus, tmp_path / "out")
    lengths = {row["id"]: len(row["targets"]) for row in rows_of(tmp_path / "out") if row["target_source"] == "teacher"}
    student = load_whisper(str(tiny_whisper), 1)
    student.model.config.max_target_positions = max(lengths.values()) + 2
    data = student_data(corpus, tmp_path / "out", student)
    longest = {name for name, length in lengths.items() if length == max(lengths.values())}
    assert longest <= {row["id"] for row in data.left_out if row["reason"] == "too_many_tokens"}


def test_a_run_says_how_many_of_each(teacher, tiny_whisper, tmp_path):
    root = tmp_path / "cs"
    make_utterance_shards(root / "train", [7, 5], first=0, texts=TEXTS)
    make_utterance_shards(root / "validation", [2], "validation")
    cache(teacher, root / "train", tmp_path / "out")
    settings = TrainSettings(max_steps=1, batch_size=4, max_validation=1, dtype="fp32", max_compression_ratio=None)
    student = load_whisper(str(tiny_whisper), 1)
    result = train_one(student, "lora-kd", "cs", root, tmp_path / "out", tmp_path / "run", settings, CPU)
    words = sum(row["target_source"] == "teacher" for row in rows_of(tmp_path / "out"))
    assert (result["transcript_targets"], result["teacher_targets"]) == (8, words)
    assert result["training_utterances"] == 8 + words


# A share of the transcripts


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """60 utterances in 5 groups; some without a transcript, some with one that is too long, in all shards."""
    texts = ["" if n % 7 == 0 else TOO_LONG if n % 11 == 0 else f"Ano {n}." for n in range(60)]
    return make_utterance_shards(tmp_path / "large/train", [20, 25, 15], first=0, texts=texts)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9, 1.0])
def test_the_transcripts_used_are_those_of_a_student_with_that_fraction(fraction, teacher, large, tmp_path):
    """Of one without a teacher. What it has not taken is scored by the teacher's own words."""
    cache(teacher, large, tmp_path / "out", transcribed_fraction=fraction)
    without = student_data(large, None, teacher, train_fraction=fraction)
    lines = read_targets(without)
    found = rows_of(tmp_path / "out")
    assert {row["id"] for row in found if row["target_source"] == "transcript"} == set(lines)
    too_many = {name for name, reason in left_out(tmp_path / "out").items() if reason == "too_many_tokens"}
    for row, utterance in zip(found, rows_of(large, "utterances"), strict=True):
        if row["id"] not in lines and row["id"] not in too_many:
            assert row["teacher_text"] is not None
            assert row["words"] is None  # its transcript counts as not there
        if utterance["text"] == TOO_LONG:
            assert row["target_source"] != "transcript"
    assert fraction == 1 or 0 < len(lines) < sum(bool(row["text"]) for row in rows_of(large, "utterances"))
    data = student_data(large, tmp_path / "out", teacher)
    taught = read_targets(data)
    assert {name: taught[name] for name in lines} == lines
    assert data.target_sources["transcript"] == len(lines)


def test_a_student_with_fewer_positions_than_its_teacher_decides(teacher, large, tiny_whisper, tmp_path):
    """The choice is among what the student can be trained on, so that it is the same without a teacher."""
    student = load_whisper(str(tiny_whisper), 1)
    student.model.config.max_target_positions = 11
    settings = TeacherCacheSettings(**BOUNDS, targets="mixed", dtype="fp32", transcribed_fraction=0.3, batch_size=5)
    job = ScoringJob(teacher, "cs", settings, CPU, vocabulary_of(student))
    cache_teacher(job, large, tmp_path / "out")
    without = student_data(large, None, student, train_fraction=0.3)
    lines = set(read_targets(without))
    groups = {row["group"] for row in rows_of(large, "utterances") if row["id"] in lines}
    used = {row["id"] for row in rows_of(tmp_path / "out") if row["target_source"] == "transcript"}
    assert lines <= used
    assert {row["group"] for row in rows_of(large, "utterances") if row["id"] in used} == groups


def test_any_number_of_workers_chooses_the_same(teacher, tiny_whisper, large, tmp_path):
    """A worker sees some of the shards, and chooses among all."""
    settings = TeacherCacheSettings(**BOUNDS, targets="mixed", dtype="fp32", transcribed_fraction=0.25)
    plain = load_whisper(str(tiny_whisper), 1)
    cache_teacher(ScoringJob(plain, "cs", settings, CPU), large, tmp_path / "here")
    (tmp_path / "there").mkdir()
    request = ScoringRequest((str(tiny_whisper),), str(tiny_whisper), 1, "cs", settings, large, tmp_path / "there")
    for index in (2, 0, 1):
        worker = Worker(request, (str(tiny_whisper),), str(tiny_whisper), "cpu", 1)
        assert worker.open()["transcribed_fraction"] == 0.25
        worker.score(index)
    for path in (tmp_path / "there").glob("shard-*"):
        assert path.read_bytes() == (tmp_path / "here" / path.name).read_bytes()
    assert len(list((tmp_path / "there").glob("shard-*"))) == 3


def test_another_fraction_is_another_cache(teacher, large, tmp_path):
    cache(teacher, large, tmp_path / "out", transcribed_fraction=0.25)
    with pytest.raises(PipelineError, match=r"transcribed_fraction: found 0.25, wanted 0.5"):
        cache(teacher, large, tmp_path / "out", transcribed_fraction=0.5)


@pytest.mark.parametrize("targets", ["reference", "pseudo"])
def test_a_fraction_of_other_targets_is_refused(targets):
    with pytest.raises(
        ValueError, match=f"transcribed_fraction 0.25 goes with targets 'mixed' alone, found '{targets}'"
    ):
        TeacherCacheSettings(targets=targets, transcribed_fraction=0.25)
