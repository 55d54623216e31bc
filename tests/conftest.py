"""Fixtures of all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from makers import make_tiny_whisper, make_utterance_shards


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads wait for each other longer than such small tensors take; real models take all there are."""
    threads = torch.get_num_threads()
    if not request.node.get_closest_marker("real"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_whisper(tmp_path_factory.mktemp("tiny-whisper"))


@pytest.fixture
def utterances(tmp_path: Path) -> Path:
    """<tmp>/data/utterances/cs with train (5 + 4 clips), validation (3) and test (4)."""
    root = tmp_path / "data/utterances/cs"
    for split, rows in {"train": [5, 4], "validation": [3], "test": [4]}.items():
        make_utterance_shards(root / split, rows, split)
    return root
