"""Writes a transcript as text, JSON, subtitles or a table."""

import html
import json
from collections.abc import Sequence
from typing import Any

import pysubs2

from stages.shared.transcription import joined_text
from stages.shared.whisper.decode import Transcript
from stages.transcribe.cues import cues


def rendered(windows: Sequence[Transcript], format: str, model: str) -> str:
    """Returns the whole file. windows: of one recording, with their words. format: one of FORMATS. model: its name."""
    said = [window for window in windows if window.text]
    if format == "text":
        return "".join(f"{window.text}\n" for window in said)
    if format == "json":
        return json.dumps(_facts(windows, said, model), ensure_ascii=False, indent=2) + "\n"
    if format == "tsv":
        return "".join(f"{line}\n" for line in ("start\tend\ttext", *map(_row, said)))
    return _subtitles(said, format)


def _facts(windows: Sequence[Transcript], said: list[Transcript], model: str) -> dict[str, Any]:
    return {
        "language": windows[0].language,
        "model": model,
        "text": joined_text(said),
        "segments": [{"id": number, **_segment(window)} for number, window in enumerate(said)],
    }


def _segment(window: Transcript) -> dict[str, Any]:
    words = [
        {**_times(word.start, word.end), "word": word.text, "probability": round(word.probability, 3)}
        for word in window.words
    ]
    marks = {"looped": window.looped, "unended": window.unended}
    return {**_times(window.start, window.end), "text": window.text, **marks, "words": words}


def _times(start: float, end: float) -> dict[str, float]:
    return {"start": round(start, 3), "end": round(end, 3)}


def _row(window: Transcript) -> str:
    """Times are in milliseconds, as in the tables of openai/whisper."""
    return f"{round(1000 * window.start)}\t{round(1000 * window.end)}\t{' '.join(window.text.split())}"


def _subtitles(said: list[Transcript], format: str) -> str:
    file = pysubs2.SSAFile()
    for cue in cues(word for window in said for word in window.words):
        event = pysubs2.SSAEvent(start=round(1000 * cue.start), end=round(1000 * cue.end))
        event.plaintext = "\n".join(html.escape(line, quote=False) if format == "vtt" else line for line in cue.lines)
        file.append(event)
    return file.to_string(format, keep_ssa_tags=True)  # braces in a text are no tags
