"""Where the teacher's own words are the targets: they, what is kept of them, and what cannot be used, on a tiny Whisper."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_makers import rows_of
from makers import make_tiny_whisper, make_utterance, make_utterance_shards, speaking
from references import assert_is_distribution, reference, targets_of

from cache.errors import PipelineError
from cache.shards import ShardReader, ShardWriter
from stages.shared.audio import decode_flac
from stages.shared.whisper.decode import Transcriber, Transcript
from stages.shared.whisper.models import Whisper, load_whisper
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.train_student.data import TrainingData
from stages.train_student.settings import TrainSettings

CPU = torch.device("cpu")
BOUNDS = {"top_k": 8, "top_p": 0.5, "min_k": 2, "bits": 7}
HEARD = ("teacher_text", "compression_ratio", "word_errors", "words")


ROOM = 15  # tokens that the teacher may say: what its decoder has positions for, less the prompt


def brief(whisper: Whisper) -> Whisper:
    whisper.model.config.max_target_positions = ROOM + 4
    return whisper


@pytest.fixture(scope="module")
def teacher(tiny_whisper: Path) -> Whisper:
    """Ends some clips after a few tokens, and talks through others to the last token there may be."""
    return brief(speaking(load_whisper(str(tiny_whisper), 1), listen=20, end=2.5, seed=4))


def make_shards(folder: Path, texts: list[str], rows: list[int]) -> Path:
    return make_utterance_shards(folder, rows, first=0, texts=texts)


def cache(teacher: Whisper, source: Path, out: Path, **changes) -> dict:
    chosen = {**BOUNDS, "targets": "pseudo", "batch_size": 5, "dtype": "fp32", **changes}
    return cache_teacher(ScoringJob(teacher, "cs", TeacherCacheSettings(**chosen), CPU), source, out)


def alone(teacher: Whisper, utterance: dict) -> Transcript:
    """Without a batch around it."""
    return Transcriber(teacher, "cs", torch.float32)([decode_flac(utterance["audio"])])[0]


def listed(folder: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines()]
    return {row["id"]: row["reason"] for row in rows}


@pytest.fixture
def corpus(teacher: Whisper, tmp_path: Path) -> Path:
    """Two shards; the transcripts are the teacher's own text, that text with two mistakes, none, and something else."""
    said = [alone(teacher, row).text for row in rows_of(make_shards(tmp_path / "x", ["."] * 12, [7, 5]), "utterances")]
    wrong = f"and {said[2]}".replace("jgkej", "oh")
    texts = [f"{said[0]}!", said[1].upper(), wrong, "", *["Co je to za divnou loď?"] * 4, said[8], "", "Ano.", ""]
    assert "jgkej" in said[2]
    return make_shards(tmp_path / "corpus", texts, [7, 5])


PLANTED_ERRORS = {0: (0, 1), 1: (0, 2), 2: (2, 4), 3: (None, None), 9: (None, None), 11: (None, None)}


def test_the_targets_are_what_the_teacher_says(teacher, corpus, tmp_path):
    encoded: list[int] = []
    hook = teacher.model.model.encoder.register_forward_hook(
        lambda module, args, output: encoded.append(len(output.last_hidden_state))
    )
    manifest = cache(teacher, corpus, tmp_path / "out")
    hook.remove()
    assert sum(encoded) == 12  # each clip once
    allowed = np.array(
        sorted(set(range(len(teacher.tokenizer))) - set(teacher.model.generation_config.suppress_tokens))
    )
    used, reasons = [], {}
    for row, utterance in zip(rows_of(tmp_path / "out"), rows_of(corpus, "utterances"), strict=True):
        expected = alone(teacher, utterance)
        assert row["id"] == utterance["id"]
        assert row["teacher_text"] == expected.text
        assert row["compression_ratio"] == len(expected.text) / len(zlib.compress(expected.text.encode()))
        if expected.unended:
            assert len(expected.tokens) == ROOM
            assert (len(row["targets"]), row["mean_log_prob"]) == (0, None)
            reasons[row["id"]] = "no_end"
            continue
        targets = row["targets"].tolist()
        used.append(targets)
        assert targets == expected.tokens
        assert teacher.tokenizer.decode(targets[:-1]).strip() == row["teacher_text"]
        log_probs = reference(teacher, utterance, targets)
        assert allowed[log_probs[:, allowed].argmax(-1)].tolist() == targets  # greedy, in float64
        assert_is_distribution(row, log_probs, **BOUNDS)
    assert len({len(targets) for targets in used}) > 3
    assert len({tuple(targets) for targets in used}) > 3
    assert len(reasons) > 1
    assert listed(tmp_path / "out") == reasons
    assert manifest["left_out"] == {"no_end": len(reasons)}
    assert manifest["tokens"] == sum(map(len, used))
    assert (manifest["settings"]["targets"], manifest["settings"]["transcribed"]) == ("pseudo", "marks-1")


