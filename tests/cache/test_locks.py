"""One writer at a time: of a folder on this machine, and of a place in a store."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cache import locks, storage
from cache.errors import PipelineError
from cache.locks import LEASE_S, sole_writer
from cache.storage import AnyPath, StorageError

HOLD = (
    "import sys; from cache import locks, storage; locks.SETTLE_S = 0\n"
    "with locks.sole_writer(storage.path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SETTLE_S", 0.0)


@pytest.fixture
def store() -> Iterator[AnyPath]:
    MemoryFileSystem.store.clear()
    yield storage.path("memory://runs/folder")
    MemoryFileSystem.store.clear()


def holder(place: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def in_use(*places: AnyPath) -> str:
    with pytest.raises(PipelineError, match="in use by") as caught, sole_writer(*places):
        pass
    return str(caught.value)


def lease(store: AnyPath, **changes: object) -> None:
    facts = {"process": 1, "host": "elsewhere", "lease": "abc", "time": time.time(), **changes}
    store.fs.pipe_file("/runs/.folder.lock", json.dumps(facts).encode())


def test_another_process_is_named_and_a_killed_one_holds_nothing(tmp_path: Path):
    folder = tmp_path / "new/folder"
    process = holder(folder)
    for _ in range(2):  # who is refused does not take the name away
        assert in_use(folder).startswith(f"{folder}: in use by process {process.pid} on {socket.gethostname()}, ")
    assert in_use(tmp_path / "other", folder / "../folder")
    assert not folder.exists()
    process.kill()
    process.wait()
    assert (tmp_path / "new/.folder.lock").exists()
    with sole_writer(folder):
        pass
    assert list((tmp_path / "new").iterdir()) == []


def test_it_is_free_after_an_error_and_readers_are_not_kept_out(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("text")
    with pytest.raises(ZeroDivisionError), sole_writer(tmp_path / "folder", tmp_path / "folder"):
        assert (tmp_path / "folder/file").read_text() == "text"
        raise ZeroDivisionError
    with sole_writer(tmp_path / "folder"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_one_folder_by_two_names(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    process = holder(tmp_path / "link")
    assert "in use" in in_use(tmp_path / "folder")
    process.kill()
    process.wait()


def test_a_place_in_a_store(store: AnyPath):
    with sole_writer(store):
        assert f"process {os.getpid()} on {socket.gethostname()}" in in_use(store)
        assert list(MemoryFileSystem.store) == ["/runs/.folder.lock"]
    assert list(MemoryFileSystem.store) == []


def test_a_lease_that_nobody_renews_ends(store: AnyPath):
    lease(store, time=time.time() - LEASE_S + 30)
    assert "in use by process 1 on elsewhere" in (said := in_use(store)) and "was killed, wait until" in said
    lease(store, time=time.time() - LEASE_S - 1)
    with sole_writer(store):
        pass
    assert list(MemoryFileSystem.store) == []


def test_a_process_of_this_machine_that_is_gone_holds_no_lease(store: AnyPath):
    gone = subprocess.Popen(["true"])
    gone.wait()
    lease(store, process=gone.pid, host=socket.gethostname())
    with sole_writer(store):
        pass
    lease(store, process=os.getppid(), host=socket.gethostname())
    in_use(store)
    lease(store, process=os.getpid(), host=socket.gethostname())  # not ours: of a run that ended without its store
    with sole_writer(store):
        pass


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", b"{}"])
def test_a_lease_that_cannot_be_read_is_none(data: bytes, store: AnyPath):
    store.fs.pipe_file("/runs/.folder.lock", data)
    with sole_writer(store):
        pass


def test_of_two_at_the_same_moment_the_later_has_it(store: AnyPath, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: lease(store, host="quicker"))
    assert "on quicker" in in_use(store)
    assert b"quicker" in store.fs.cat_file("/runs/.folder.lock")


def test_a_lease_is_renewed_but_never_another_s(store: AnyPath, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "RENEW_S", 0.01)

    def written() -> dict:
        return json.loads(store.fs.cat_file("/runs/.folder.lock"))

    with sole_writer(store):
        first = written()["time"]
        until = time.monotonic() + 10
        while written()["time"] == first and time.monotonic() < until:
            time.sleep(0.01)
        assert written()["time"] > first
        lease(store, host="later")
        time.sleep(0.1)
        assert written()["host"] == "later"
    assert written()["host"] == "later"


def test_a_store_that_fails_at_the_end_does_not_hide_the_first_error(store: AnyPath, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object, **options: object) -> None:
        raise PermissionError("AccessDenied")

    with pytest.raises(ZeroDivisionError), sole_writer(store):
        monkeypatch.setattr(store.fs, "cat_file", fail)
        raise ZeroDivisionError
    with pytest.raises(StorageError, match="not allowed"), sole_writer(store):
        pass
