"""Every utterance of a split is decoded and scored, or listed as unscored."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cache import files
from cache.errors import PipelineError
from cache.shards import ShardReader
from cache.storage import AnyPath
from stages.evaluate.gates import GateUse
from stages.evaluate.settings import EvaluateSettings
from stages.shared import scoring
from stages.shared.audio import SAMPLE_RATE, cut_at_pauses, decode_flac
from stages.shared.prefetch import prefetch
from stages.shared.student.loading import LoadedModel
from stages.shared.whisper.decode import Transcriber, Transcript
from stages.shared.whisper.device import compute_dtype, round_weights
from stages.shared.whisper.targets import token_of

# Raise it whenever the same model and utterances give other metrics or rows.
EVALUATE_VERSION = 1


@dataclass
class Utterance:
    id: str
    group: str
    seconds: float
    text: str
    windows: list[np.ndarray]  # what is longer than the model's window is decoded window by window


def evaluate(
    model: LoadedModel,
    utterances: AnyPath,
    language: str,
    system: str,
    out: AnyPath,
    settings: EvaluateSettings,
    device: torch.device,
    source: str,
    progress: Callable[[int, int, float], None] = lambda done, total, seconds: None,
) -> dict[str, Any]:
    """Scores the split in `utterances`; writes `out` (a .json) with the rates, and its rows beside it as JSON lines."""
    reader = ShardReader(utterances, "utterances")
    dtype = compute_dtype(settings.dtype, device)
    model.whisper.model.to(device)
    round_weights(model.whisper.model.requires_grad_(False), dtype)
    transcribe = Transcriber(model.whisper, language, dtype, settings.cut_loops)
    rows, unscored, gates = [], [], GateUse()
    started, seconds = time.monotonic(), 0.0
    progress(0, sum(reader.rows), seconds)
    for batch in prefetch(_batches(reader, model.whisper.audio_window_s, settings.batch_size)):
        for utterance, decoded in zip(batch, _decode(transcribe, batch, gates), strict=True):
            counts = scoring.score(utterance.text, decoded["hypothesis"], language)
            seconds += utterance.seconds
            if not counts["words"]:
                unscored.append({"id": utterance.id, "reason": "its transcript has no word after normalisation"})
                continue
            facts = {"id": utterance.id, "group": utterance.group, "seconds": round(utterance.seconds, 3)}
            rows.append({**facts, "reference": utterance.text, **decoded, **counts})
        progress(len(rows) + len(unscored), sum(reader.rows), seconds)
    metrics = {
        "evaluate_version": EVALUATE_VERSION,
        "language": language,
        "token": token_of(model.whisper.model, language),
        "system": system,
        "corpus": reader.manifest["corpus"],
        "split": reader.manifest["split"],
        "normaliser": scoring.NORMALISER,
        **scoring.totals(rows),
        "loops": sum(bool(row["looped"]) for row in rows),
        "cut_loops": settings.cut_loops,
        "unended": sum(bool(row["unended"]) for row in rows),
        "audio_seconds": round(seconds, 3),
        "seconds": round(time.monotonic() - started, 3),
        "audio_window_s": model.whisper.audio_window_s,
        "dtype": str(dtype).removeprefix("torch."),
        "model": source,
        "gates": gates.shares(),
        "unscored": unscored,
    }
    order = {row["id"]: number for number, row in enumerate(_ids(reader))}
    _write(out, metrics, sorted(rows, key=lambda row: order[row["id"]]))
    return metrics


def _write(out: AnyPath, metrics: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Metrics never stand beside another run's rows: the old ones go first, the new ones come last."""
    out.unlink(missing_ok=True)
    files.write_jsonl(out.with_suffix(".utterances.jsonl"), rows)
    files.write_json(out, metrics)


def _ids(reader: ShardReader) -> Iterator[dict]:
    for shard in range(len(reader.shards)):
        yield from reader.read(shard, only=("id",))


def _batches(reader: ShardReader, audio_window_s: int, batch_size: int) -> Iterator[list[Utterance]]:
    """Clips of like length together, shard by shard: they end at about the same step."""
    for shard in range(len(reader.shards)):
        rows = sorted(reader.read(shard), key=lambda row: row["seconds"])
        for start in range(0, len(rows), batch_size):
            yield [_utterance(row, audio_window_s) for row in rows[start : start + batch_size]]


def _utterance(row: dict, audio_window_s: int) -> Utterance:
    windows = list(cut_at_pauses([decode_flac(row["audio"], row["seconds"])], audio_window_s))
    if not windows:
        raise PipelineError(f"utterance {row['id']}: no audio in its shard, expected {row['seconds']:.2f} s")
    return Utterance(row["id"], row["group"], row["seconds"], row["text"], windows)


def _decode(transcribe: Transcriber, batch: list[Utterance], gates: GateUse) -> list[dict[str, Any]]:
    """Each utterance's text, and whether one of its windows ended in a loop, or did not end."""
    clips = [window for utterance in batch for window in utterance.windows]
    transcripts: list[Transcript] = []
    for start in range(0, len(clips), len(batch)):
        part = clips[start : start + len(batch)]
        found, by_layer = transcribe.with_gates(part)
        decoded = [(clip, one) for clip, one in zip(part, found, strict=True) if not one.silent]
        seconds, tokens = [len(clip) / SAMPLE_RATE for clip, _ in decoded], [len(one.tokens) for _, one in decoded]
        gates.add(by_layer, seconds, tokens)
        transcripts += found
    each = iter(transcripts)
    return [_joined([next(each) for _ in utterance.windows]) for utterance in batch]


def _joined(windows: list[Transcript]) -> dict[str, Any]:
    return {
        "hypothesis": " ".join(one.text for one in windows if one.text),
        "looped": any(one.looped for one in windows),
        "unended": any(one.unended for one in windows),
    }
