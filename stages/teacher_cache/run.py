"""Side-car shards: for each utterance shard one with the same ids in the same order, holding the teacher's distribution."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.errors import PipelineError
from cache.files import write_jsonl
from cache.shards import ShardReader, ShardWriter
from stages.audio import decode_flac
from stages.prefetch import prefetch
from stages.teacher_cache.score import Batch, score
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.whisper.features import LogMel
from stages.whisper.models import Whisper, compute_dtype, tokenizer_fingerprint
from stages.whisper.targets import decoder_inputs, prompt_ids, reason_to_leave_out, target_ids

LEFT_OUT = "left_out.jsonl"


def cache_teacher(
    teacher: Whisper,
    utterances: Path,
    out: Path,
    language: str,
    settings: TeacherCacheSettings,
    device: torch.device,
    restart: bool = False,
    progress: Callable[[int, int, float], None] = lambda done, total, seconds: None,
) -> dict[str, Any]:
    """Writes the teacher shards of one split to `out` and returns their manifest; goes on where it was interrupted.

    progress: called with utterances done, utterances in all, and seconds of audio done.
    """
    source = ShardReader(utterances, "utterances")
    dtype = compute_dtype(settings.dtype, device)
    prompt = prompt_ids(teacher.tokenizer, language)
    facts = _settings(teacher, source, prompt, language, settings, dtype)
    writer = ShardWriter(out, "teacher", facts, settings.format, restart)
    if writer.complete:
        return ShardReader(out, "teacher").manifest
    teacher.model.to(device)
    done = _Done(progress, sum(source.rows))
    for index in sorted(writer.shards):
        done.utterances, done.seconds = (
            done.utterances + source.rows[index],
            done.seconds + source.shards[index]["seconds"],
        )
    done.tell()
    for index in range(len(source.shards)):
        if index not in writer.shards:
            records, left_out = _score_shard(teacher, source.read(index), prompt, language, settings, dtype, done)
            tokens = sum(len(record["targets"]) for record in records)
            writer.write(index, records, tokens=tokens, seconds=source.shards[index]["seconds"], left_out=left_out)
    return _finish(writer)


@dataclass
class _Done:
    """How far the work is, for the progress callback."""

    progress: Callable[[int, int, float], None]
    total: int
    utterances: int = 0
    seconds: float = 0.0

    def tell(self) -> None:
        self.progress(self.utterances, self.total, self.seconds)


def _settings(
    teacher: Whisper,
    source: ShardReader,
    prompt: list[int],
    language: str,
    settings: TeacherCacheSettings,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Whatever the records depend on: it goes into the manifest, and a change of any of it makes another cache."""
    if not settings.top_k < teacher.model.config.vocab_size:
        raise PipelineError(
            f"top_k is {settings.top_k}, expected less than the vocabulary's {teacher.model.config.vocab_size}"
        )
    if teacher.model.config.vocab_size > np.iinfo(np.uint16).max:
        raise PipelineError(
            f"{teacher.source}: vocabulary of {teacher.model.config.vocab_size}, expected at most 65535"
        )
    return {
        "language": language,
        "split": source.manifest["split"],
        "utterances": source.fingerprint(),
        "teacher": teacher.source,
        "teacher_weights": teacher.fingerprint,
        "tokenizer": tokenizer_fingerprint(teacher.tokenizer),
        "vocab_size": teacher.model.config.vocab_size,
        "prompt": prompt,
        "targets": "reference",
        "audio_window_s": teacher.audio_window_s,
        "top_k": settings.top_k,
        "temperature": 1.0,
        "top_log_probs": "float16, natural logarithm",
        "dtype": str(dtype).removeprefix("torch."),
        "attention": teacher.model.config._attn_implementation,
        "batch_size": settings.batch_size,
    }


def _score_shard(
    teacher: Whisper,
    utterances: list[dict],
    prompt: list[int],
    language: str,
    settings: TeacherCacheSettings,
    dtype: torch.dtype,
    done: _Done,
) -> tuple[list[dict], list[dict[str, Any]]]:
    """The side-car records in the utterances' order, and what was left out (a record without targets stands there)."""
    targets = [target_ids(teacher.tokenizer, utterance["text"], language) for utterance in utterances]
    reasons = [
        reason_to_leave_out(utterance["seconds"], teacher.audio_window_s, prompt, ids)
        for utterance, ids in zip(utterances, targets, strict=True)
    ]
    left_out = [
        {"id": utterance["id"], "reason": reason[0], "detail": reason[1]}
        for utterance, reason in zip(utterances, reasons, strict=True)
        if reason
    ]
    kept = [row for row, reason in enumerate(reasons) if not reason]
    scored: dict[int, dict[str, np.ndarray]] = {}
    for batch in prefetch(_batches(teacher, utterances, targets, kept, prompt, settings.batch_size)):
        for row, ids, arrays in zip(
            batch.rows, batch.targets, score(teacher.model, batch, prompt, settings.top_k, dtype), strict=True
        ):
            scored[row] = {"targets": np.array(ids, np.uint16), **arrays}
            done.seconds += utterances[row]["seconds"]
        done.utterances += len(batch.rows)
        done.tell()
    done.utterances += len(left_out)
    if left_out:
        done.seconds += sum(
            utterance["seconds"] for utterance, reason in zip(utterances, reasons, strict=True) if reason
        )
        done.tell()
    return [
        {"id": utterance["id"], **scored.get(row, _nothing())} for row, utterance in enumerate(utterances)
    ], left_out


def _batches(
    teacher: Whisper,
    utterances: list[dict],
    targets: list[list[int]],
    kept: list[int],
    prompt: list[int],
    batch_size: int,
) -> Iterator[Batch]:
    """Longest transcripts first: little padding, and memory that does not fit shows at once."""
    log_mel = LogMel(teacher.model.config.num_mel_bins, teacher.audio_window_s)
    by_length = sorted(kept, key=lambda row: (-len(targets[row]), row))
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        clips = [decode_flac(utterances[row]["audio"]) for row in rows]
        chosen = [targets[row] for row in rows]
        yield Batch(rows, log_mel(clips), decoder_inputs(prompt, chosen, teacher.tokenizer.eos_token_id), chosen)


def _nothing() -> dict[str, np.ndarray]:
    return {
        "targets": np.empty(0, np.uint16),
        "top_ids": np.empty(0, np.uint16),
        "top_log_probs": np.empty(0, np.float16),
        "tail_log_probs": np.empty(0, np.float32),
    }


def _finish(writer: ShardWriter) -> dict[str, Any]:
    left_out = [row for entry in writer.shards.values() for row in entry["left_out"]]
    counts: dict[str, int] = {}
    for row in left_out:
        counts[row["reason"]] = counts.get(row["reason"], 0) + 1
    write_jsonl(writer.folder / LEFT_OUT, left_out)
    entries = writer.shards.values()
    tokens, seconds = sum(entry["tokens"] for entry in entries), sum(entry["seconds"] for entry in entries)
    return writer.finish(tokens=tokens, seconds=seconds, left_out=counts)
