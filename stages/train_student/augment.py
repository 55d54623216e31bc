"""SpecAugment (Park et al. 2019) as in transformers' Whisper: sets stretches of frames and of mel bins to 0."""

# Shapes: T frames.

import numpy as np
import torch

from stages.train_student.settings import TrainSettings


def spec_augment(features: torch.Tensor, frames: int, seed: tuple[int, ...], settings: TrainSettings) -> torch.Tensor:
    """Returns a masked copy of one clip's log-mel (mels, T); `frames` of T hold audio. The masks depend on `seed` only."""
    random = np.random.default_rng(seed)
    masked = features.clone()
    time = spans(frames, settings.mask_time_prob, settings.mask_time_length, random)
    masked[:, :frames][:, torch.from_numpy(time)] = 0
    mels = spans(len(features), settings.mask_feature_prob, settings.mask_feature_length, random)
    masked[torch.from_numpy(mels), :frames] = 0
    return masked


def spans(size: int, share: float, length: int, random: np.random.Generator) -> np.ndarray:
    """Returns (size,) bool, true in stretches of `length`. They cover `share` of it, or less where they overlap.

    The number of stretches is rounded up or down at random: on average it is exact for short clips, too.
    """
    mask, starts = np.zeros(size, bool), size - length + 1
    count = min(int(share * size / length + random.random()), size // length)
    for start in random.choice(starts, count, replace=False) if count else ():
        mask[start : start + length] = True
    return mask
