"""What the teacher's shards hold: how much, from which targets, and how much of the teacher's distribution was kept."""

from cache.description import described
from cache.info import statistics
from cache.progress import Progress
from cache.storage import AnyPath
from stages.report.sources import shards_in
from stages.report.tables import Table

TOLD = {  # what the report tells of the lines of `pipeline cache info`, and what each is called here
    "teacher": "Teacher",
    "utterances": "Utterances",
    "targets": "Targets",
    "tokens": "Target tokens",
    "bytes": "Bytes",
    "kept per token": "Tokens kept at a position",
    "mass kept": "Probability kept at a position",
    "entropy": "Entropy of the teacher",
    "targets' log-prob": "Log-probability of the targets",
    "teacher's own WER": "The teacher's own WER on the training split",
    "left out": "Left out",
}


def cache_table(folder: AnyPath, progress: Progress[str]) -> Table | None:
    """Reads all shards in `folder`. None: there are none."""
    reader = shards_in(folder, "teacher")
    if reader is None:
        return None
    lines = described(statistics(reader, progress))
    rows = [[TOLD[name], value] for name, value in lines if name in TOLD]
    return Table(["The teacher's cache", "What it holds"], rows, text=2)
