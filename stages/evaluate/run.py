"""Decodes every utterance of a split, and scores it or lists it as unscored."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cache import files
from cache.errors import PipelineError
from cache.progress import Progress, silent
from cache.shards import ShardReader
from cache.storage import AnyPath
from stages.evaluate.settings import EvaluateSettings
from stages.evaluate.words import expert_words, kept_shares
from stages.shared import scoring
from stages.shared.audio import SAMPLE_RATE, decode_flac
from stages.shared.gate_use import GateUse
from stages.shared.layout import rows_path
from stages.shared.prefetch import prefetch
from stages.shared.student.loading import LoadedModel
from stages.shared.whisper.decode import Transcriber, Transcript
from stages.shared.whisper.device import compute_dtype, round_weights
from stages.shared.whisper.joining import join_windows
from stages.shared.whisper.targets import token_of
from stages.shared.windows import Window, cut_at_pauses

# Raise it whenever the same model and utterances give other metrics or rows.
EVALUATE_VERSION = 3


@dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    language: str
    system: str  # base, teacher, the name of a method, or the name that a user gave
    source: str  # the folder or hub id of the model


@dataclass
class Utterance:
    id: str
    group: str
    seconds: float
    text: str
    windows: list[Window]  # longer audio than the model takes is decoded window by window


def evaluate(
    model: LoadedModel,
    utterances: AnyPath,
    subject: Subject,
    out: AnyPath,
    settings: EvaluateSettings,
    device: torch.device,
    progress: Progress[float] = silent,
) -> dict[str, Any]:
    """Scores the split in `utterances`. Writes `out` (a .json) with the rates, and its rows beside it as JSON lines.

    progress: is called with utterances done, utterances in all, and seconds of audio done. Returns what `out` holds.
    """
    reader = ShardReader(utterances, "utterances")
    dtype = compute_dtype(settings.dtype, device)
    model.whisper.model.to(device)
    round_weights(model.whisper.model.requires_grad_(False), dtype)
    transcribe = Transcriber(model.whisper, subject.language, dtype, settings.cut_loops)
    started, gates = time.monotonic(), GateUse()
    rows, unscored, seconds = _score(transcribe, reader, settings.batch_size, gates, progress)
    metrics = {
        "evaluate_version": EVALUATE_VERSION,
        "language": subject.language,
        "token": token_of(model.whisper.model, subject.language),
        "system": subject.system,
        "corpus": reader.manifest["corpus"],
        "split": reader.manifest["split"],
        "corpus_utterances": reader.corpus_utterances,
        "normaliser": scoring.NORMALISER,
        **scoring.totals(rows),
        "loops": sum(bool(row["looped"]) for row in rows),
        "cut_loops": settings.cut_loops,
        "unended": sum(bool(row["unended"]) for row in rows),
        "audio_seconds": round(seconds, 3),
        "seconds": round(time.monotonic() - started, 3),
        "audio_window_s": model.whisper.audio_window_s,
        "dtype": str(dtype).removeprefix("torch."),
        "model": subject.source,
        "gates": gates.shares(),
        "unscored": unscored,
    }
    order = {row["id"]: number for number, row in enumerate(reader.records(only=("id",)))}
    _write(out, metrics, sorted(rows, key=lambda row: order[row["id"]]))
    return metrics


def changed_texts(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[str]:
    """Returns the ids of the utterances of `rows` whose text is not the same, letter by letter, in `others`."""
    texts = {row["id"]: row["hypothesis"] for row in others}
    return [row["id"] for row in rows if texts.get(row["id"]) != row["hypothesis"]]


def _score(
    transcribe: Transcriber, reader: ShardReader, batch_size: int, gates: GateUse, progress: Progress[float]
) -> tuple[list[dict[str, Any]], list[dict[str, str]], float]:
    """Returns the rows, the utterances that cannot be scored, and the seconds of audio of all."""
    rows, unscored, seconds = [], [], 0.0
    progress(0, sum(reader.rows), seconds)
    for batch in prefetch(_batches(reader, transcribe.whisper.audio_window_s, batch_size)):
        for utterance, decoded in zip(batch, _decode(transcribe, batch, gates), strict=True):
            counts = scoring.score(utterance.text, decoded["hypothesis"], transcribe.language)
            seconds += utterance.seconds
            if not counts["words"]:
                unscored.append({"id": utterance.id, "reason": "its transcript has no word after normalisation"})
                continue
            row = {"id": utterance.id, "group": utterance.group, "seconds": round(utterance.seconds, 3)}
            rows.append({**row, "reference": utterance.text, **decoded, **counts})
        progress(len(rows) + len(unscored), sum(reader.rows), seconds)
    return rows, unscored, seconds


def _write(out: AnyPath, metrics: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Removes old metrics first and writes the new ones last, so that metrics never stand beside another run's rows."""
    out.unlink(missing_ok=True)
    files.write_jsonl(rows_path(out), rows)
    files.write_json(out, metrics)


def _batches(reader: ShardReader, audio_window_s: int, batch_size: int) -> Iterator[list[Utterance]]:
    """Yields batches of clips of similar length, shard by shard: their decoding ends at about the same step."""
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
    """Returns each utterance's text, whether one of its windows ended in a loop or did not end, and the expert's shares."""
    windows = [window for utterance in batch for window in utterance.windows]
    transcripts: list[Transcript] = []
    shares: list[list[int] | None] = []
    for start in range(0, len(windows), len(batch)):
        part = windows[start : start + len(batch)]
        found, by_layer = transcribe.with_gates([one.samples for one in part], timed=[one.overlaps for one in part])
        decoded = [(window, one) for window, one in zip(part, found, strict=True) if not one.silent]
        seconds = [len(window.samples) / SAMPLE_RATE for window, _ in decoded]
        tokens = [len(one.tokens) for _, one in decoded]
        gates.add(by_layer, seconds, tokens)
        transcripts += found
        shares += expert_words(transcribe, found, by_layer)
    each = iter(zip(windows, transcripts, shares, strict=True))
    return [_joined([next(each) for _ in utterance.windows]) for utterance in batch]


def _joined(decoded: list[tuple[Window, Transcript, list[int] | None]]) -> dict[str, Any]:
    windows = list(join_windows((window, one) for window, one, _ in decoded))
    shares = [
        kept_shares(words, before, after)
        for (_, before, words), after in zip(decoded, windows, strict=True)
        if words is not None
    ]
    return {
        "hypothesis": " ".join(one.text for one in windows if one.text),
        "looped": any(one.looped for one in windows),
        "unended": any(one.unended for one in windows),
        **({"expert_words": sum(shares, [])} if shares else {}),
    }
