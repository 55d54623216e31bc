"""Splits timed words into the cues of subtitles."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rich.cells import cell_len

from stages.shared.whisper.words import Word

MOST_SECONDS, LEAST_SECONDS = 7.0, 1.0  # a cue stands so long; a shorter one longer, if the next one leaves the time
COLUMNS = 42  # of a line; a Chinese character takes two. A cue has at most two lines.
PAUSE_S = 1.0  # a longer pause ends a cue
SENTENCE_ENDS = tuple(".!?…。！？।؟")
CLOSING = "\"'”“»)]」』"


@dataclass(frozen=True)
class Cue:
    start: float  # seconds
    end: float
    lines: tuple[str, ...]  # one or two


def cues(words: Iterable[Word]) -> list[Cue]:
    """Returns the cues of all words, in order; none overlaps the next one.

    A cue ends with a pause, a sentence that fills a line, or before the word that no longer fits. Words are never cut: one
    that is wider than a line, or lasts longer than a cue, has a cue of its own.
    """
    groups: list[list[Word]] = []
    for word in words:
        if groups and _goes_on(groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])
    found = [Cue(group[0].start, group[-1].end, _lines(group) or (_text(group),)) for group in groups]
    following = [*(cue.start for cue in found[1:]), math.inf]
    return [_timed(cue, next_start) for cue, next_start in zip(found, following, strict=False)]


def _goes_on(group: list[Word], word: Word) -> bool:
    """Returns whether the word belongs to the cue that begins with `group`."""
    together = [*group, word]
    if word.end - group[0].start > MOST_SECONDS or word.start - group[-1].end > PAUSE_S or not _lines(together):
        return False
    ended = group[-1].text.rstrip(CLOSING).endswith(SENTENCE_ENDS)
    return not ended or cell_len(_text(together)) <= COLUMNS


def _lines(words: list[Word]) -> tuple[str, ...] | None:
    """Returns the words on one line, else on two lines of about the same width, None where they do not fit."""
    if cell_len(_text(words)) <= COLUMNS:
        return (_text(words),)
    splits = [(_text(words[:place]), _text(words[place:])) for place in range(1, len(words))]
    widths = [max(map(cell_len, lines)) for lines in splits]
    fitting = [(width, lines) for width, lines in zip(widths, splits, strict=True) if width <= COLUMNS]
    return min(fitting)[1] if fitting else None


def _text(words: list[Word]) -> str:
    return " ".join("".join(word.text for word in words).split())


def _timed(cue: Cue, next_start: float) -> Cue:
    """Makes a cue at most MOST_SECONDS long, and at least LEAST_SECONDS, but not longer than to the next one."""
    longest = min(cue.start + MOST_SECONDS, next_start)
    return replace(cue, end=min(max(cue.end, cue.start + LEAST_SECONDS), longest))
