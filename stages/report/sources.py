"""The folders that a report is made from."""

from dataclasses import dataclass

from cache.shards import MANIFEST, ShardReader
from cache.storage import AnyPath


@dataclass(frozen=True)
class Sources:
    metrics: AnyPath
    models: AnyPath
    utterances: AnyPath
    teacher: AnyPath


def shards_in(folder: AnyPath, kind: str) -> ShardReader | None:
    """Opens finished shards. None: there are none, which a report can do without. Raises PipelineError for damaged ones."""
    return ShardReader(folder, kind) if (folder / MANIFEST).exists() else None
