"""Log-mel features, per utterance: Whisper's dynamic-range floor is a maximum over the tensor it is given."""

import math

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

SILENCE = 1e-10  # the least power in a mel bin that counts; digital silence has it everywhere
RANGE = 8.0  # decades of power below an utterance's loudest bin; what is quieter is raised to that


class LogMel:
    """16 kHz samples of at most `audio_window_s` seconds -> log-mel (B, mels, 100*audio_window_s), float32.

    The values of `WhisperFeatureExtractor`, which pads a clip with zeros to the window; here only frames that touch the
    clip are computed, one clip at a time, so that a batch is bit for bit its clips. May be called from several threads.
    """

    def __init__(self, mels: int, audio_window_s: int):
        extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=audio_window_s)
        self.n_fft, self.hop, self.window = extractor.n_fft, extractor.hop_length, extractor.n_samples
        self.hann = torch.hann_window(self.n_fft)
        self.filters_MF = torch.from_numpy(extractor.mel_filters.T.astype(np.float32, order="C"))

    def __call__(self, clips: list[np.ndarray]) -> torch.Tensor:
        """clips: (samples,) float32 each; an empty one is silence."""
        features = torch.empty(len(clips), len(self.filters_MF), self.window // self.hop)
        for clip, feature_MT in zip(clips, features, strict=True):
            log_mel_MT = self._log_mel(clip)
            floor = max(float(log_mel_MT.max()) - RANGE, math.log10(SILENCE))
            frames = log_mel_MT.shape[1]
            feature_MT[:, :frames] = log_mel_MT.clamp_(min=floor).add_(4).div_(4)
            feature_MT[:, frames:] = (floor + 4) / 4
        return features

    def _log_mel(self, clip: np.ndarray) -> torch.Tensor:
        """(mels, frames) of log10 power, as far as frames reach into the clip."""
        assert len(clip) <= self.window, f"{len(clip)} samples in a window of {self.window}"
        centre = (
            self.n_fft // 2
        )  # a frame's middle lies on a multiple of the hop, so the first one begins before the clip
        reach = -(-(len(clip) + centre) // self.hop) * self.hop
        padded = np.pad(clip, (0, min(reach, self.window) - len(clip)))  # past it, frames would hold zeros alone
        samples = torch.from_numpy(np.pad(padded, centre, mode="reflect"))
        spectrum_TF = torch.fft.rfft(samples.unfold(0, self.n_fft, self.hop)[:-1] * self.hann)
        squares_TF2 = torch.view_as_real(spectrum_TF).square_()
        power_TF = squares_TF2[..., 0] + squares_TF2[..., 1]
        return (self.filters_MF @ power_TF.T).clamp_(min=SILENCE).log10_()
