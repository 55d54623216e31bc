"""Joins the transcripts of a recording's windows. Where two windows overlap no word is doubled, lost or cut."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from stages.shared.audio import SAMPLE_RATE
from stages.shared.normaliser import normalise
from stages.shared.whisper.decode import Transcript
from stages.shared.whisper.words import Word
from stages.shared.windows import Window

SAME_S = 0.3  # seconds: two windows' times of the same word differ by less


def join_windows(decoded: Iterable[tuple[Window, Transcript]]) -> Iterator[Transcript]:
    """Yields the transcript of each window, with its times in the recording and without words that it shares with others.

    decoded: in the order of the recording; words of windows that overlap need their times. `tokens` stay those of the
    window, also where its words went.
    """
    last: Transcript | None = None
    for window, found in decoded:
        transcript = _placed(found, window)
        if last is not None:
            if window.before and last.words and transcript.words:
                start, shared = window.start / SAMPLE_RATE, window.before / SAMPLE_RATE
                earlier, later = join(last.words, transcript.words, start, start + shared, transcript.language)
                last, transcript = _with_words(last, earlier), _with_words(transcript, later)
            yield last
        last = transcript
    if last is not None:
        yield last


def _placed(found: Transcript, window: Window) -> Transcript:
    """Moves the times from the window into the recording."""
    start = window.start / SAMPLE_RATE
    words = tuple(replace(word, start=start + word.start, end=start + word.end) for word in found.words)
    if words:
        return replace(found, words=words, start=words[0].start, end=words[-1].end)
    return replace(found, start=start, end=start + len(window.samples) / SAMPLE_RATE)


def _with_words(found: Transcript, words: tuple[Word, ...]) -> Transcript:
    text = "".join(word.text for word in words).strip()
    if not words:
        return replace(found, words=(), text="")
    return replace(found, words=words, text=text, start=words[0].start, end=words[-1].end)


def join(
    earlier: tuple[Word, ...], later: tuple[Word, ...], start: float, end: float, language: str
) -> tuple[tuple[Word, ...], tuple[Word, ...]]:
    """Returns which words of two windows are kept, of each. The windows share the seconds from `start` to `end`.

    Each window hears best what is far from its edge. The cut lies at a word that both windows have at the same time, the
    nearest to the middle of what they share. Without one it lies in that middle.
    """
    kept, dropped = _at_same_word(earlier, later, start, end, language) or _at_middle(earlier, later, start, end)
    return _in_order(earlier[:kept], later[dropped:])


def _at_same_word(
    earlier: tuple[Word, ...], later: tuple[Word, ...], start: float, end: float, language: str
) -> tuple[int, int] | None:
    """Returns how many words of `earlier` are kept and how many of `later` are dropped; None without a word of both."""
    middle = (start + end) / 2
    texts = [{n: normalise(w.text, language) for n, w in enumerate(words)} for words in (earlier, later)]
    pairs = [
        (abs(first.middle - second.middle) + abs((first.middle + second.middle) / 2 - middle), n, m)
        for n, first in enumerate(earlier)
        if first.end > start
        for m, second in enumerate(later)
        if second.start < end and abs(first.middle - second.middle) < SAME_S and texts[0][n] == texts[1][m]
    ]
    if not pairs:
        return None
    _, n, m = min(pairs)
    far = earlier[n].middle + later[m].middle > start + end  # the word is farther from the edge of `later`
    return (n, m) if far else (n + 1, m + 1)


def _at_middle(earlier: tuple[Word, ...], later: tuple[Word, ...], start: float, end: float) -> tuple[int, int]:
    """Returns how many words of `earlier` are kept and how many of `later` are dropped, by their times alone."""
    middle = (start + end) / 2
    kept = sum(word.middle < middle for word in earlier)
    dropped = sum(word.middle < middle for word in later)
    if kept and dropped < len(later) and _clash(earlier[kept - 1], later[dropped]):  # one word, heard twice
        if end - earlier[kept - 1].end < later[dropped].start - start:
            kept -= 1
        else:
            dropped += 1
    while kept < len(earlier) and (dropped == len(later) or _precedes(earlier[kept], later[dropped])):
        kept += 1  # only the earlier window heard it
    while dropped and (not kept or _precedes(earlier[kept - 1], later[dropped - 1])):
        dropped -= 1
    return kept, dropped


def _clash(first: Word, second: Word) -> bool:
    """Returns whether both words cannot have been said: they share more than half the time of the shorter one."""
    shared = min(first.end, second.end) - max(first.start, second.start)
    return shared > min(first.end - first.start, second.end - second.start) / 2


def _precedes(first: Word, second: Word) -> bool:
    return first.middle < second.middle and not _clash(first, second)


def _in_order(earlier: tuple[Word, ...], later: tuple[Word, ...]) -> tuple[tuple[Word, ...], tuple[Word, ...]]:
    """Parts the last word of `earlier` and the first one of `later` where their times overlap."""
    if not earlier or not later or earlier[-1].end <= later[0].start:
        return earlier, later
    last, first = earlier[-1], later[0]
    bound = min(max((last.end + first.start) / 2, last.start), first.end)
    return (*earlier[:-1], replace(last, end=bound)), (replace(first, start=bound), *later[1:])
