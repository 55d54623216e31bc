"""Files that are either whole or not there: a temporary name, fsync, rename; in an object store one upload."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cache import storage
from cache.errors import PipelineError
from cache.storage import AnyPath, RemotePath, StorageError

TEMPORARY = ".tmp-"


def download_folder() -> Path:
    """$PIPELINE_CACHE, or the user's cache folder. What is in it can be removed at any time, and is fetched again."""
    if folder := os.environ.get("PIPELINE_CACHE"):
        return Path(folder).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if not base.is_absolute():  # the XDG specification: such a value counts as none
        base = Path("~/.cache").expanduser()
    return base / "whisper-offline-distillation"


@contextmanager
def atomic_path(path: AnyPath) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on a clean exit it is fsynced and takes the name, else it is removed.

    What goes to a store is written to this machine's folder for temporary files first ($TMPDIR) and sent when complete.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            _send(Path(folder) / path.name, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def _send(source: Path, target: RemotePath) -> None:
    try:
        storage.retried(str(target), lambda: _send_once(source, target))
    except FileNotFoundError:
        raise StorageError(f"{target}: cannot be written: no such bucket: make it, or correct the address") from None


def _send_once(source: Path, target: RemotePath) -> None:
    store = target.fs
    if target.protocol in storage.OBJECT_STORES:
        store.put_file(str(source), target.path)
        return
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")
    store.makedirs(target.parent.path, exist_ok=True)
    try:
        store.put_file(str(source), temporary.path)
        store.mv(temporary.path, target.path)
    except BaseException:
        with suppress(Exception):  # the first error is the one to tell
            store.rm_file(temporary.path)
        raise


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """Yields `path`, or a temporary copy of what lies in a store. Raises FileNotFoundError where there is no such file."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        download(path, copy)
        yield copy


def download(path: RemotePath, target: Path) -> None:
    storage.retried(str(path), lambda: path.fs.get_file(path.path, str(target)))


@contextmanager
def local_folder(folder: AnyPath) -> Iterator[Path]:
    """Yields `folder`, or a temporary one whose files are sent to the store on a clean exit: for libraries' own writers."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir()):
            _send(file, folder / file.name)


def fsync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut (a no-op where folders cannot be opened)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: AnyPath, text: str) -> None:
    with atomic_path(path) as temporary:
        # a file name that is not UTF-8 has characters which UTF-8 lacks: in JSON this is their escape
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: AnyPath, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: AnyPath, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_text(path: AnyPath, text: str) -> None:
    """Adds to a file that one process alone writes; in a store, where nothing can be added, the file is written anew."""
    if isinstance(path, Path):
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    else:
        write_text(path, (path.read_text(encoding="utf-8") if path.exists() else "") + text)


def read_json(path: AnyPath) -> Any:
    """Raises PipelineError where the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # also bytes that are no text, and numbers of thousands of digits
        raise PipelineError(f"{path}: not valid JSON ({error})") from None


def read_jsonl(path: AnyPath) -> list[dict[str, Any]]:
    """Raises PipelineError where the file is missing or a line is not JSON."""
    try:
        # not splitlines(): JSON leaves U+2028 and its like as they are
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: not valid JSON lines ({error})") from None


def sha256_file(path: AnyPath) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()  # Python 3.10 has no hashlib.file_digest
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def remove_temporaries(folder: AnyPath) -> None:
    """Removes what a killed process left half-written: in an object store nothing ever is."""
    if not isinstance(folder, Path) and folder.protocol in storage.OBJECT_STORES:
        return
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)
