"""A teacher cache whose process is killed again and again at random points is the one that was never killed."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from makers import make_utterance_shards

from cache import files
from cache.shards import MANIFEST, PROGRESS
from stages.shared.whisper.models import load_whisper
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings

KILLS = 12


def _cache(tiny: Path, source: Path, out: Path, format: str) -> None:
    torch.set_num_threads(1)
    settings = TeacherCacheSettings(top_k=8, batch_size=2, dtype="fp32", format=format)
    cache_teacher(ScoringJob(load_whisper(str(tiny), 1), "cs", settings, torch.device("cpu")), source, out)


def _start(*arguments: object) -> multiprocessing.process.BaseProcess:
    """A fork has everything imported: it is at work, and can be killed at it, within milliseconds."""
    process = multiprocessing.get_context("fork").Process(target=_cache, args=arguments)
    process.start()
    return process


def _is_sound(folder: Path) -> int:
    """How many shards are recorded; each of them is there and whole, whatever was going on."""
    path = next((folder / name for name in (MANIFEST, PROGRESS) if (folder / name).exists()), None)
    entries = files.read_json(path)["shards"] if path else []
    for entry in entries:
        assert files.sha256_file(folder / entry["name"]) == entry["sha256"]
    return len(entries)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_killed_at_random_points_it_is_the_same_cache(format, seed, tiny_whisper, tmp_path):
    source = make_utterance_shards(tmp_path / "source", [3, 1, 4, 2, 3, 1, 2, 4])
    started = time.monotonic()
    whole = _start(tiny_whisper, source, tmp_path / "whole", format)
    whole.join()
    assert whole.exitcode == 0
    took, chance = time.monotonic() - started, random.Random(seed)
    out, recorded, killed = tmp_path / "killed", [0], 0
    for _ in range(KILLS):
        process = _start(tiny_whisper, source, out, format)
        process.join(chance.uniform(0, took))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
        recorded.append(_is_sound(out))
        assert recorded[-1] >= recorded[-2]  # nothing is done twice
    last = _start(tiny_whisper, source, out, format)
    last.join()
    assert last.exitcode == 0
    assert killed
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }
