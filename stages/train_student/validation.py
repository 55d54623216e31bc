"""The word error rate by which the best weights are chosen."""

from dataclasses import dataclass

import numpy as np

from cache.errors import PipelineError
from cache.shards import ShardReader
from stages import scoring
from stages.audio import decode_flac
from stages.train_student.processes import Processes
from stages.train_student.trainee import Trainee
from stages.whisper.decode import Transcriber
from stages.whisper.models import Whisper

Clip = tuple[np.ndarray, str]  # 16 kHz samples, transcript
VALIDATION_BATCH = 16


def validation_clips(validation: ShardReader, base: Whisper, most: int) -> list[Clip]:
    """The first `most` utterances that fit the window, shortest first."""
    clips: list[Clip] = []
    for shard in range(len(validation.shards)):
        if len(clips) < most:
            rows = [row for row in validation.read(shard) if row["seconds"] <= base.audio_window_s]
            clips += [(decode_flac(row["audio"], row["seconds"]), row["text"]) for row in rows]
    if not clips:
        raise PipelineError(f"{validation.folder}: no validation utterance fits a window of {base.audio_window_s} s")
    return sorted(clips[:most], key=lambda pair: len(pair[0]))


@dataclass(frozen=True)
class Validation:
    """One language's validation clips, and what transcribes them."""

    language: str
    clips: list[Clip]
    transcribe: Transcriber


def validate_languages(trainee: Trainee, validations: list[Validation], processes: Processes) -> dict[str, float]:
    """{"wer": ..., "cer": ...}: of several languages the means over them, as published, and `wer_<language>` of each."""
    rates = {}
    for own in validations:
        with trainee.route(languages=[own.language]):
            rates[own.language] = validate_clips(own.transcribe, own.clips, own.language, processes)
    means = {rate: sum(each[rate] for each in rates.values()) / len(rates) for rate in ("wer", "cer")}
    return means if len(rates) == 1 else {**means, **{f"wer_{code}": each["wer"] for code, each in rates.items()}}


def validate_clips(transcribe: Transcriber, clips: list[Clip], language: str, processes: Processes) -> dict[str, float]:
    """Counts and rates over all clips, of which each process decodes its share."""
    share = clips[processes.rank :: processes.count]
    rows = []
    for start in range(0, len(share), VALIDATION_BATCH):
        batch = share[start : start + VALIDATION_BATCH]
        transcripts = transcribe([clip for clip, _ in batch])
        rows += [scoring.score(text, got.text, language) for (_, text), got in zip(batch, transcripts, strict=True)]
    return scoring.totals(_summed(rows, processes))


def _summed(rows: list[scoring.Row], processes: Processes) -> list[scoring.Row]:
    """One row with all processes' counts in place of this one's own rows."""
    if processes.count == 1:
        return rows
    names = list(scoring.score("", "", "en"))
    counts = processes.sum([float(sum(row[name] for row in rows)) for name in names])
    return [{name: round(count) for name, count in zip(names, counts, strict=True)}]
