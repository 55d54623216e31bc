"""Writes and reads a folder of shards. The shard is the unit of work: it is whole or absent, and never made twice.

While a folder is being written `progress.json` lists the finished shards; `manifest.json` is written last and replaces it.
The two hold the provenance, all that the shards' content depends on, under the name `settings`.
"""

import hashlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from cache import files, parquet, storage, webdataset
from cache.distributions import bounded, check_distributions
from cache.errors import PipelineError
from cache.formats import FORMATS
from cache.manifest import check_depth, check_entry, manifest_sha256
from cache.npy import read_npy
from cache.records import FIELDS, check_seconds, check_size, content_sha256
from cache.resume import Rerun, discard_if_changed, plain, remove_contents
from cache.storage import AnyPath, StorageError

FORMAT_VERSION = 2
MANIFEST, PROGRESS, TAIL = "manifest.json", "progress.json", "tail.npy"
LEFT_OUT, NOTICED = "left_out.jsonl", "noticed.jsonl"
MAX_MANIFEST_BYTES = 1 << 28
MADE_BY = {"utterances": "pipeline prepare", "teacher": "pipeline teacher-cache"}
DRAWN = ("test", "validation")  # splits that a corpus may lack
CODECS: dict[str, ModuleType] = {"parquet": parquet, "webdataset": webdataset}  # one for each of FORMATS


class ShardWriter:
    """Writes the shards of one folder. Opening the folder again with the same settings resumes: finished shards are kept.

    provenance: all that the shards' content depends on (JSON values). rerun: what to do with earlier shards.
    Raises PipelineError naming the fields that differ, if `rerun` is `refuse` and earlier shards have another provenance.
    """

    def __init__(
        self, folder: AnyPath, kind: str, provenance: dict[str, Any], format: str = "parquet", rerun: Rerun = "refuse"
    ):
        if format not in FORMATS:
            raise PipelineError(f"format '{format}': expected one of {', '.join(FORMATS)}")
        self.folder, self.kind, self.format = folder, kind, format
        self.provenance = plain(provenance)
        self.shards: dict[int, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.complete = (folder / MANIFEST).exists() and not self._discard_if_changed(MANIFEST, rerun)
        if not self.complete and (folder / PROGRESS).exists() and not self._discard_if_changed(PROGRESS, rerun):
            self._resume()
        if self.complete:
            (folder / PROGRESS).unlink(missing_ok=True)  # left by a kill between writing the one and removing the other
        files.remove_temporaries(folder)

    def _discard_if_changed(self, name: str, rerun: Rerun) -> bool:
        found = read_header(self.folder / name)
        wanted = {"format_version": FORMAT_VERSION, "kind": self.kind, "format": self.format}
        own = {field: found.get(field) for field in wanted}
        return discard_if_changed(self.folder, {**own, **found["settings"]}, {**wanted, **self.provenance}, rerun)

    def discard(self) -> None:
        """Removes all that the folder holds, so that the work begins again."""
        remove_contents(self.folder)
        self.shards, self.complete = {}, False

    def _resume(self) -> None:
        sizes = storage.sizes(self.folder)
        for entry in files.read_json(self.folder / PROGRESS)["shards"]:
            if sizes.get(entry["name"]) == entry["bytes"]:
                self.shards[entry["index"]] = entry

    def write(self, index: int, records: list[dict], **facts: Any) -> None:
        """Writes shard `index` and records it, with `facts` in addition to its row count, size and hash."""
        self.record(write_shard(self.folder, self.kind, self.format, index, records, **facts))

    def record(self, entry: dict[str, Any]) -> None:
        """Records a shard that `write_shard` has written, in this process or another."""
        self.shards[entry["index"]] = entry
        files.write_json(self.folder / PROGRESS, self._header())

    def read(self, index: int) -> list[dict]:
        """Returns the records of a shard that has been recorded."""
        return read_shard(self.folder, self.kind, self.format, self.shards[index], self.provenance)

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Writes the manifest, with `facts` in addition to the shard list, and returns it."""
        manifest = {**self._header(), "rows": sum(entry["rows"] for entry in self.shards.values()), **facts}
        manifest["sha256"] = manifest_sha256(manifest)
        files.write_json(self.folder / MANIFEST, manifest)
        (self.folder / PROGRESS).unlink(missing_ok=True)
        self.complete = True
        return manifest

    def _header(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "format": self.format,
            "fields": FIELDS[self.kind],
            "settings": self.provenance,
            "shards": [self.shards[index] for index in sorted(self.shards)],
        }


def write_shard(
    folder: AnyPath, kind: str, format: str, index: int, records: list[dict], **facts: Any
) -> dict[str, Any]:
    """Writes one shard, whole or not at all, and returns its entry for the manifest, which includes `facts`."""
    codec = CODECS[format]
    path = folder / f"shard-{index:05d}{codec.SUFFIX}"
    check_size(records, FIELDS[kind], str(path))
    content = content_sha256(records, FIELDS[kind])
    with files.atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            codec.write(file, FIELDS[kind], records)
        size, digest = temporary.stat().st_size, files.sha256_file(temporary)
    own = {"index": index, "name": path.name, "rows": len(records), "bytes": size, "sha256": digest, "content": content}
    return {**own, **facts}


def read_shard(
    folder: AnyPath,
    kind: str,
    format: str,
    entry: dict[str, Any],
    provenance: dict[str, Any],
    only: tuple[str, ...] = (),
) -> list[dict]:
    """Returns a shard's records in order; with `only`, these fields only. Raises PipelineError where the shard is damaged."""
    path = folder / entry["name"]
    fields = {name: type_ for name, type_ in FIELDS[kind].items() if not only or name in only}
    try:
        with path.open("rb") as file:
            records = CODECS[format].read(file, fields, str(path))
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror or error}): the shards are damaged") from None
    if len(records) != entry["rows"]:
        raise PipelineError(f"{path} holds {len(records)} records, its manifest says {entry['rows']}")
    for record in records:
        if "seconds" in record:
            check_seconds(record, f"{path}, {record.get('id', '')}")
        if kind == "teacher" and not only:
            check_distributions(record, provenance, f"{path}, {record['id']}")
    return records