def test_word_errors_are_counted_where_there_is_a_transcript(teacher, corpus, tmp_path):
    """Case and punctuation do not count; the rate in the manifest is that of all words together."""
    manifest = cache(teacher, corpus, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    for number, (errors, words) in PLANTED_ERRORS.items():
        assert (rows[number]["word_errors"], rows[number]["words"]) == (errors, words)
    # nothing in common: as many errors as the longer one has words
    words = ["co", "je", "to", "za", "divnou", "loď"]
    for row in rows[4:8]:
        assert (row["word_errors"], row["words"]) == (max(len(words), len(row["teacher_text"].split())), len(words))
    errors = [row["word_errors"] for row in rows if row["words"]]
    lengths = [row["words"] for row in rows if row["words"]]
    assert len(errors) == 9
    assert (manifest["word_errors"], manifest["words"]) == (sum(errors), sum(lengths))
    assert manifest["teacher_wer"] == sum(errors) / sum(lengths)
    assert manifest["teacher_wer"] != pytest.approx(np.mean(np.divide(errors, lengths)), abs=0.01)
    for index, entry in enumerate(ShardReader(tmp_path / "out", "teacher").shards):
        own = rows[:7] if index == 0 else rows[7:]
        assert entry["word_errors"] == sum(row["word_errors"] or 0 for row in own)


def test_without_any_transcript_there_is_no_rate(teacher, tmp_path):
    manifest = cache(teacher, make_shards(tmp_path / "mute", [""] * 4, [4]), tmp_path / "out")
    assert manifest["tokens"] > 0
    assert "teacher_wer" not in manifest
    assert all(row["words"] is None and row["teacher_text"] for row in rows_of(tmp_path / "out"))


@pytest.mark.parametrize("targets", ["reference", "pseudo"])
def test_the_number_of_cores_does_not_matter(targets, teacher, corpus, tmp_path):
    """Several batches at once on several of them: the same bytes."""
    for cores in (1, 3):
        torch.set_num_threads(cores)
        cache(teacher, corpus, tmp_path / str(cores), targets=targets, batch_size=2)
        assert torch.get_num_threads() == cores
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / cores).iterdir()} for cores in ("1", "3"))
    assert one == other


def test_the_batch_does_not_matter(teacher, corpus, tmp_path):
    for size in (1, 12):
        cache(teacher, corpus, tmp_path / str(size), batch_size=size)
    for one, other in zip(*(rows_of(tmp_path / size) for size in ("1", "12")), strict=True):
        assert np.array_equal(one["targets"], other["targets"])
        assert all(one[name] == other[name] for name in HEARD)
        np.testing.assert_allclose(one["tail_log_probs"], other["tail_log_probs"], atol=1e-4)


def test_reference_targets_and_what_the_teacher_hears(teacher, corpus, tmp_path, monkeypatch):
    """Heard for train.max_teacher_wer; targets and distributions are those of a run that does not listen."""
    monkeypatch.setattr(teacher.model.config, "max_target_positions", 80)  # for the transcripts
    cache(teacher, corpus, tmp_path / "deaf", targets="reference")
    manifest = cache(teacher, corpus, tmp_path / "hearing", targets="reference", transcribe=True)
    utterances = rows_of(corpus, "utterances")
    for row, quiet, utterance in zip(
        rows_of(tmp_path / "hearing"), rows_of(tmp_path / "deaf"), utterances, strict=True
    ):
        assert all(np.array_equal(row[name], quiet[name]) for name in row.keys() - set(HEARD))
        assert all(quiet[name] is None for name in HEARD)
        if utterance["text"]:
            assert row["targets"].tolist() == targets_of(teacher, utterance)
            assert row["teacher_text"] == alone(teacher, utterance).text
            assert row["word_errors"] is not None
        else:
            assert row["teacher_text"] is None  # left out before anything was heard
    assert set(listed(tmp_path / "hearing").values()) == {"no_text"}
    assert manifest["left_out"] == {"no_text": 3}
    assert manifest["teacher_wer"] > 0


# What cannot be used


