"""How loud a recording is, and what follows from it: the scale of its samples, and how its channels are made one."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# What 1.0 may have been written as, where integers were stored as floats: of 16, 24 and 32 bits.
SCALES = (1.0, 2.0**15, 2.0**23, 2.0**31)
# A file with its peak beyond 24 dB over full scale is not loud, its samples are integers: a float recorder or a lossy
# codec goes over by some dB, and speech in 16-bit integers with a peak of 16 would be inaudible.
OVER = 16.0
FULL = 0.99  # of full scale: 8-bit samples end at 0.992
# Channels that have nothing in common leave a mean of sum(energy) / channels^2, a single live one among silent ones does
# the same. A tenth of that (10 dB less) is left only where one is the other's inverse, at a correlation below -0.9.
CANCELLED = 0.1
AUDIBLE = 1e-8  # -80 dBFS, as a mean square: below it there is nothing that could cancel


@dataclass(frozen=True)
class Mix:
    """What makes (frames, channels) one channel within full scale."""

    factor: float = 1.0  # that the samples are multiplied with
    channel: int | None = None  # the one that is taken; None: the mean of all
    peak: float = 0.0

    def __call__(self, block: np.ndarray) -> np.ndarray:
        mono = block.mean(axis=1) if self.channel is None else block[:, self.channel]
        return mono if self.factor == 1.0 else (mono * np.float64(self.factor)).astype(np.float32)

    def corrections(self) -> Iterator[tuple[str, str]]:
        """(reason, detail) of each thing that is put right."""
        if self.factor != 1.0:
            yield "scaled", f"samples up to {self.peak:.6g}, expected at most 1: multiplied with {self.factor:.6g}"
        if self.channel is not None:
            yield "one_channel", f"the channels cancel each other out: only channel {self.channel + 1} is taken"


class Levels:
    """What `add` has been given of a recording, block by block."""

    def __init__(self) -> None:
        self._frames, self._peak = 0, 0.0
        self._full = np.zeros((len(SCALES), 1), np.int64)  # (scale, channel): samples at that scale's end
        self._sums: np.ndarray = np.zeros(1)  # (channel,)
        self._products: np.ndarray = np.zeros((1, 1))  # (channel, channel)

    def add(self, block: np.ndarray) -> None:
        """block: (frames, channels), the native samples."""
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
        return Mix(self._factor(), self._channel(), self._peak)

    def clipped(self) -> float:
        """The share of samples at full scale, of the channel that has most of them."""
        scale = self._scale()
        if self._peak > 2 * SCALES[scale]:  # twice as far: whatever lies between was not cut there
            return 0.0
        return float(self._full[scale].max() / max(1, self._frames))

    def _scale(self) -> int:
        return next((index for index, scale in enumerate(SCALES) if self._peak <= OVER * scale), len(SCALES) - 1)

    def _factor(self) -> float:
        return 1 / max(self._peak, SCALES[self._scale()]) if self._peak > 1 else 1.0

    def _channel(self) -> int | None:
        """The louder one, where the channels cancel each other out; a constant offset counts for nothing."""
        if len(self._sums) < 2 or not self._frames:
            return None
        means = self._sums / self._frames
        covariance = self._products / self._frames - np.outer(means, means)
        energy = np.diag(covariance)
        cancels = covariance.sum() < CANCELLED * energy.sum() and energy.max() > AUDIBLE
        return int(energy.argmax()) if cancels else None
