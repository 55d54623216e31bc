"""What could not be read is tried again: ffmpeg, a right or a mount may be there now, while the corpus is as it was."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cache import files
from cache.errors import PipelineError
from cache.resume import Rerun
from cache.shards import LEFT_OUT, ShardWriter
from stages.prepare.items import Item
from stages.prepare.utterances import Listed, Made

UNREAD = ("missing", "unreadable")  # reasons for leaving out that may pass
IDS_SHOWN = 5
Make = Callable[[Item], Made | Listed]


def discard_if_readable_now(
    splits: list[tuple[ShardWriter, list[Item], Make]], rerun: Rerun, pool: ThreadPoolExecutor
) -> None:
    """Empties the folders of all splits where one of them left out what can be read now.

    Of all, since one more recording may make another a duplicate, in a later split too.
    Raises PipelineError naming the recordings, where `rerun` is `refuse`.
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
    """The ids of what the work that is there left out because it could not be read."""
    if writer.complete:
        path = writer.folder / LEFT_OUT
        rows = files.read_jsonl(path) if path.exists() else []
    else:
        rows = [row for entry in writer.shards.values() for row in entry["left_out"]]
    return {row["id"] for row in rows if row.get("reason") in UNREAD}