def test_a_teacher_that_hears_nothing(tiny_whisper, tmp_path):
    silent = brief(speaking(load_whisper(str(tiny_whisper), 1), listen=20, end=1.5, seed=3))
    corpus = make_shards(tmp_path / "corpus", ["Ano."] * 12, [12])
    cache(silent, corpus, tmp_path / "out")
    expected = {}
    for row, utterance in zip(rows_of(tmp_path / "out"), rows_of(corpus, "utterances"), strict=True):
        found = alone(silent, utterance)
        assert (len(row["targets"]) > 0) == (not found.unended and found.text != "")
        if not len(row["targets"]):
            expected[row["id"]] = "no_end" if found.text else "nothing_heard"
    assert listed(tmp_path / "out") == expected
    assert set(expected.values()) == {"no_end", "nothing_heard"}
    assert len(expected) < 12


def test_a_teacher_that_repeats_itself(tmp_path):
    """At 3 s there are 45 tokens to do so; one copy is kept as what was heard."""
    make_tiny_whisper(tmp_path / "model", seed=1)
    looping = speaking(load_whisper(str(tmp_path / "model"), 3), listen=40, end=2.5, seed=4)
    source = make_shards(tmp_path / "corpus", ["Ano."] * 8, [8])
    cache(looping, source, tmp_path / "out")
    reasons = listed(tmp_path / "out")
    for row, utterance in zip(rows_of(tmp_path / "out"), rows_of(source, "utterances"), strict=True):
        found = alone(looping, utterance)
        assert row["teacher_text"] == found.text
        assert found.looped == (reasons.get(row["id"]) == "loop") == (not len(row["targets"]))
        if found.looped:
            assert len(row["teacher_text"]) < 5
            assert row["compression_ratio"] > 2.4  # of what was said, with the loop
    assert 0 < len(reasons) < 8


def test_what_does_not_fit_the_window_is_not_listened_to(teacher, tmp_path):
    writer = ShardWriter(tmp_path / "corpus", "utterances", {"language": "cs", "split": "train"})
    writer.write(0, [make_utterance(3), {**make_utterance(4, 1.3), "id": "long"}], seconds=1.9)
    writer.finish(corpus="made", language="cs", split="train", seconds=1.9, left_out={})
    encoded: list[int] = []
    hook = teacher.model.model.encoder.register_forward_hook(
        lambda module, args, output: encoded.append(len(output.last_hidden_state))
    )
    cache(teacher, tmp_path / "corpus", tmp_path / "out")
    hook.remove()
    assert encoded == [1]
    assert listed(tmp_path / "out") == {"long": "too_long"}


# Trained on


def test_a_student_reads_the_teacher_s_own_words(teacher, tmp_path):
    """Whether there is no transcript or one that is too long; what the teacher left out is left out, for its reasons."""
    corpus = make_shards(tmp_path / "corpus", ["", "a" * 500] * 6, [7, 5])
    cache(teacher, corpus, tmp_path / "out")
    shards = ShardReader(corpus, "utterances"), ShardReader(tmp_path / "out", "teacher")
    data = TrainingData(*shards, teacher, "cs", TrainSettings(max_compression_ratio=None))
    assert {row["id"]: row["reason"] for row in data.left_out} == listed(tmp_path / "out")
    expected = {row["id"]: row["targets"].tolist() for row in rows_of(tmp_path / "out") if len(row["targets"])}
    found = {}
    for batch in data.batches(2, 0, 0):
        for number, name in enumerate(batch.ids):
            found[name] = batch.targets[batch.positions[0] == number].tolist()
    assert found == expected
    assert {len(row["text"]) for row in rows_of(corpus, "utterances") if row["id"] in found} == {0, 500}


def test_a_cache_of_nothing_is_refused_when_it_is_trained_on(tiny_whisper, tmp_path):
    """A teacher that says a single letter for ever."""
    whisper = load_whisper(str(tiny_whisper), 3)
    whisper.model.generation_config.suppress_tokens = [n for n in range(len(whisper.tokenizer)) if n != 65]
    source = make_shards(tmp_path / "corpus", ["Ano."] * 3, [2, 1])
    assert cache(whisper, source, tmp_path / "out")["left_out"] == {"loop": 3}
    shards = ShardReader(source, "utterances"), ShardReader(tmp_path / "out", "teacher")
    with pytest.raises(PipelineError, match=r"no utterance to train on \(3 left out\)"):
        TrainingData(*shards, whisper, "cs", TrainSettings())
