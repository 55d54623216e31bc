"""Writes files that are either whole or absent: temporary name, fsync, rename; in an object store one upload."""

import errno
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
    """Returns $PIPELINE_CACHE, or the user's cache folder. Its files may be removed at any time: they are fetched again."""
    if folder := os.environ.get("PIPELINE_CACHE"):
        return Path(folder).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if not base.is_absolute():  # the XDG specification says to ignore such a value
        base = Path("~/.cache").expanduser()
    return base / "whisper-offline-distillation"


@contextmanager
def atomic_path(path: AnyPath) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on a clean exit it is fsynced and renamed to `path`, else removed.

    For a store, the file is written to this machine's folder for temporary files ($TMPDIR) and sent when complete.
    Raises IsADirectoryError where `path` is a folder.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            _send(Path(folder) / path.name, path)
        return
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory, expected the name of a file to write", str(path))
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
        with suppress(Exception):  # the first error is the one to report
            store.rm_file(temporary.path)
        raise


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """Yields `path`, or a temporary copy of it if it lies in a store. Raises FileNotFoundError where there is no such file."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        download(path, copy)
        yield copy


def download(path: RemotePath, target: Path) -> None:
    storage.retried(str(path), lambda: path.fs.get_file(path.path, str(target)))


def refuse_taken(out: AnyPath) -> None:
    """Raises PipelineError where there is something at `out`."""
    if isinstance(out, Path) and out.exists() and not out.is_dir():
        raise PipelineError(f"{out}: a file, expected a new folder: give another one with --out")
    if (isinstance(out, Path) and out.is_dir() and any(out.iterdir())) or storage.sizes(out):
        raise PipelineError(
            f"{out}: holds files already, expected a new or an empty folder: remove it, or give another"
        )


@contextmanager
def new_folder(out: AnyPath) -> Iterator[Path]:
    """Yields a folder of another name, which becomes `out` on a clean exit; else nothing of it is left."""
    if not isinstance(out, Path):
        with local_folder(out) as temporary:
            yield temporary
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=TEMPORARY) as beside:
        whole = Path(beside) / out.name
        whole.mkdir()
        yield whole
        whole.rename(out)  # also in the place of an empty folder
    fsync_folder(out.parent)


@contextmanager
def local_folder(folder: AnyPath) -> Iterator[Path]:
    """Yields `folder`, or a temporary folder whose files are sent to the store on a clean exit, those in folders first.

    It is for libraries that write only to local folders.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
        sent = [path for path in Path(temporary).rglob("*") if path.is_file()]
        for file in sorted(sent, key=lambda path: (-len(path.parts), path)):
            _send(file, folder / file.relative_to(temporary).as_posix())


def fsync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut. Does nothing where folders cannot be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: AnyPath, text: str) -> None:
    """Writes UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        # a file name that is not UTF-8 holds characters that UTF-8 lacks: "\udc80" is also their escape in JSON
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Writes the file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: AnyPath, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: AnyPath, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_text(path: AnyPath, text: str) -> None:
    """Appends to a file that only one process writes. In a store, which cannot append, writes the whole file again."""
    if isinstance(path, Path):
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    else:
        write_text(path, (path.read_text(encoding="utf-8") if path.exists() else "") + text)


def read_json(path: AnyPath) -> Any:
    """Returns the file's value. Raises PipelineError where the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are not UTF-8, or thousands of digits
        raise PipelineError(f"{path}: not valid JSON ({error})") from None


def read_jsonl(path: AnyPath) -> list[dict[str, Any]]:
    """Returns the value of each line. Raises PipelineError where the file is missing or a line is not JSON."""
    try:
        # not splitlines(), which also splits at U+2028 and the like, and JSON does not escape those
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
    """Removes the half-written files of a killed process. An object store never has any."""
    if not isinstance(folder, Path) and folder.protocol in storage.OBJECT_STORES:
        return
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)
