"""Cuts a recording of any length into windows that fit the model: in pauses, else so that two windows overlap."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from stages.shared.audio import SAMPLE_RATE, SILENCE

OVERLAP_S = 1.0  # seconds that two windows share where the cut is in no pause; at most a fourth of a window
# A pause is a tenth of a second with at most this share of the mean power around it: 20 dB less.
PAUSE = 0.01


@dataclass(frozen=True)
class Window:
    samples: np.ndarray  # (samples,) float32 at 16 kHz
    start: int  # number of its first sample in the recording
    before: int = 0  # samples that it shares with the window before
    after: int = 0  # samples that it shares with the window after

    @property
    def overlaps(self) -> bool:
        return self.before > 0 or self.after > 0


def cut_at_pauses(pieces: Iterable[np.ndarray], seconds: float) -> Iterator[Window]:
    """Yields windows of at most `seconds` of the recording that consists of `pieces`, 16 kHz. Memory holds two windows.

    A cut lies where it is quietest. A cut within a word spoils both windows: where there is no pause the two windows share
    OVERLAP_S around the cut, and `join_windows` joins their words. For a rest of a few samples Whisper invents a sentence:
    a cut lies in the second half of a window, and the last two windows are about equally long.
    """
    size = round(seconds * SAMPLE_RATE)
    overlap = min(round(OVERLAP_S * SAMPLE_RATE), size // 4) // 2 * 2
    pending, start, before = np.zeros(0, np.float32), 0, 0
    for piece in chain(pieces, [None]):
        if piece is not None:
            pending = np.concatenate([pending, piece])
        while len(pending) > size if piece is None else len(pending) >= 2 * size - overlap:
            cut, shared = _cut(pending, size, overlap)
            yield Window(pending[: cut + shared // 2], start, before, shared)
            step, before = cut - shared // 2, shared
            pending, start = pending[step:], start + step
    if len(pending):
        yield Window(pending, start, before)


def _cut(samples: np.ndarray, size: int, overlap: int) -> tuple[int, int]:
    """Returns the middle of a cut, and how many samples the windows on its two sides share: 0 in a pause, else `overlap`."""
    length, half = len(samples), overlap // 2
    if length >= 2 * size - overlap:
        around, lowest, highest = samples[:size], size // 2, size
    else:
        spread = min(size // 4, size - half - (length + 1) // 2)
        around, lowest, highest = samples, length // 2 - spread, length // 2 + spread
    centred = around - around.mean()  # a constant offset is no sound
    cut, power = _quietest(centred, lowest, highest)
    mean = float(np.square(centred, dtype=np.float64).mean())
    if power <= max(PAUSE * mean, SILENCE**2):
        return cut, 0
    return _quietest(centred, lowest, min(highest, size - half))[0], overlap


def _quietest(samples: np.ndarray, lowest: int, highest: int) -> tuple[int, float]:
    """Returns the middle of the quietest tenth of a second between two positions, and its power.

    Where there is less than that between them: the upper one, and an infinite power.
    """
    width = SAMPLE_RATE // 10
    if highest - lowest <= width:
        return highest, math.inf
    energy = np.cumsum(np.square(samples[lowest:highest], dtype=np.float64))
    sums = energy[width:] - energy[:-width]
    quietest = int(np.argmin(sums))
    return lowest + width // 2 + quietest, float(sums[quietest]) / width
