"""Measures how loud a recording is, and decides the scale of its samples and how its channels are mixed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Possible values of full scale: 1.0, and those of 16, 24 and 32 bit integers that were stored as floats.
SCALES = (1.0, 2.0**15, 2.0**23, 2.0**31)
# A peak more than 24 dB over full scale means that the samples are integers: a float recorder or a lossy codec exceeds
# full scale by some dB only, and speech in 16-bit integers with a peak of 16 would be inaudible.
OVER = 16.0
FULL = 0.99  # of full scale: 8-bit samples end at 0.992
# The mean of uncorrelated channels, or of one live channel among silent ones, has the energy sum(energy) / channels^2. It
# has a tenth of that (10 dB less) only where one channel is the inverse of the other, at a correlation below -0.9.
CANCELLED = 0.1
AUDIBLE = 1e-8  # -80 dBFS, as a mean square: quieter channels are not tested for cancellation


@dataclass(frozen=True)
class Mix:
    """Turns (frames, channels) into (frames,) within full scale."""

    factor: float = 1.0  # the samples are multiplied by it
    channel: int | None = None  # the channel to use; None: the mean of all
    peak: float = 0.0

    def __call__(self, block: np.ndarray) -> np.ndarray:
        mono = block.mean(axis=1) if self.channel is None else block[:, self.channel]
        return mono if self.factor == 1.0 else (mono * np.float64(self.factor)).astype(np.float32)

    def corrections(self) -> Iterator[tuple[str, str]]:
        """Yields (reason, detail) of each correction."""
        if self.factor != 1.0:
            yield "scaled", f"samples up to {self.peak:.6g}, expected at most 1: multiplied with {self.factor:.6g}"
        if self.channel is not None:
            yield "one_channel", f"the channels cancel each other out: only channel {self.channel + 1} is taken"


class Levels:
    """Measures a recording block by block."""

    def __init__(self) -> None:
        self._frames, self._peak = 0, 0.0
        self._full = np.zeros((len(SCALES), 1), np.int64)  # (scale, channel): number of samples at that full scale
        self._sums: np.ndarray = np.zeros(1)  # (channel,)
        self._products: np.ndarray = np.zeros((1, 1))  # (channel, channel)

    def add(self, block: np.ndarray) -> None:
        """block: (frames, channels) at the file's own rate and scale."""
        if not len(block):
            return
        size = np.abs(block)
        peak = float(size.max())
        self._frames, self._peak = self._frames + len(block), max(self._peak, peak)
        reached = [scale for scale in SCALES if peak >= FULL * scale]
        full = [np.count_nonzero(size >= FULL * scale, axis=0) for scale in reached]
        none = [np.zeros(block.shape[1], np.int64)] * (len(SCALES) - len(full))
        self._full = self._full + np.stack([*full, *none])
        if block.shape[1] > 1:
            wide = block.astype(np.float64)
            self._sums = self._sums + wide.sum(axis=0)
            self._products = self._products + wide.T @ wide

    def mix(self) -> Mix:
        """Returns how to mix the channels, once all blocks have been added."""
        return Mix(self._factor(), self._channel(), self._peak)

    def clipped(self) -> float:
        """Returns the share of samples at full scale, in the channel with the highest share."""
        scale = self._scale()
        if self._peak > 2 * SCALES[scale]:  # a peak twice as high: the samples were not cut at full scale
            return 0.0
        return float(self._full[scale].max() / max(1, self._frames))

    def _scale(self) -> int:
        return next((index for index, scale in enumerate(SCALES) if self._peak <= OVER * scale), len(SCALES) - 1)

    def _factor(self) -> float:
        return 1 / max(self._peak, SCALES[self._scale()]) if self._peak > 1 else 1.0

    def _channel(self) -> int | None:
        """Returns the loudest channel if the channels cancel each other out, else None. A constant offset is ignored."""
        if len(self._sums) < 2 or not self._frames:
            return None
        means = self._sums / self._frames
        covariance = self._products / self._frames - np.outer(means, means)
        energy = np.diag(covariance)
        cancels = covariance.sum() < CANCELLED * energy.sum() and energy.max() > AUDIBLE
        return int(energy.argmax()) if cancels else None
