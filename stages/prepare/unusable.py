"""Writes the message for a split without usable recordings: the first reason in full, and why a file may be missing."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from cache.storage import AnyPath
from stages.prepare.items import Item

WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def nothing_usable(where: str, items: list[Item], left_out: list[dict[str, Any]], list_file: AnyPath) -> str:
    """Returns the message. left_out: the rows of `list_file`."""
    if not left_out:
        return f"{where}: nothing usable among {len(items)} recordings (it lists no recordings)"
    counts = dict(sorted(Counter(row["reason"] for row in left_out).items()))
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    first = left_out[0]
    item = next(item for item in items if item.id == first["id"])
    cause = f"; {missing_cause(item.audio, item.source)}" if first["reason"] == "missing" else ""
    return (
        f"{where}: nothing usable among {len(items)} recordings ({reasons}); the first: {first['detail']}{cause}; "
        f"all are listed in {list_file}"
    )


def missing_cause(audio: object, source: str) -> str:
    """Returns the likely cause of a missing file. source: the path as the corpus has it."""
    if WINDOWS.match(source):
        return "that is a path of Windows: list the recordings by relative paths"
    if not isinstance(audio, Path):
        return "correct its address in the corpus"
    if audio.is_symlink():
        return "that is a link to a file that is not there"
    folders = [folder for folder in reversed(audio.parents) if not folder.is_dir()]
    if folders:
        return f"there is no folder {folders[0]} (a relative path is seen from the corpus' own folder)"
    example = next((path.name for path in sorted(audio.parent.iterdir()) if path.is_file()), None)
    return f"{audio.parent} holds {example} and the like" if example else f"{audio.parent} holds no file"
