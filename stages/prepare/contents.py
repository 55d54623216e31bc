"""Hashes the bytes of each recording, so that a replaced recording is noticed even if its length is the same.

The hash is stored on this machine with the file's size and times: an unchanged recording is not read again.
"""

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from cache import files, storage
from cache.errors import PipelineError
from cache.storage import AnyPath, RemotePath
from stages.prepare.items import Item

# A file system's clock may tick this slowly: a file that is newer may change again without a change of its time.
TICK_NS = 2_000_000_000
Stamp = list[int | str]
Notes = dict[str, tuple[Stamp, str]]  # path -> stamp of the file when it was hashed, and the hash


def contents_sha256(items: list[Item], out: AnyPath, pool: ThreadPoolExecutor) -> list[str | None]:
    """Returns for each item the hash of its recording's bytes; in a store its version; None where it cannot be read.

    out: the folder that is made from the items; it names the file of stored hashes.
    """
    path = notes_file(out)
    notes, stored = _read_notes(path), _stored_versions(items)
    hashed: Notes = {}

    def content(item: Item) -> str | None:
        if isinstance(item.audio, RemotePath):
            return stored.get(item.audio)
        return _content(item, notes, hashed)

    contents = list(pool.map(content, items))
    if hashed != notes:
        with suppress(OSError):  # without stored hashes every recording is read each time
            files.write_jsonl(
                path, [{"place": name, "as": stamp, "sha256": sha} for name, (stamp, sha) in hashed.items()]
            )
    return contents


def combined_sha256(contents: list[str | None]) -> str:
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def notes_file(out: AnyPath) -> Path:
    """Returns the file of stored hashes: beside `out`, or in this machine's cache where `out` is in a store."""
    if isinstance(out, Path):
        return out.resolve().with_name(f".{out.resolve().name}.recordings")
    return files.download_folder() / "recordings" / hashlib.sha256(str(out).encode()).hexdigest()[:32]


def _content(item: Item, notes: Notes, hashed: Notes) -> str | None:
    """Returns an item's hash. Also puts it into `hashed` if a later run can find out whether the file has changed."""
    name = str(item.audio.absolute()) if isinstance(item.audio, Path) else item.source
    try:
        stamp = _stamp(item)
        known, sha256 = notes.get(name, (None, ""))
        if known is None or known != stamp:
            sha256 = _hash(item)
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None
    if stamp and not _is_fresh(stamp):
        hashed[name] = (stamp, sha256)
    return sha256


def _stamp(item: Item) -> Stamp:
    """Returns values that change with the recording, [] where there are none."""
    if isinstance(item.audio, Path):
        found = item.audio.stat()
        return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]  # ctime, too: a copy may keep its original's mtime
    return [item.version] if item.version else []


def _is_fresh(stamp: Stamp) -> bool:
    return any(isinstance(time_ns, int) and time.time_ns() - time_ns < TICK_NS for time_ns in stamp[1:])


def _hash(item: Item) -> str:
    if isinstance(item.audio, Path):
        return files.sha256_file(item.audio)
    assert not isinstance(item.audio, RemotePath)
    return hashlib.sha256(item.audio()).hexdigest()


def _stored_versions(items: list[Item]) -> dict[RemotePath, str]:
    """Returns the versions of recordings in stores, by one listing per folder: one request per recording would take hours."""
    folders = {item.audio.parent for item in items if isinstance(item.audio, RemotePath)}
    return {folder / name: version for folder in folders for name, version in storage.versions(folder).items()}


def _read_notes(path: Path) -> Notes:
    try:
        return {row["place"]: (row["as"], row["sha256"]) for row in files.read_jsonl(path)}
    except (PipelineError, OSError, TypeError, KeyError):  # missing or not ours: every recording is read
        return {}
