"""A teacher whose batch does not fit into memory: it goes on with half of it, and so may the next run."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import make_utterance_shards

from cache.errors import PipelineError
from cache.shards import ShardReader
from cache.verify import faults
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import Whisper, load_whisper
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings

CPU = torch.device("cpu")


class Device:
    """Has memory for `most` rows at a time in the encoder or the decoder, and then only until `calls` calls were made."""

    def __init__(self, whisper: Whisper, most: int, calls: int = 1000, part: str = "encoder"):
        self.most, self.calls, self.seen = most, calls, []
        getattr(whisper.model.model, part).register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: torch.nn.Module, arguments: tuple, named: dict) -> None:
        rows = len(next(iter([*arguments, *named.values()])))
        if rows > self.most or len(self.seen) >= self.calls:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.seen.append(rows)


def cache(whisper: Whisper, source: Path, out: Path, **changes) -> dict:
    settings = TeacherCacheSettings(**{"top_k": 8, "batch_size": 5, "dtype": "fp32", **changes})
    return cache_teacher(ScoringJob(whisper, "cs", settings, CPU), source, out)


def rows_of(folder: Path) -> list[dict]:
    reader = ShardReader(folder, "teacher")
    return [row for index in range(len(reader.shards)) for row in reader.read(index)]


def assert_the_same(one: Path, other: Path) -> None:
    """But for rounding."""
    for first, second in zip(rows_of(one), rows_of(other), strict=True):
        assert first["id"] == second["id"]
        assert np.array_equal(first["targets"], second["targets"])
        np.testing.assert_allclose(first["tail_log_probs"], second["tail_log_probs"], atol=1e-4)
        assert first["mean_log_prob"] == pytest.approx(second["mean_log_prob"], abs=1e-4)
    tails = [ShardReader(folder, "teacher").tail() for folder in (one, other)]
    np.testing.assert_allclose(*tails, rtol=1e-4, atol=1e-9)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_utterance_shards(tmp_path / "source", [5, 7, 2])


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_it_goes_on_with_half_the_batch(part, cores, source, tiny_whisper, tmp_path, caplog):
    torch.set_num_threads(cores)
    whole = cache(load_whisper(str(tiny_whisper), 1), source, tmp_path / "whole")
    assert [entry["batch_size"] for entry in whole["shards"]] == [5, 5, 5]
    whisper = load_whisper(str(tiny_whisper), 1)
    device = Device(whisper, 2, part=part)
    with caplog.at_level(logging.WARNING):
        manifest = cache(whisper, source, tmp_path / "halved")
    assert [entry["batch_size"] for entry in manifest["shards"]] == [2, 2, 2]
    assert sum(device.seen) == 14 and max(device.seen) == 2  # each clip once
    assert "out of memory with a batch of 5: going on with batches of 2" in caplog.text
    assert "batch_size" not in manifest["settings"]
    assert_the_same(tmp_path / "whole", tmp_path / "halved")
    assert list(faults(tmp_path / "halved")) == []


def test_it_goes_on_where_log_mel_did_not_fit(source, tiny_whisper, tmp_path, monkeypatch):
    """That is made by the thread that reads ahead, on the host."""
    cache(load_whisper(str(tiny_whisper), 1), source, tmp_path / "whole")
    monkeypatch.setattr("stages.teacher_cache.shard.LogMel.__call__", _limited(2))
    manifest = cache(load_whisper(str(tiny_whisper), 1), source, tmp_path / "halved")
    assert {entry["batch_size"] for entry in manifest["shards"]} == {2}
    assert_the_same(tmp_path / "whole", tmp_path / "halved")


def _limited(most: int):
    real = LogMel.__call__

    def limited(self: LogMel, clips: list) -> torch.Tensor:
        if len(clips) > most:
            raise MemoryError
        return real(self, clips)

    return limited


def test_pseudo_targets_in_halves(source, tiny_whisper, tmp_path):
    for most in (5, 1):
        whisper = load_whisper(str(tiny_whisper), 1)
        Device(whisper, most)
        cache(whisper, source, tmp_path / str(most), targets="pseudo")
    rows = [rows_of(tmp_path / name) for name in ("5", "1")]
    assert [row["teacher_text"] for row in rows[0]] == [row["teacher_text"] for row in rows[1]]
    lists = [(tmp_path / name / "left_out.jsonl").read_text() for name in ("5", "1")]
    assert lists[0] == lists[1]


def test_another_run_goes_on_with_another_batch_size(source, tiny_whisper, tmp_path):
    """What was done stays, bit for bit; each shard says what it was made with."""
    whisper = load_whisper(str(tiny_whisper), 1)
    Device(whisper, 5, calls=2)
    with pytest.raises(PipelineError, match="out of memory with teacher_cache.batch_size 1 .CUDA out of memory"):
        cache(whisper, source, tmp_path / "out")
    done = json.loads((tmp_path / "out/progress.json").read_text())["shards"]
    assert [entry["batch_size"] for entry in done] == [5]
    manifest = cache(load_whisper(str(tiny_whisper), 1), source, tmp_path / "out", batch_size=3)
    assert manifest["shards"][0] == done[0]
    assert [entry["batch_size"] for entry in manifest["shards"]] == [5, 3, 3]
    assert list(faults(tmp_path / "out")) == []


def test_another_error_is_no_reason_to_go_on(source, tiny_whisper, tmp_path):
    whisper = load_whisper(str(tiny_whisper), 1)

    def broken(*_) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    whisper.model.model.encoder.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        cache(whisper, source, tmp_path / "out")


@pytest.mark.parametrize("value", [0, -1, "16", 2.5, True, None])
def test_a_batch_size_of_a_wrong_type_in_a_manifest(value, source, tiny_whisper, tmp_path):
    cache(load_whisper(str(tiny_whisper), 1), source, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    manifest["shards"][1]["batch_size"] = value
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PipelineError, match="shard-00001.parquet has seconds, tokens, batch_size"):
        ShardReader(tmp_path / "out", "teacher")