def read_header(path: AnyPath) -> dict[str, Any]:
    """Returns a manifest, or the progress of an unfinished folder. Raises PipelineError if another program wrote the file."""
    if path.exists() and path.stat().st_size > MAX_MANIFEST_BYTES:
        raise PipelineError(f"{path}: {path.stat().st_size} bytes, expected at most {MAX_MANIFEST_BYTES}")
    header = files.read_json(path)
    good = isinstance(header, dict) and isinstance(header.get("settings"), dict)
    if not good or not isinstance(header.get("shards"), list):
        raise PipelineError(f"{path}: not written by this program: expected settings and shards; use another folder")
    check_depth(header, path)
    for entry in header["shards"]:
        check_entry(entry, path)
    return header


class ShardReader:
    """Reads a finished folder. Raises PipelineError where there is none, or it is damaged or of another kind.

    check_sizes: whether to require that every shard exists with the size that the manifest lists.
    """

    def __init__(self, folder: AnyPath, kind: str, check_sizes: bool = True):
        if not (folder / MANIFEST).exists():
            raise PipelineError(_not_there(folder, kind))
        self.folder, self.kind = folder, kind
        self.manifest = read_header(folder / MANIFEST)
        for field, wanted in {"format_version": FORMAT_VERSION, "kind": kind, "fields": FIELDS[kind]}.items():
            if self.manifest.get(field) != wanted:
                raise PipelineError(
                    f"{folder / MANIFEST}: {field} is {self.manifest.get(field)!r}, expected {wanted!r}"
                )
        self.provenance = self.manifest["settings"]
        self.shards = self.manifest["shards"]
        self.format = str(self.manifest.get("format"))
        if self.format not in FORMATS:
            raise PipelineError(f"{folder / MANIFEST}: format is {self.format!r}, expected {' or '.join(FORMATS)}")
        self._check_manifest()
        if check_sizes:
            sizes = storage.sizes(folder)
            for entry in self.data_files:
                self._check_size(entry, sizes.get(entry["name"]))

    def _check_manifest(self) -> None:
        """Raises PipelineError where the manifest contradicts itself."""
        path = self.folder / MANIFEST
        for name, least, most in (("bits", 4, 8), ("vocab_size", 1, 1 << 16)) if self.kind == "teacher" else ():
            bounded(self.provenance, name, least, most, str(path))
        for wanted, entry in enumerate(self.shards):
            if entry["index"] != wanted:
                raise PipelineError(f"{path}: shard {entry['index']} is listed where {wanted} is expected")
        if (found := self.manifest.get("rows")) != sum(self.rows):
            raise PipelineError(f"{path}: rows is {found!r}, its shards have {sum(self.rows)}")

    @property
    def data_files(self) -> list[dict[str, Any]]:
        """Lists name, bytes and sha256 of every file that holds data: the shards, and a teacher's mean tail."""
        tail = self.manifest.get("tail")
        return [*self.shards, *([{**tail, "name": TAIL}] if isinstance(tail, dict) else [])]

    def _check_size(self, entry: dict[str, Any], found: int | None) -> None:
        if found != entry.get("bytes"):
            path, what = self.folder / entry["name"], "missing" if found is None else f"{found} bytes"
            raise PipelineError(
                f"{path} is {what}, its manifest says {entry.get('bytes')} bytes: the shards are damaged"
            )

    def check_hashes(self) -> None:
        """Reads every file. Raises PipelineError at the first whose bytes are not those that were written."""
        for entry in self.data_files:
            path = self.folder / entry["name"]
            if (found := files.sha256_file(path)) != entry.get("sha256"):
                raise PipelineError(
                    f"{path} has sha256 {found}, its manifest says {entry.get('sha256')}: the shards are damaged, "
                    f"`pipeline cache verify {self.folder}` lists all that is wrong"
                )

    @property
    def rows(self) -> list[int]:
        """The number of records of each shard."""
        return [entry["rows"] for entry in self.shards]

    @property
    def corpus_utterances(self) -> int:
        """The number of utterances that the corpus has for the split: with those that were left out or not selected."""
        left_out, not_selected = self.manifest.get("left_out"), self.manifest.get("not_selected")
        counts = [*(left_out.values() if isinstance(left_out, dict) else ()), not_selected]
        return sum(self.rows) + sum(count for count in counts if type(count) is int)

    def records(self, only: tuple[str, ...] = ()) -> Iterator[dict]:
        """Yields the records of all shards, in order, a shard in memory at a time; with `only`, these fields only."""
        for index in range(len(self.shards)):
            yield from self.read(index, only)

    def read(self, index: int, only: tuple[str, ...] = ()) -> list[dict]:
        """Returns the records of the shard at position `index`, in order; with `only`, these fields only."""
        return read_shard(self.folder, self.kind, self.format, self.shards[index], self.provenance, only)

    def tail(self) -> np.ndarray:
        """Returns the teacher's mean distribution outside its kept tokens, float32 (vocab_size,); it sums to one.

        Raises PipelineError where the file is missing or of another shape or type.
        """
        path = self.folder / TAIL
        vocab_size = bounded(self.provenance, "vocab_size", 1, 1 << 16, str(self.folder / MANIFEST))
        try:
            with path.open("rb") as file:
                array = read_npy(file.read(8 << 16)).copy()
        except StorageError:
            raise
        except (OSError, ValueError) as error:
            raise PipelineError(f"{path}: not readable ({error}): the cache is damaged") from None
        if array.shape != (vocab_size,) or array.dtype != np.float32:
            raise PipelineError(f"{path}: {array.dtype} {array.shape}, expected float32 ({vocab_size},)")
        return array

    def fingerprint(self) -> str:
        """Returns a hash of the shards' contents. It changes whenever a record changes, and is the same in both formats."""
        text = "".join(f"{entry['index']} {entry['rows']} {entry['content']}\n" for entry in self.shards)
        return hashlib.sha256(text.encode()).hexdigest()


