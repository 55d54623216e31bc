"""Finds all faults of a folder of shards: in its files, its manifest, its records, and against the utterances of a teacher."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from cache import files, storage
from cache.distributions import bounded, check_distributions, mass_faults
from cache.errors import PipelineError
from cache.manifest import manifest_sha256
from cache.progress import Progress, silent
from cache.records import FIELDS, TARGET_COUNTS, TEACHER, TRANSCRIPT, content_sha256
from cache.shards import LEFT_OUT, MANIFEST, NOTICED, PROGRESS, TAIL, ShardReader, open_shards
from cache.storage import AnyPath

_LEFTOVER = re.compile(rf"{re.escape(files.TEMPORARY)}.*|part-\d+\.npy|{PROGRESS}")
_SHARD = re.compile(r"shard-.*\.(parquet|tar)")
Check = Callable[[dict], list[str]]


def faults(
    folder: AnyPath,
    utterances: ShardReader | None = None,
    check_utterance: Check = lambda record: [],
    progress: Progress[str] = silent,
) -> Iterator[str]:
    """Yields one line for each fault: the file, what was found, what was expected. Reads every byte, one shard at a time.

    utterances: the shards that a teacher's side-car shards belong to. check_utterance: lists the faults of a record's audio.
    progress: called with records done, records in all, and a note.
    """
    try:
        reader = open_shards(folder, check_sizes=False)
    except PipelineError as error:
        yield str(error)
        return
    yield from _stray_files(reader)
    yield from _manifest_faults(reader)
    if reader.kind == "teacher":
        yield from _teacher_faults(reader, utterances)
    checks = _Checks(reader, utterances, check_utterance)
    done, total = 0, sum(reader.rows)
    progress(done, total, "")
    for index, rows in enumerate(reader.rows):
        yield from checks.shard(index)
        done += rows
        progress(done, total, "")


def _stray_files(reader: ShardReader) -> Iterator[str]:
    listed = {entry["name"] for entry in reader.shards}
    for path in sorted((reader.folder / name for name in storage.sizes(reader.folder)), key=str):
        if _LEFTOVER.fullmatch(path.name):
            yield f"{path}: left over from an interrupted run, expected only finished files"
        elif _SHARD.fullmatch(path.name) and path.name not in listed:
            yield f"{path}: a shard that {MANIFEST} does not list, expected {len(listed)} shards"


def _manifest_faults(reader: ShardReader) -> Iterator[str]:
    """Compares the manifest with itself and with the lists of what was left out and what was noticed."""
    manifest, path = reader.manifest, reader.folder / MANIFEST
    if manifest.get("sha256") != manifest_sha256(manifest):
        yield (
            f"{path}: it was changed after it was written: its own sha256 is {_short(manifest.get('sha256'))}, expected "
            + (_short(manifest_sha256(manifest)))
        )
    for name in ("seconds", "tokens", "word_errors", "words", *TARGET_COUNTS.values()):
        if name in manifest and all(name in entry for entry in reader.shards):
            yield from _differing(path, name, manifest[name], sum(entry[name] for entry in reader.shards))
    yield from _list_faults(reader, LEFT_OUT, "left_out")
    if "noticed" in manifest or (reader.folder / NOTICED).exists():
        yield from _list_faults(reader, NOTICED, "noticed")


def _list_faults(reader: ShardReader, name: str, counts: str) -> Iterator[str]:
    """Compares a list of utterances with reasons with the manifest's counts."""
    path = reader.folder / name
    try:
        rows = files.read_jsonl(path)
        reasons = dict(Counter(row["reason"] for row in rows))
    except PipelineError as error:
        yield str(error)
    except (TypeError, KeyError):
        yield f"{path}: expected lines with id and reason"
    else:
        if reasons != reader.manifest.get(counts):
            yield f"{path}: lists {reasons}, {MANIFEST} says {reader.manifest.get(counts)}"
        listed = [row for entry in reader.shards for row in entry.get(counts, [])]
        if reader.kind == "teacher" and rows != listed:
            yield f"{path}: not the {len(listed)} utterances that {MANIFEST} lists as left out"


def _differing(where: AnyPath, name: str, found: Any, expected: Any) -> Iterator[str]:
    numbers = isinstance(found, int | float) and math.isclose(found, expected, rel_tol=1e-9)
    if not numbers:
        yield f"{where}: {name} is {found!r}, expected {expected!r}"


def _teacher_faults(reader: ShardReader, utterances: ShardReader | None) -> Iterator[str]:
    """Checks what all shards of a teacher share: the mean tail and the utterances."""
    tail = reader.manifest.get("tail")
    if not isinstance(tail, dict):
        yield f"{reader.folder / MANIFEST}: says nothing of {TAIL}, expected its bytes and sha256"
    yield from (fault for entry in reader.data_files if entry["name"] == TAIL for fault in _file_faults(reader, entry))
    try:
        tail_V = reader.tail()
        mass = float(tail_V.sum(dtype=np.float64))
        if not (tail_V >= 0).all() or not (math.isclose(mass, 1, abs_tol=1e-3) or mass == 0):
            yield f"{reader.folder / TAIL}: sums to {mass:.4f}, its least value {tail_V.min():.4g}, expected 1 and 0"
    except PipelineError as error:
        yield str(error)
    if utterances is not None:
        found, expected = reader.provenance.get("utterances"), utterances.fingerprint()
        if found != expected:
            yield (
                f"{reader.folder / MANIFEST}: made from utterances {_short(found)}, expected {_short(expected)}, the "
                f"fingerprint of {utterances.folder}"
            )
        if reader.rows != utterances.rows:
            yield f"{reader.folder / MANIFEST}: shards of {reader.rows} records, expected {utterances.rows}"


