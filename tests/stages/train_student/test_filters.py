"""What is filtered by the teacher's verdict is exactly what was planted, counted and listed; the rest is trained on."""

import json
from pathlib import Path

import pytest
import torch
from makers import make_teacher_shards
from training import train_one

from cache.errors import PipelineError
from cache.shards import ShardReader
from stages.shared.whisper.models import Whisper, load_whisper
from stages.train_student.data import TrainingData
from stages.train_student.settings import TrainSettings

# by the utterance's number among the 5 + 4 of the training split; the others say nothing remarkable
HEARD = {
    0: {"word_errors": 2, "words": 4},
    1: {"word_errors": 3, "words": 4},
    2: {"word_errors": 9, "words": 4},
    3: {"word_errors": 0, "words": 4, "mean_log_prob": -2.5},
    4: {"mean_log_prob": -2.0},
    5: {"compression_ratio": 2.4},
    6: {"compression_ratio": 2.5},
    7: {"word_errors": 1, "words": 0},  # nothing of the transcript is left after normalisation
    8: {"word_errors": 4, "words": 4, "mean_log_prob": -7.0, "compression_ratio": 30.0},
}


def heard(number: int) -> dict:
    unremarkable = {"teacher_text": "a", "compression_ratio": 1.0, "word_errors": 0, "words": 4, "mean_log_prob": -0.5}
    return {**unremarkable, **HEARD.get(number, {})}


@pytest.fixture
def student(tiny_whisper: Path) -> Whisper:
    return load_whisper(str(tiny_whisper), 1)


def data_of(utterances: Path, teacher: Path, student: Whisper, **changes) -> TrainingData:
    shards = ShardReader(utterances / "train", "utterances"), ShardReader(teacher, "teacher")
    return TrainingData(*shards, student, "cs", TrainSettings(**changes))


def ids_of(utterances: Path) -> list[str]:
    reader = ShardReader(utterances / "train", "utterances")
    return [row["id"] for shard in range(len(reader.shards)) for row in reader.read(shard, only=("id",))]


@pytest.mark.parametrize(
    ("targets", "changes", "reasons"),
    [
        ("reference", {}, {}),
        ("reference", {"max_teacher_wer": 0.5}, {1: "teacher_wer", 2: "teacher_wer", 8: "teacher_wer"}),
        ("reference", {"max_teacher_wer": 1.0}, {2: "teacher_wer"}),
        (
            "reference",
            {"max_teacher_wer": 0.0},
            {0: "teacher_wer", 1: "teacher_wer", 2: "teacher_wer", 8: "teacher_wer"},
        ),
        ("reference", {"min_mean_log_prob": -2.0}, {3: "teacher_log_prob", 8: "teacher_log_prob"}),
        ("reference", {"max_compression_ratio": 1.5}, {}),  # the transcript is the target, whatever the teacher says
        ("pseudo", {}, {6: "teacher_repeats", 8: "teacher_repeats"}),
        ("pseudo", {"max_compression_ratio": None}, {}),
        ("pseudo", {"max_compression_ratio": 2.0}, {5: "teacher_repeats", 6: "teacher_repeats", 8: "teacher_repeats"}),
        (
            "pseudo",
            {"max_teacher_wer": 1.0, "min_mean_log_prob": -3.0},
            {2: "teacher_wer", 6: "teacher_repeats", 8: "teacher_log_prob"},
        ),
    ],
)
def test_what_is_planted_is_left_out(targets, changes, reasons, student, utterances, tmp_path):
    """A limit is still within it; what is read in an epoch is the rest, each once."""
    teacher = make_teacher_shards(tmp_path / "teacher", utterances / "train", student, heard, targets)
    data, ids = data_of(utterances, teacher, student, **changes), ids_of(utterances)
    assert [(row["id"], row["reason"]) for row in data.left_out] == [(ids[n], reason) for n, reason in reasons.items()]
    read = [name for batch in data.batches(2, 0, 0) for name in batch.ids]
    assert sorted(read) == sorted(name for number, name in enumerate(ids) if number not in reasons)
    assert (len(data), data.not_chosen) == (9 - len(reasons), 0)


def test_a_run_counts_and_lists_them(student, utterances, tmp_path):
    teacher = make_teacher_shards(tmp_path / "teacher", utterances / "train", student, heard)
    settings = TrainSettings(max_steps=1, batch_size=4, max_validation=1, max_teacher_wer=0.7, dtype="fp32")
    result = train_one(student, "clsr-kd", "cs", utterances, teacher, tmp_path / "run", settings, torch.device("cpu"))
    assert (result["left_out"], result["training_utterances"]) == (3, 6)
    assert result["settings"]["max_teacher_wer"] == 0.7
    ids = ids_of(utterances)
    assert [json.loads(line) for line in (tmp_path / "run/left_out.jsonl").read_text().splitlines()] == [
        {"id": ids[1], "reason": "teacher_wer", "detail": "0.750, at most 0.7 asked for"},
        {"id": ids[2], "reason": "teacher_wer", "detail": "2.250, at most 0.7 asked for"},
        {"id": ids[8], "reason": "teacher_wer", "detail": "1.000, at most 0.7 asked for"},
    ]


def test_what_the_teacher_left_out_keeps_its_reason(student, utterances, tmp_path):
    """Whatever else could be said of it."""
    teacher = make_teacher_shards(tmp_path / "teacher", utterances / "train", student, heard)
    manifest = json.loads((teacher / "manifest.json").read_text())
    name = ids_of(utterances)[2]
    manifest["shards"][0]["left_out"] = [{"id": name, "reason": "too_many_tokens", "detail": "500 tokens"}]
    (teacher / "manifest.json").write_text(json.dumps(manifest))
    data = data_of(utterances, teacher, student, max_teacher_wer=1.0)
    assert data.left_out == [{"id": name, "reason": "too_many_tokens", "detail": "500 tokens"}]


def test_a_limit_on_what_was_not_cached_is_refused(student, utterances, tmp_path):
    """And nothing is made of the run's folder."""
    teacher = make_teacher_shards(tmp_path / "teacher", utterances / "train", student)
    settings = TrainSettings(max_steps=1, max_teacher_wer=0.5, dtype="fp32")
    with pytest.raises(PipelineError) as caught:
        train_one(student, "clsr-kd", "cs", utterances, teacher, tmp_path / "run", settings, torch.device("cpu"))
    assert str(caught.value).startswith(
        f"{teacher}: max_teacher_wer is 0.5, but the teacher's own transcripts were not"
    )
    assert "teacher_cache.transcribe" in str(caught.value)
    assert not list((tmp_path / "run").glob("*"))


def test_filters_that_leave_nothing_are_refused(student, utterances, tmp_path):
    teacher = make_teacher_shards(tmp_path / "teacher", utterances / "train", student, heard)
    with pytest.raises(PipelineError, match=r"no utterance to train on \(9 left out\)"):
        data_of(utterances, teacher, student, min_mean_log_prob=-0.1)
