"""Writes side-car shards: one for each utterance shard, with the same ids in the same order and the teacher's distributions."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from cache.files import atomic_path, sha256_file, write_jsonl
from cache.locks import sole_writer
from cache.npy import npy_bytes
from cache.progress import Progress, silent
from cache.records import TARGET_COUNTS
from cache.resume import Rerun
from cache.shards import LEFT_OUT, TAIL, ShardReader, ShardWriter, write_shard
from cache.storage import AnyPath
from stages.teacher_cache.crossfit import CrossFit
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.shard import ScoredShard

# Raise this whenever the same utterances, teacher and settings give other records: work of another version is made again.
TEACHER_CACHE_VERSION = 2
# Shapes: V vocabulary
PART = "part-{:05d}.npy"  # a shard's share of the tail, kept until all shards are finished


def cache_teacher(
    job: ScoringJob | CrossFit,
    utterances: AnyPath,
    out: AnyPath,
    rerun: Rerun = "refuse",
    progress: Progress[float] = silent,
) -> dict[str, Any]:
    """Writes the teacher shards of one split to `out` and returns their manifest; resumes where it was interrupted.

    progress: called with utterances done, utterances in all, and seconds of audio done.
    Raises PipelineError where `rerun` is `refuse` and `out` holds shards with another provenance.
    """
    job = CrossFit((job,)) if isinstance(job, ScoringJob) else job
    reader = ShardReader(utterances, "utterances")
    with sole_writer(out):
        writer = open_writer(out, job.provenance(reader), job.settings.format, rerun)
        if writer.complete:
            return finished_manifest(writer)
        job.place()
        counter = ProgressCounter(progress, reader, writer)
        waiting = [index for index in range(len(reader.shards)) if index not in writer.shards]
        shards: Iterator[tuple[int, list[dict]]] = ((index, reader.read(index)) for index in waiting)
        for shard in job.scorer(reader).run(shards, counter.add):
            writer.record(write_scored(out, writer.format, shard, reader))
        return finish(writer)


def open_writer(out: AnyPath, provenance: dict[str, Any], format: str, rerun: Rerun) -> ShardWriter:
    """provenance: all that the records depend on, except the version of this stage."""
    return ShardWriter(out, "teacher", {"teacher_cache_version": TEACHER_CACHE_VERSION, **provenance}, format, rerun)


class ProgressCounter:
    """Adds up finished work and reports the sums to the progress callback."""

    def __init__(self, progress: Progress[float], utterances: ShardReader, writer: ShardWriter):
        self.progress, self.total = progress, sum(utterances.rows)
        self.done, self.seconds = 0, 0.0
        self.add(
            sum(utterances.rows[index] for index in writer.shards),
            sum(utterances.shards[index]["seconds"] for index in writer.shards),
        )

    def add(self, utterances: int, seconds: float) -> None:
        """utterances, seconds of audio: done since the last call; negative where the work of a dead worker is lost."""
        self.done, self.seconds = self.done + utterances, self.seconds + seconds
        self.progress(self.done, self.total, self.seconds)


def write_scored(folder: AnyPath, format: str, shard: ScoredShard, utterances: ShardReader) -> dict[str, Any]:
    """Writes a shard and its share of the tail, and returns its entry for the manifest."""
    write_part(folder, shard)
    return write_shard(folder, "teacher", format, shard.index, shard.records, **shard_facts(shard, utterances))


def shard_facts(shard: ScoredShard, utterances: ShardReader) -> dict[str, Any]:
    """Returns what the manifest says of a shard in addition to its rows, size and hash."""
    sources = Counter(record["target_source"] for record in shard.records)
    transcribed = [record for record in shard.records if record["word_errors"] is not None]
    return {
        "tokens": shard.tokens,
        **{name: sources[source] for source, name in TARGET_COUNTS.items()},
        "seconds": utterances.shards[shard.index]["seconds"],
        "word_errors": sum(record["word_errors"] for record in transcribed),
        "words": sum(record["words"] for record in transcribed),
        "batch_size": shard.batch_size,
        "left_out": shard.left_out,
    }


def write_part(folder: AnyPath, shard: ScoredShard) -> None:
    """Writes a shard's share of the tail. Call it before the shard is recorded: every recorded shard needs its part."""
    with atomic_path(folder / PART.format(shard.index)) as temporary, open(temporary, "wb") as file:
        np.save(file, shard.tail_V)


def finished_manifest(writer: ShardWriter) -> dict[str, Any]:
    """Returns the manifest of a folder that was finished before, and removes parts that a killed run left."""
    _remove_parts(writer.folder)
    return ShardReader(writer.folder, "teacher").manifest


def finish(writer: ShardWriter) -> dict[str, Any]:
    """Writes the list of what was left out, the mean tail and the manifest, and returns the manifest."""
    entries = [writer.shards[index] for index in sorted(writer.shards)]
    left_out = [row for entry in entries for row in entry["left_out"]]
    counts: dict[str, int] = {}
    for row in left_out:
        counts[row["reason"]] = counts.get(row["reason"], 0) + 1
    write_jsonl(writer.folder / LEFT_OUT, left_out)
    totals: dict[str, Any] = {
        name: sum(entry[name] for entry in entries)
        for name in ("tokens", *TARGET_COUNTS.values(), "seconds", "word_errors", "words")
    }
    if totals["words"]:
        totals["teacher_wer"] = totals["word_errors"] / totals["words"]
    manifest = writer.finish(tail=_write_tail(writer), left_out=counts, **totals)
    _remove_parts(writer.folder)
    return manifest


def _write_tail(writer: ShardWriter) -> dict[str, Any]:
    """Writes the mean over all positions of the distribution outside the kept tokens, float32 (V,), scaled to sum to one.

    Returns its entry for the manifest.
    """
    tail_V = np.zeros(writer.provenance["vocab_size"], np.float64)
    for index in sorted(writer.shards):
        with (writer.folder / PART.format(index)).open("rb") as file:
            tail_V += np.load(file, allow_pickle=False)
    mass = tail_V.sum()
    with atomic_path(writer.folder / TAIL) as temporary:
        temporary.write_bytes(npy_bytes((tail_V / mass if mass else tail_V).astype(np.float32)))
        return {"name": TAIL, "bytes": temporary.stat().st_size, "sha256": sha256_file(temporary)}


def _remove_parts(folder: AnyPath) -> None:
    for path in folder.glob(PART.format(0).replace("00000", "*")):
        path.unlink(missing_ok=True)
