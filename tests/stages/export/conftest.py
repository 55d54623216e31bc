"""A tiny Whisper that says something, and validation shards, in one working folder."""

from pathlib import Path

import pytest
import torch
from makers import make_utterance_shards, speaking

from stages.shared.whisper.models import load_whisper
from stages.shared.whisper.saving import save_whisper


@pytest.fixture(scope="session")
def speaker(tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Whisper folder with a window of 1 s, whose texts differ from clip to clip."""
    folder = tmp_path_factory.mktemp("speaker")
    save_whisper(speaking(load_whisper(str(tiny_whisper), 1), listen=20, end=2.5, seed=4), folder, torch.float32)
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, without the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("pipeline.commands.common.use_all_cores", lambda: torch.set_num_threads(1))
    return tmp_path


@pytest.fixture
def validation(work: Path) -> Path:
    return make_utterance_shards(work / "data/utterances/cs/validation", [3, 2], "validation")
