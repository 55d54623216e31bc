"""Of processes that start at the same moment one downloads. The others wait, and find it whole."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cache import files, storage
from cache.storage import RemotePath
from stages.prepare.corpora import debian
from stages.shared.whisper import download, embedded

STARTS = 4
MODEL_FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture(autouse=True)
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "downloads"))
    return tmp_path / "downloads"


def at_once(work: Callable[[], list[str]]) -> list[str]:
    """Runs `work` in threads that begin together. A lock holds between them as between processes."""
    begin = Barrier(STARTS)

    def start(_: int) -> list[str]:
        begin.wait()
        return work()

    with ThreadPoolExecutor(STARTS) as pool:
        first, *others = pool.map(start, range(STARTS))
    assert all(found == first for found in others)
    return first


def names(folder: Path) -> list[str]:
    return sorted(f"{path.stat().st_ino} {path.name}" for path in folder.iterdir())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Conversions to the embedded model, whose files are empty here."""
    made = []

    def convert(source: Path, folder: Path) -> None:
        made.append(source)
        folder.mkdir()
        for name in MODEL_FILES:
            time.sleep(0.02)
            (folder / name).touch()

    monkeypatch.setattr(embedded, "_download", lambda folder: folder)
    monkeypatch.setattr(embedded, "_convert", convert)
    return made


def test_the_embedded_model_is_made_once(made, downloads):
    found = at_once(lambda: names(embedded.embedded_whisper_base()))
    assert [path.name for path in downloads.iterdir()] == ["whisper-base"]
    assert sorted(name.split()[1] for name in found) == MODEL_FILES
    assert len(made) == 1


@pytest.mark.parametrize("name", MODEL_FILES)
def test_an_embedded_model_without_one_of_its_files_is_made_again(name, made):
    folder = embedded.embedded_whisper_base()
    assert embedded.embedded_whisper_base() == folder and len(made) == 1
    (folder / name).unlink()
    assert [path.name for path in sorted(embedded.embedded_whisper_base().iterdir())] == MODEL_FILES
    assert len(made) == 2


@pytest.fixture
def model() -> Iterator[RemotePath]:
    MemoryFileSystem.store.clear()
    folder = storage.path("memory://models/one")
    assert isinstance(folder, RemotePath)
    for name in ("config.json", "model.safetensors"):
        folder.fs.pipe_file(f"/models/one/{name}", name.encode())
    yield folder
    MemoryFileSystem.store.clear()


def test_a_model_in_a_store_is_copied_once(model, monkeypatch):
    copied = []

    def slow(source: RemotePath, target: Path) -> None:
        copied.append(source.name)
        time.sleep(0.02)
        target.write_bytes(b"{}")

    monkeypatch.setattr(files, "download", slow)
    at_once(lambda: names(download.download_matching(model, ("*",))))
    assert copied == ["config.json", "model.safetensors"]


def test_packages_are_fetched_once(monkeypatch):
    fetched = []

    def slow(packages: list[str], folder: Path) -> None:
        fetched.append(packages)
        time.sleep(0.02)
        for package in packages:
            (folder / f"{package}_1_all").mkdir(parents=True)

    monkeypatch.setattr(debian, "_download", slow)
    found = at_once(lambda: [path.name for path in debian.fetch(["game", "game-cs"], "game")])
    assert found == ["game_1_all", "game-cs_1_all"]
    assert fetched == [["game", "game-cs"]]
