"""Measures the word error rate by which the best weights are chosen."""

from dataclasses import dataclass

from stages.shared import scoring
from stages.shared.validation import VALIDATION_BATCH, Clip
from stages.shared.whisper.decode import Transcriber, Transcript
from stages.train_student.processes import Processes

COUNTS = ("loops", "unended")


@dataclass(frozen=True)
class Validation:
    """The validation clips of one language, and the transcriber for them."""

    language: str
    clips: list[Clip]
    transcribe: Transcriber


def validate_languages(validations: list[Validation], processes: Processes) -> dict[str, float]:
    """Returns {"wer": ..., "cer": ..., "loops": ..., "unended": ...}.

    loops, unended: the number of texts that ended in a loop, or did not end. For several languages the rates are means
    over the languages, as published; the counts are sums; and `wer_<language>` is added for each.
    """
    found = {own.language: validate_clips(own.transcribe, own.clips, own.language, processes) for own in validations}
    means = {rate: sum(each[rate] for each in found.values()) / len(found) for rate in ("wer", "cer")}
    counts = {name: sum(each[name] for each in found.values()) for name in COUNTS}
    own_rates = {f"wer_{code}": each["wer"] for code, each in found.items()} if len(found) > 1 else {}
    return {**means, **counts, **own_rates}


def validate_clips(transcribe: Transcriber, clips: list[Clip], language: str, processes: Processes) -> dict[str, float]:
    """Returns counts and rates over all clips. Each process decodes its share of them."""
    share = clips[processes.rank :: processes.count]
    rows = []
    for start in range(0, len(share), VALIDATION_BATCH):
        batch = share[start : start + VALIDATION_BATCH]
        transcripts = transcribe([clip for clip, _ in batch])
        rows += [_row(text, got, language) for (_, text), got in zip(batch, transcripts, strict=True)]
    summed = _summed(rows, processes)
    return {**scoring.totals(summed), **{name: sum(row[name] for row in summed) for name in COUNTS}}


def _row(text: str, got: Transcript, language: str) -> scoring.Row:
    return {**scoring.score(text, got.text, language), "loops": int(got.looped), "unended": int(got.unended)}


def _summed(rows: list[scoring.Row], processes: Processes) -> list[scoring.Row]:
    """Returns one row with the counts of all processes; with a single process, its own rows."""
    if processes.count == 1:
        return rows
    names = [*scoring.score("", "", "en"), *COUNTS]
    counts = processes.sum([float(sum(row[name] for row in rows)) for name in names])
    return [{name: round(count) for name, count in zip(names, counts, strict=True)}]
