"""Words with their times: which tokens make up a word, and how its ends are moved to the silences around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import regex
from transformers import WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import _split_tokens_on_unicode

from stages.shared.audio import SAMPLE_RATE, SILENCE
from stages.shared.whisper.languages import WITHOUT_SPACES

SPOKEN = regex.compile(r"[\p{L}\p{N}]")
CLUSTER = regex.compile(r"\X")
FRAME = SAMPLE_RATE // 100  # samples: 10 ms
# A frame is quiet whose power is 30 dB below that of the loud frames: the 95th percentile.
QUIET, LOUD = 1e-3, 95
LEAST_QUIET = 5  # frames: shorter silences lie within words, before p, t and k
REACH_S = 0.2  # at most so many seconds lie between the end of a word by attention and the silence that is its real end

Span = tuple[float, float]  # seconds


@dataclass(frozen=True)
class Word:
    text: str  # as written, with the space before it
    start: float  # seconds
    end: float
    probability: float  # mean of the probabilities of its tokens

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


@dataclass
class Piece:
    """Consecutive tokens and their text."""

    text: str
    tokens: list[int]  # their numbers

    def add(self, other: "Piece") -> None:
        self.text += other.text
        self.tokens += other.tokens


def split_words(tokenizer: WhisperTokenizer, tokens: Sequence[int], language: str) -> list[Piece]:
    """Returns the words that the text tokens make up, in order. Together they have all tokens and the whole text.

    A word begins at a space; in a language without spaces, at each grapheme cluster that begins with a token. What has
    neither letter nor digit belongs to the word before.
    """
    texts, _, numbers = _split_tokens_on_unicode(tokenizer, list(tokens))
    parts: list[Piece] = []
    for piece in map(Piece, texts, numbers):
        if parts and not _begins(parts[-1].text, piece.text, language):
            parts[-1].add(piece)
        else:
            parts.append(piece)
    words: list[Piece] = []
    for part in parts:
        if words and not (SPOKEN.search(part.text) and SPOKEN.search(words[-1].text)):
            words[-1].add(part)
        else:
            words.append(part)
    return words


def _begins(before: str, text: str, language: str) -> bool:
    """Returns whether a word may begin between two pieces of a text."""
    if language not in WITHOUT_SPACES:
        return text[:1].isspace()
    last = CLUSTER.findall(before)[-1]
    return CLUSTER.findall(last + text)[0] == last


def timed_words(pieces: list[Piece], times: np.ndarray, probs: np.ndarray, clip: np.ndarray) -> tuple[Word, ...]:
    """Returns the words with their times in the clip.

    times: (T + 1,) seconds, where each of T tokens begins, and where the last one ends. probs: (T,). clip: (samples,).
    """
    bounds = [*(float(times[piece.tokens[0]]) for piece in pieces), float(times[-1])]
    spans = at_silences([min(bound, len(clip) / SAMPLE_RATE) for bound in bounds], silences(clip))
    return tuple(
        Word(piece.text, *span, float(probs[piece.tokens].mean())) for piece, span in zip(pieces, spans, strict=True)
    )


def at_silences(bounds: list[float], quiet: list[Span]) -> list[Span]:
    """Returns each word's start and end. bounds: where each word begins, and where the last one ends, by attention.

    Attention gives a pause to the word before or after it. A word ends where a silence near its end begins, and the next
    one begins where that silence ends.
    """
    gaps: list[Span] = [(bound, bound) for bound in bounds]
    for silence in quiet:
        distances = [max(silence[0] - bound, bound - silence[1], 0.0) for bound in bounds]
        nearest = min(range(len(bounds)), key=distances.__getitem__)
        taken = gaps[nearest]
        if distances[nearest] <= REACH_S and silence[1] - silence[0] > taken[1] - taken[0]:  # the longest of several
            gaps[nearest] = silence
    spans: list[Span] = []
    last = 0.0
    for number, (left, right) in enumerate(pairwise(gaps)):
        start, end = (left[1], right[0]) if left[1] < right[0] else (bounds[number], bounds[number + 1])
        start = max(start, last)
        last = max(start, end)
        spans.append((start, last))
    return spans


def silences(clip: np.ndarray) -> list[Span]:
    """Returns where at least LEAST_QUIET frames in a row are quiet: start and end in seconds. clip: (samples,) float32."""
    frames = clip[: len(clip) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    if not len(frames):
        return []
    power = np.square(frames - clip.mean()).mean(axis=1)
    quiet = power <= max(QUIET * np.percentile(power, LOUD), SILENCE**2)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]])))
    runs = [(int(start), int(end)) for start, end in edges.reshape(-1, 2) if end - start >= LEAST_QUIET]
    return [(start * FRAME / SAMPLE_RATE, end * FRAME / SAMPLE_RATE) for start, end in runs]
