"""Tries again to read what could not be read: ffmpeg, a permission or a mount may be there now, with the same corpus."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cache import files
from cache.errors import PipelineError
from cache.resume import Rerun
from cache.shards import LEFT_OUT, ShardWriter
from stages.prepare.items import Item
from stages.prepare.utterances import Listed, Made

UNREAD = ("missing", "unreadable")  # reasons for leaving out that may be temporary
IDS_SHOWN = 5
Make = Callable[[Item], Made | Listed]


def discard_if_readable_now(
    splits: list[tuple[ShardWriter, list[Item], Make]], rerun: Rerun, pool: ThreadPoolExecutor
) -> None:
    """Discards all splits if one of them left out a recording that can be read now.

    It discards all, since the recording may make another one a duplicate, also in a later split.
    Raises PipelineError naming the recordings, if `rerun` is `refuse`.
    """
    readable = []
    for writer, items, make in splits:
        unread = _unread(writer)
        tried = [item for item in items if item.id in unread]
        for item, made in zip(tried, pool.map(make, tried), strict=True):
            if not (isinstance(made, Listed) and made.reason in UNREAD):
                readable.append(item.id)
    if readable and rerun == "refuse":
        more = f" and {len(readable) - IDS_SHOWN} more" if len(readable) > IDS_SHOWN else ""
        raise PipelineError(
            f"recordings that could not be read before can be read now ({', '.join(readable[:IDS_SHOWN])}{more}): "
            "give --update or --restart to make the shards again, or another folder"
        )
    for writer, _, _ in splits if readable else []:
        writer.discard()


def _unread(writer: ShardWriter) -> set[str]:
    """Returns the ids of recordings that earlier work left out because it could not read them."""
    if writer.complete:
        path = writer.folder / LEFT_OUT
        rows = files.read_jsonl(path) if path.exists() else []
    else:
        rows = [row for entry in writer.shards.values() for row in entry["left_out"]]
    return {row["id"] for row in rows if row.get("reason") in UNREAD}
