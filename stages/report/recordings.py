"""Copies recordings of a test split from its utterance shards, so that a reader of the report can listen."""

from dataclasses import dataclass, field
from typing import Any

from cache.files import write_bytes
from cache.shards import ShardReader
from cache.storage import AnyPath
from stages.report.comparison import Comparison
from stages.report.sources import shards_in

Facts = list[dict[str, Any]]


@dataclass(frozen=True)
class Recordings:
    """What the utterance shards of a test split add to its results."""

    speakers: dict[str, str] = field(default_factory=dict)  # by the utterance's id, where the corpus names them
    files: dict[str, str] = field(default_factory=dict)  # by the utterance's id, of those that were copied
    notes: list[str] = field(default_factory=list)


def copy_recordings(comparison: Comparison, utterances: AnyPath, out: AnyPath, minutes: float) -> Recordings:
    """Writes `out`/NUMBER.flac for the utterances whose systems differ most, up to `minutes` of audio.

    utterances: the folder of all utterance shards. The FLAC bytes are those of the shards.
    """
    folder = utterances / comparison.language / comparison.folder
    reader = shards_in(folder, "utterances")
    if reader is None:
        return Recordings(notes=[f"{folder} holds no shards: the recordings are left out."])
    references = {row["id"]: row["reference"] for line in comparison.lines for row in line.result.rows or []}
    shards = [reader.read(index, ("id", "text", "seconds", "speaker")) for index in range(len(reader.shards))]
    same = [row for rows in shards for row in rows if references.get(row["id"]) == row["text"]]
    chosen = _chosen(same, comparison, 60 * minutes)
    files = _copy(reader, shards, chosen, out)
    speakers = {row["id"]: row["speaker"] for row in same if row["speaker"]}
    return Recordings(speakers, files, _notes(len(references), len(same), len(files), minutes, folder))


def _chosen(facts: Facts, comparison: Comparison, seconds: float) -> set[str]:
    """Returns the ids of the utterances with the largest difference between systems, as many as fit into `seconds`."""
    apart, chosen = comparison.error_spread(), set()
    for row in sorted(facts, key=lambda row: (-apart.get(row["id"], 0), row["id"])):
        seconds -= row["seconds"]
        if seconds < 0:
            break
        chosen.add(row["id"])
    return chosen


def _copy(reader: ShardReader, shards: list[Facts], chosen: set[str], out: AnyPath) -> dict[str, str]:
    """Reads only the shards that hold a chosen utterance. Files are numbered: an id may be no name of a file."""
    files: dict[str, str] = {}
    for index, rows in enumerate(shards):
        if not any(row["id"] in chosen for row in rows):
            continue
        for record in reader.read(index, ("id", "audio")):
            if record["id"] in chosen:
                files[record["id"]] = f"{len(files):05d}.flac"
                write_bytes(out / files[record["id"]], record["audio"])
    return files


def _notes(scored: int, same: int, copied: int, minutes: float, folder: AnyPath) -> list[str]:
    notes = []
    if scored > same:
        notes.append(
            f"{scored - same:,} of {scored:,} utterances have no recording here: {folder} lacks them, or has another "
            "transcript than was scored."
        )
    if same > copied:
        notes.append(
            f"{same - copied:,} of {scored:,} recordings are left out, where systems differ least: "
            f"report.audio_minutes is {minutes:g}."
        )
    return notes
