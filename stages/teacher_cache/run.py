"""Side-car shards: for each utterance shard one with the same ids in the same order, holding the teacher's distribution."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from cache.files import atomic_path, sha256_file, write_jsonl
from cache.locks import sole_writer
from cache.npy import npy_bytes
from cache.progress import Progress, silent
from cache.resume import Rerun
from cache.shards import LEFT_OUT, TAIL, ShardReader, ShardWriter, write_shard
from cache.storage import AnyPath
from stages.shared.whisper.device import compute_dtype
from stages.shared.whisper.models import Whisper
from stages.teacher_cache.job import Job
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.shard import ScoredShard, ShardScorer
from stages.teacher_cache.vocabulary import Vocabulary, vocabulary_of

# Raise it whenever the same utterances, teacher and settings give other records: work of another version is made again.
TEACHER_CACHE_VERSION = 1
PART = "part-{:05d}.npy"  # a shard's share of the tail, until all are there


def cache_teacher(
    teacher: Whisper,
    utterances: AnyPath,
    out: AnyPath,
    language: str,
    settings: TeacherCacheSettings,
    device: torch.device,
    rerun: Rerun = "refuse",
    progress: Progress[float] = silent,
    student: Vocabulary | None = None,
) -> dict[str, Any]:
    """Writes the teacher shards of one split to `out` and returns their manifest; goes on where it was interrupted.

    progress: called with utterances done, utterances in all, and seconds of audio done.
    student: whose token ids are stored; None: the teacher's own.
    """
    source = ShardReader(utterances, "utterances")
    job = Job(teacher, student or vocabulary_of(teacher), language, settings, compute_dtype(settings.dtype, device))
    with sole_writer(out):
        writer = opened(out, job.facts(source), settings.format, rerun)
        if writer.complete:
            return completed(writer)
        teacher.model.to(device)
        done = Done(progress, source, writer)
        waiting = [index for index in range(len(source.shards)) if index not in writer.shards]
        shards: Iterator[tuple[int, list[dict]]] = ((index, source.read(index)) for index in waiting)
        for shard in ShardScorer(job).run(shards, done.add):
            writer.record(write_scored(out, settings.format, shard, source))
        return finish(writer)


def opened(out: AnyPath, facts: dict[str, Any], format: str, rerun: Rerun) -> ShardWriter:
    """facts: whatever the records depend on beside the version of this stage."""
    return ShardWriter(out, "teacher", {"teacher_cache_version": TEACHER_CACHE_VERSION, **facts}, format, rerun)


class Done:
    """How far the work is, for the progress callback."""

    def __init__(self, progress: Progress[float], source: ShardReader, writer: ShardWriter):
        self.progress, self.total = progress, sum(source.rows)
        self.utterances, self.seconds = 0, 0.0
        self.add(
            sum(source.rows[index] for index in writer.shards),
            sum(source.shards[index]["seconds"] for index in writer.shards),
        )

    def add(self, utterances: int, seconds: float) -> None:
        self.utterances, self.seconds = self.utterances + utterances, self.seconds + seconds
        self.progress(self.utterances, self.total, self.seconds)


def write_scored(folder: AnyPath, format: str, shard: ScoredShard, source: ShardReader) -> dict[str, Any]:
    """Writes a shard and its share of the tail, and returns its entry for the manifest."""
    write_part(folder, shard)
    return write_shard(folder, "teacher", format, shard.index, shard.records, **shard_facts(shard, source))


def shard_facts(shard: ScoredShard, source: ShardReader) -> dict[str, Any]:
    """What the manifest says of a shard beside its rows, size and hash."""
    heard = [record for record in shard.records if record["word_errors"] is not None]
    return {
        "tokens": shard.tokens,
        "seconds": source.shards[shard.index]["seconds"],
        "word_errors": sum(record["word_errors"] for record in heard),
        "words": sum(record["words"] for record in heard),
        "batch_size": shard.batch_size,
        "left_out": shard.left_out,
    }


def write_part(folder: AnyPath, shard: ScoredShard) -> None:
    """Before its shard is recorded: a shard that is there has its part."""
    with atomic_path(folder / PART.format(shard.index)) as temporary, open(temporary, "wb") as file:
        np.save(file, shard.tail_V)


def completed(writer: ShardWriter) -> dict[str, Any]:
    """The manifest of a folder that was finished before."""
    _remove_parts(writer.folder)
    return ShardReader(writer.folder, "teacher").manifest


def finish(writer: ShardWriter) -> dict[str, Any]:
    entries = [writer.shards[index] for index in sorted(writer.shards)]
    left_out = [row for entry in entries for row in entry["left_out"]]
    counts: dict[str, int] = {}
    for row in left_out:
        counts[row["reason"]] = counts.get(row["reason"], 0) + 1
    write_jsonl(writer.folder / LEFT_OUT, left_out)
    totals: dict[str, Any] = {
        name: sum(entry[name] for entry in entries) for name in ("tokens", "seconds", "word_errors", "words")
    }
    if totals["words"]:
        totals["teacher_wer"] = totals["word_errors"] / totals["words"]
    manifest = writer.finish(tail=_write_tail(writer), left_out=counts, **totals)
    _remove_parts(writer.folder)
    return manifest


def _write_tail(writer: ShardWriter) -> dict[str, Any]:
    """The mean over all positions of the distribution outside the kept tokens, scaled to sum to one: float32 (V,)."""
    tail_V = np.zeros(writer.settings["vocab_size"], np.float64)
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