def _file_faults(reader: ShardReader, entry: dict[str, Any]) -> list[str]:
    """Compares a file with its entry in the manifest. Returns at most one line."""
    path = reader.folder / entry["name"]
    if not path.exists():
        return [f"{path}: missing, expected {entry.get('bytes')} bytes"]
    size, digest = path.stat().st_size, files.sha256_file(path)
    if digest == entry.get("sha256") and size == entry.get("bytes"):
        return []
    others = [other["name"] for other in reader.data_files if other.get("sha256") == digest]
    if others:
        return [f"{path}: holds what was written as {others[0]}, expected its own records"]
    if size != entry.get("bytes"):
        return [f"{path}: {size} bytes, expected {entry.get('bytes')}"]
    return [f"{path}: sha256 {_short(digest)}, expected {_short(entry.get('sha256'))}"]


@dataclass
class _Checks:
    """Checks shard by shard and record by record."""

    reader: ShardReader
    utterances: ShardReader | None
    check_utterance: Check
    ids: dict[str, str] = field(default_factory=dict)  # id -> the shard it was found in

    def shard(self, index: int) -> Iterator[str]:
        reader, entry = self.reader, self.reader.shards[index]
        path = reader.folder / entry["name"]
        harmed = _file_faults(reader, entry)
        yield from harmed
        if not path.exists():
            return
        try:
            # `only` with all fields: skips the check that raises at the first bad distribution
            records = reader.read(index, only=tuple(FIELDS[reader.kind]))
        except PipelineError as error:
            yield str(error)
            return
        content = content_sha256(records, FIELDS[reader.kind])
        if not harmed and content != entry["content"]:
            yield f"{path}: other records than were written: content {_short(content)}, expected " + (
                _short(entry["content"])
            )
        yield from self._totals(path, entry, records)
        for record in records:
            yield from self._record(path, record)
        if reader.kind == "teacher" and self.utterances is not None and index < len(self.utterances.shards):
            yield from self._order(index, path, [record["id"] for record in records], self.utterances)

    def _totals(self, path: AnyPath, entry: dict[str, Any], records: list[dict]) -> Iterator[str]:
        if self.reader.kind == "utterances":
            totals: dict[str, Any] = {"seconds": sum(record["seconds"] for record in records)}
        else:
            totals = {"tokens": sum(len(record["targets"]) for record in records)}
            totals |= {name: sum(record[name] or 0 for record in records) for name in ("word_errors", "words")}
            sources = Counter(record["target_source"] for record in records)
            totals |= {name: sources[source] for source, name in TARGET_COUNTS.items()}
        for name in totals.keys() & entry.keys():
            yield from _differing(path, name, totals[name], entry[name])
        if self.reader.kind == "teacher":
            empty = {record["id"] for record in records if not len(record["targets"])}
            listed = {row["id"] for row in entry.get("left_out", [])}
            if empty != listed:
                yield f"{path}: {len(empty)} records without targets, {MANIFEST} lists {len(listed)} as left out"

    def _record(self, path: AnyPath, record: dict) -> Iterator[str]:
        where = f"{path}, {record['id']}"
        if first := self.ids.get(record["id"]):
            yield f"{where}: the id is there twice, first in {first}, expected it once"
        self.ids.setdefault(record["id"], path.name)
        if self.reader.kind == "utterances":
            yield from (f"{where}: {fault}" for fault in self.check_utterance(record))
        else:
            yield from _distribution_faults(record, self.reader, where)

    def _order(self, index: int, path: AnyPath, found: list[str], utterances: ShardReader) -> Iterator[str]:
        source = utterances.folder / utterances.shards[index]["name"]
        try:
            expected = [row["id"] for row in utterances.read(index, only=("id",))]
        except PipelineError as error:
            yield str(error)
            return
        if found != expected:
            pairs = list(zip_longest(found, expected))
            row = next(number for number, (one, other) in enumerate(pairs) if one != other)
            order = ", the same ids in another order" if sorted(found) == sorted(expected) else ""
            yield f"{path}: record {row} is {pairs[row][0]!r}, expected {pairs[row][1]!r} as in {source}{order}"


def _distribution_faults(record: dict, reader: ShardReader, where: str) -> Iterator[str]:
    try:
        check_distributions(record, reader.provenance, where)
        bits = bounded(reader.provenance, "bits", 1, 8, where)
        top_k = bounded(reader.provenance, "top_k", 1, 1 << 16, where)
    except PipelineError as error:
        yield str(error)
        return
    yield from (f"{where}: {fault}" for fault in mass_faults(record, bits, top_k))
    yield from _source_faults(record, reader.provenance.get("targets"), where)
    mean = record["mean_log_prob"]
    if (mean is None) != (not len(record["targets"])) or (mean is not None and not -math.inf < mean <= 1e-3):
        yield f"{where}: mean_log_prob is {mean} for {len(record['targets'])} targets, expected a number up to 0"


def _source_faults(record: dict, targets: Any, where: str) -> Iterator[str]:
    """Compares what the record's targets are with the setting `targets` of its cache."""
    sources = {"reference": (TRANSCRIPT,), "pseudo": (TEACHER,)}.get(targets, (TRANSCRIPT, TEACHER))
    expected = sources if len(record["targets"]) else (None,)
    if record["target_source"] not in expected:
        yield (
            f"{where}: target_source is {record['target_source']!r} for {len(record['targets'])} targets, expected "
            f"{' or '.join(map(repr, expected))} in a cache of {targets} targets"
        )


def _short(digest: Any) -> str:
    return str(digest)[:12]
