"""Each tracker holds the curve's rows, read back with the tracker's own reader; a tracker never ends or changes a training."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training import train_one

from cache.errors import PipelineError
from stages.shared.whisper.models import load_whisper
from stages.train_student import tracking
from stages.train_student.settings import TrainSettings

CPU = torch.device("cpu")
NAME = "cs/lora"


@pytest.fixture
def train(tiny_whisper: Path, utterances: Path, tmp_path: Path):
    def run(*trackers: str, steps: int = 2, said: list[str] | None = None, **changes) -> list[dict]:
        settings = TrainSettings(
            **dict(max_steps=steps, batch_size=4, accumulate=1, log_every=1, max_validation=1, dtype="fp32") | changes,
            track=list(trackers),
        )
        out, told = tmp_path / "models" / NAME, (said if said is not None else []).append
        base = load_whisper(str(tiny_whisper), 1)
        train_one(base, "lora", "cs", utterances, None, out, settings, CPU, runs=tmp_path / "runs", warn=told)
        return [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]

    return run


def values(curve: list[dict], name: str) -> dict[int, float]:
    return {row["step"]: pytest.approx(row[name]) for row in curve if name in row}


def test_tensorboard(train, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curve = train("tensorboard")
    found = EventAccumulator(str(tmp_path / "runs" / NAME)).Reload()
    for name in ("loss", "ce", "validation_wer"):
        assert {event.step: event.value for event in found.Scalars(name)} == values(curve, name)


def test_dvclive(train, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    curve = train("dvclive")
    rows = (tmp_path / "runs" / NAME / "plots/metrics/loss.tsv").read_text().splitlines()[1:]
    assert {int(step): float(loss) for step, loss in (row.split("\t") for row in rows)} == values(curve, "loss")
    assert not (tmp_path / "dvc.yaml").exists()


def test_trackio(train, tmp_path: Path, monkeypatch):
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    curve = train("trackio")
    rows = SQLiteStorage.get_logs(tracking.PROJECT, NAME)
    assert {row["step"]: row["loss"] for row in rows if "loss" in row} == values(curve, "loss")


def test_wandb(train, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    curve = train("wandb")
    (file,) = tmp_path.glob("wandb/offline-run-*/run-cs-lora.wandb")
    found = {}
    for record in wandb_records(file.read_bytes()):
        items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        if "loss" in items:
            found[items["_step"]] = items["loss"]
    assert found == values(curve, "loss")


def wandb_records(data: bytes) -> Iterator:
    """Reads LevelDB's log format, which W&B writes: 7 bytes, then of each record checksum, length, kind and content."""
    from wandb.proto.wandb_internal_pb2 import Record

    place = 7
    while place < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, place)
        assert kind == 1, "the file has one block alone, so that each record is whole"
        yield Record.FromString(data[place + 7 : place + 7 + length])
        place += 7 + length


class Failing:
    """A tracker whose network is gone after the first row."""

    def __init__(self, **options):
        self.rows = 0

    def start(self):
        pass

    def store_init_configuration(self, settings):
        assert settings["learning_rate"] and isinstance(settings["betas"], str)

    def log(self, values, step):
        self.rows += 1
        if self.rows > 1:
            raise ConnectionError("gone")

    def finish(self):
        raise AssertionError("it was given up before")


def test_a_tracker_that_fails_is_told_and_the_training_goes_on(train, monkeypatch):
    monkeypatch.setitem(_classes(), "tensorboard", Failing)
    said: list[str] = []
    assert len(train("tensorboard", steps=3, said=said, learning_rate=1e-3)) == 4
    assert said == [
        "train.track: tensorboard has failed (ConnectionError: gone) and gets no more rows; the curve is in the run's folder"
    ]


def test_a_tracker_that_does_not_begin_ends_the_run_before_its_first_step(train, monkeypatch, tmp_path: Path):
    def start(self):
        raise PermissionError("no key")

    monkeypatch.setitem(_classes(), "wandb", type("Closed", (Failing,), {"start": start}))
    with pytest.raises(
        PipelineError, match=r"wandb does not begin \(PermissionError: no key\): set it up, or leave it out"
    ):
        train("wandb", learning_rate=1e-3)
    assert not (tmp_path / "models" / NAME / "curve.jsonl").exists()


def test_a_tracker_that_is_not_installed_names_its_extra(train, monkeypatch):
    monkeypatch.setattr("accelerate.utils.imports.is_trackio_available", lambda: False)
    with pytest.raises(
        PipelineError, match=r"trackio is not installed: pip install -c constraints.txt -e '.\[trackio\]'"
    ):
        train("trackio")


def test_trackers_are_no_part_of_the_recipe(train, monkeypatch):
    """The same training with and without: it is finished, and nothing is trained or sent again."""
    curve = train()
    monkeypatch.setitem(_classes(), "tensorboard", None)
    assert train("tensorboard") == curve


def _classes() -> dict:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return LOGGER_TYPE_TO_CLASS
