"""A folder of shards. The shard is the unit of work: whole or not there, recorded once it is, never done twice.

While a folder is being written `progress.json` lists the finished shards; `manifest.json` is written last and replaces it.
"""

import hashlib
from pathlib import Path
from typing import Any

from cache import files, parquet, webdataset
from cache.errors import PipelineError
from cache.records import FIELDS
from cache.settings import plain, superseded

FORMAT_VERSION = 1
MANIFEST, PROGRESS = "manifest.json", "progress.json"
MADE_BY = {"utterances": "pipeline prepare", "teacher": "pipeline teacher-cache"}
FORMATS = {"parquet": parquet, "webdataset": webdataset}


class ShardWriter:
    """Writes the shards of one folder; interrupted and made again with the same settings, it knows what is done.

    settings: whatever the shards' content depends on (JSON values). Where the folder holds shards made with other
    settings PipelineError names the fields that differ; with `restart` they are removed and the work begins again.
    """

    def __init__(
        self, folder: Path, kind: str, settings: dict[str, Any], format: str = "parquet", restart: bool = False
    ):
        if format not in FORMATS:
            raise PipelineError(f"format '{format}': expected one of {', '.join(FORMATS)}")
        self.folder, self.kind, self.format = folder, kind, format
        self.settings = plain(settings)
        self.shards: dict[int, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.complete = (folder / MANIFEST).exists() and not self._superseded(MANIFEST, restart)
        if not self.complete and (folder / PROGRESS).exists() and not self._superseded(PROGRESS, restart):
            self._resume()
        if self.complete:
            (folder / PROGRESS).unlink(missing_ok=True)  # left by a kill between the two
        files.remove_temporaries(folder)

    def _superseded(self, name: str, restart: bool) -> bool:
        found = read_header(self.folder / name)
        wanted = {"format_version": FORMAT_VERSION, "kind": self.kind, "format": self.format}
        own = {field: found.get(field) for field in wanted}
        return superseded(self.folder, {**own, **found["settings"]}, {**wanted, **self.settings}, restart)

    def _resume(self) -> None:
        for entry in files.read_json(self.folder / PROGRESS)["shards"]:
            path = self.folder / entry["name"]
            if path.exists() and path.stat().st_size == entry["bytes"]:
                self.shards[entry["index"]] = entry

    def write(self, index: int, records: list[dict], **facts: Any) -> None:
        """Writes shard `index` and records it, with `facts` beside its row count, size and hash."""
        codec = FORMATS[self.format]
        path = self.folder / f"shard-{index:05d}{codec.SUFFIX}"
        with files.atomic_path(path) as temporary:
            codec.write(temporary, FIELDS[self.kind], records)
            size, digest = temporary.stat().st_size, files.sha256_file(temporary)
        entry = {"index": index, "name": path.name, "rows": len(records), "bytes": size, "sha256": digest, **facts}
        self.shards[index] = entry
        files.write_json(self.folder / PROGRESS, self._header())

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Writes the manifest, with `facts` beside the shard list, and returns it."""
        manifest = {**self._header(), "rows": sum(entry["rows"] for entry in self.shards.values()), **facts}
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
            "settings": self.settings,
            "shards": [self.shards[index] for index in sorted(self.shards)],
        }


def read_header(path: Path) -> dict[str, Any]:
    """A manifest, or the progress of an unfinished folder. Raises PipelineError where it is another program's file."""
    header = files.read_json(path)
    good = isinstance(header, dict) and isinstance(header.get("settings"), dict)
    if not good or not isinstance(header.get("shards"), list):
        raise PipelineError(f"{path}: not written by this program: expected settings and shards; use another folder")
    return header


class ShardReader:
    """Reads a finished folder. Raises PipelineError where there is none, or where it is damaged or of another kind."""

    def __init__(self, folder: Path, kind: str):
        if not (folder / MANIFEST).exists():
            unfinished = (folder / PROGRESS).exists()
            state = "is unfinished" if unfinished else f"holds no {MANIFEST}"
            raise PipelineError(f"{folder} {state}: expected finished {kind} shards, which `{MADE_BY[kind]}` makes")
        self.folder, self.kind = folder, kind
        self.manifest = read_header(folder / MANIFEST)
        for field, wanted in {"format_version": FORMAT_VERSION, "kind": kind, "fields": FIELDS[kind]}.items():
            if self.manifest.get(field) != wanted:
                raise PipelineError(
                    f"{folder / MANIFEST}: {field} is {self.manifest.get(field)!r}, expected {wanted!r}"
                )
        self.settings = self.manifest["settings"]
        self.shards = self.manifest["shards"]
        for entry in self.shards:
            self._check_size(entry)

    def _check_size(self, entry: dict[str, Any]) -> None:
        path = self.folder / entry["name"]
        found = path.stat().st_size if path.exists() else None
        if found != entry["bytes"]:
            what = "missing" if found is None else f"{found} bytes"
            raise PipelineError(f"{path} is {what}, its manifest says {entry['bytes']} bytes: the shards are damaged")

    @property
    def rows(self) -> list[int]:
        """Row count of each shard."""
        return [entry["rows"] for entry in self.shards]

    def read(self, index: int, only: tuple[str, ...] = ()) -> list[dict]:
        """The records of the shard at position `index`, in order; with `only`, just those of their fields."""
        entry = self.shards[index]
        fields = {name: kind for name, kind in FIELDS[self.kind].items() if not only or name in only}
        records = FORMATS[self.manifest["format"]].read(self.folder / entry["name"], fields)
        if len(records) != entry["rows"]:
            raise PipelineError(
                f"{self.folder / entry['name']} holds {len(records)} records, its manifest says {entry['rows']}"
            )
        return records

    def fingerprint(self) -> str:
        """Changes whenever a record changes: a hash over the shards' hashes."""
        text = "".join(f"{entry['name']} {entry['rows']} {entry['sha256']}\n" for entry in self.shards)
        return hashlib.sha256(text.encode()).hexdigest()