def _not_there(folder: AnyPath, kind: str) -> str:
    if (folder / PROGRESS).exists():
        return f"{folder} is unfinished: expected finished {kind} shards, which `{MADE_BY[kind]}` makes"
    # `pipeline prepare` makes training last: a split that is missing by then is not made.
    if kind == "utterances" and folder.name in DRAWN and (folder.parent / "train" / MANIFEST).exists():
        return (
            f"{folder} holds no {MANIFEST}: the corpus has no {folder.name} split, and `pipeline prepare` drew none from "
            f"training: give the corpus one, or more recordings, or a {folder.name}_fraction above 0"
        )
    return f"{folder} holds no {MANIFEST}: expected finished {kind} shards, which `{MADE_BY[kind]}` makes"


def open_shards(folder: AnyPath, check_sizes: bool = True) -> ShardReader:
    """Opens a finished folder of either kind. Raises PipelineError where there is none."""
    if not (folder / MANIFEST).exists():
        raise PipelineError(f"{folder} holds no {MANIFEST}: expected a finished folder of utterance or teacher shards")
    kind = str(read_header(folder / MANIFEST).get("kind"))
    if kind not in FIELDS:
        raise PipelineError(f"{folder / MANIFEST}: kind is {kind!r}, expected {' or '.join(FIELDS)}")
    return ShardReader(folder, kind, check_sizes)
