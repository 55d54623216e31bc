"""Ensures that one process at a time writes to a file or folder: by a lock of the operating system, in a store by a lease."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cache import files
from cache.errors import PipelineError
from cache.storage import AnyPath, RemotePath

LEASE_S = 300.0  # a lease ends so long after its process last renewed it
RENEW_S = 60.0
SETTLE_S = 1.0  # after writing a lease, before reading it again: of two processes the later writer keeps it

_held: set[str] = set()  # leases of this process


@contextmanager
def sole_writer(*targets: AnyPath) -> Iterator[None]:
    """Keeps other processes from writing to these files or folders while the block runs. Readers are not kept out.

    The lock is a file beside its target, `.NAME.lock`, and is removed at the end. The file of a killed process locks nothing.
    Raises PipelineError naming the process that holds one of the targets.
    """
    with ExitStack() as stack:
        for target in sorted(dict.fromkeys(map(_resolved, targets)), key=str):
            path = target.parent / f".{target.name}.lock"
            stack.enter_context(_locked(path, target) if isinstance(path, Path) else _leased(path, target))
        yield


@contextmanager
def taking_turns(folder: Path) -> Iterator[None]:
    """Lets one process at a time make `folder`; another waits. Look within the block whether the folder is there by now."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    with FileLock(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while locked, as in `_locked`


def _resolved(target: AnyPath) -> AnyPath:
    return target.resolve() if isinstance(target, Path) else target


@contextmanager
def _locked(path: Path, target: AnyPath) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise _in_use(target, _read(path)) from None
    try:
        path.write_text(json.dumps(_this_process()), encoding="utf-8")
        yield
    finally:
        path.unlink(
            missing_ok=True
        )  # while locked: a new process makes another file, one that has this open tries again
        lock.release()


@contextmanager
def _leased(path: RemotePath, target: AnyPath) -> Iterator[None]:
    own = uuid.uuid4().hex
    _check_free(path, target, own)
    _held.add(own)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(path, own, ended), daemon=True)
    try:
        _write(path, own)
        time.sleep(SETTLE_S)
        _check_free(path, target, own)
        renewal.start()
        yield
    finally:
        ended.set()
        _held.remove(own)
        if renewal.ident is not None:
            renewal.join()
        with suppress(PipelineError):  # the store fails: the first error is the one to report, and the lease runs out
            if _is_own(path, own):
                path.unlink(missing_ok=True)


def _renew(path: RemotePath, own: str, ended: threading.Event) -> None:
    while not ended.wait(RENEW_S):
        with suppress(PipelineError):  # if the store fails for longer, the next write raises its own error
            if _is_own(path, own):
                _write(path, own)


def _check_free(path: RemotePath, target: AnyPath, own: str) -> None:
    found = _read(path)
    if found and found.get("lease") != own and not _is_over(found):
        raise _in_use(target, found, f"; if that process was killed, wait until {_end(found)}")


def _is_over(lease: dict[str, Any]) -> bool:
    if time.time() > _time(lease) + LEASE_S:
        return True
    if lease.get("host") != socket.gethostname():
        return False
    number = lease.get("process")
    return not _is_alive(number) or (number == os.getpid() and lease.get("lease") not in _held)


def _is_alive(process: object) -> bool:
    if not isinstance(process, int) or process < 1 or os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process belongs to another account
        return True
    return True


def _is_own(path: RemotePath, own: str) -> bool:
    return _read(path).get("lease") == own


def _write(path: RemotePath, own: str) -> None:
    files.write_json(path, {**_this_process(), "lease": own, "time": time.time()})


def _read(path: AnyPath) -> dict[str, Any]:
    """Returns the content of a lock file, {} where there is none or it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, PermissionError, ValueError) as error:
        if isinstance(error, PipelineError):
            raise
        return {}
    return found if isinstance(found, dict) else {}


def _this_process() -> dict[str, Any]:
    return {"process": os.getpid(), "host": socket.gethostname()}


def _time(lease: dict[str, Any]) -> float:
    found = lease.get("time")
    return float(found) if isinstance(found, int | float) else 0.0


def _end(lease: dict[str, Any]) -> str:
    return time.strftime("%H:%M:%S", time.localtime(_time(lease) + LEASE_S))


def _in_use(target: AnyPath, holder: dict[str, Any], until: str = "") -> PipelineError:
    who = (
        f"process {holder['process']} on {holder['host']}"
        if {"process", "host"} <= holder.keys()
        else "another process"
    )
    return PipelineError(
        f"{target}: in use by {who}, expected one at a time: wait until it ends, or give another path{until}"
    )
