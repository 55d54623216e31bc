"""Checks a manifest before anything in it is used: anyone may have written it."""

import hashlib
import json
import re
from typing import Any

from cache.errors import PipelineError
from cache.records import TARGET_COUNTS
from cache.storage import AnyPath


def manifest_sha256(manifest: dict[str, Any]) -> str:
    """Returns the hash of all fields but `sha256` itself."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_depth(header: dict[str, Any], path: AnyPath, levels: int = 20) -> None:
    """Raises PipelineError at more than `levels` levels: values nested some hundred deep can be read, but not written."""
    parts: list[Any] = [header]
    for _ in range(levels):
        nested = [part.values() if isinstance(part, dict) else part for part in parts]
        parts = [value for values in nested for value in values if isinstance(value, dict | list)]
    if parts:
        raise PipelineError(f"{path}: nested more than {levels} levels deep: not written by this program")


def check_entry(entry: Any, path: AnyPath) -> None:
    """Raises PipelineError where a shard's entry lacks a field, or its name is another than that of its index.

    The check of the name also keeps a path from leading out of the folder.
    """
    found = entry if isinstance(entry, dict) else {}
    numbers = [found.get(name) for name in ("index", "rows", "bytes")]
    good = all(type(number) is int and number >= 0 for number in numbers)
    good = good and all(isinstance(found.get(name), str) for name in ("sha256", "content"))
    if not good or not re.fullmatch(rf"shard-{found['index']:05d}\.(parquet|tar)", str(found.get("name"))):
        raise PipelineError(
            f"{path}: a shard's entry is {str(entry)[:80]}, expected index, name, rows, bytes, sha256 and content"
        )
    _check_facts(found, path)


def _check_facts(entry: dict[str, Any], path: AnyPath) -> None:
    """Checks the types of the fields that stages add to an entry."""
    numbers = [entry.get(name, 0) for name in ("seconds", "tokens", "words", "word_errors", *TARGET_COUNTS.values())]
    lists = [entry.get(name, []) for name in ("left_out", "noticed")]
    batch_size = entry.get("batch_size", 1)
    good = all(isinstance(rows, list) for rows in lists) and all(
        isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("id", "reason", "detail"))
        for rows in lists
        for row in rows
    )
    good = good and type(batch_size) is int and batch_size >= 1
    if not good or not all(isinstance(number, int | float) for number in numbers):
        raise PipelineError(
            f"{path}: the entry of {entry['name']} has seconds, tokens, batch_size, left_out or noticed of a wrong type"
        )
