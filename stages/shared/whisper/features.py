"""Log-mel features, computed one utterance at a time: the floor of Whisper's dynamic range depends on the loudest bin."""

import math

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

# Shapes: B clips of a batch, M mel bins, T frames, F frequencies
SILENCE = 1e-10  # least power in a mel bin; less is raised to it, as digital silence is
RANGE = 8.0  # decades of power below an utterance's loudest bin; quieter bins are raised to this floor


class LogMel:
    """Turns 16 kHz clips of at most `audio_window_s` seconds into log-mel features (B, M, 100*audio_window_s), float32.

    The values are those of `WhisperFeatureExtractor`, which pads a clip with zeros to the window. Here only the frames that
    touch the clip are computed, one clip at a time: a batch has bit for bit the features of its clips. Thread-safe.
    """

    def __init__(self, mels: int, audio_window_s: int):
        extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=audio_window_s)
        self.n_fft, self.hop, self.window = extractor.n_fft, extractor.hop_length, extractor.n_samples
        self.hann = torch.hann_window(self.n_fft)
        self.filters_MF = torch.from_numpy(extractor.mel_filters.T.astype(np.float32, order="C"))

    def __call__(self, clips: list[np.ndarray]) -> torch.Tensor:
        """Returns the features. clips: (samples,) float32 each; an empty clip is silence."""
        features = torch.empty(len(clips), len(self.filters_MF), self.window // self.hop)
        for clip, feature_MT in zip(clips, features, strict=True):
            log_mel_MT = self._log_mel(clip)
            floor = max(float(log_mel_MT.max()) - RANGE, math.log10(SILENCE))
            frames = log_mel_MT.shape[1]
            feature_MT[:, :frames] = log_mel_MT.clamp_(min=floor).add_(4).div_(4)
            feature_MT[:, frames:] = (floor + 4) / 4
        return features

    def _log_mel(self, clip: np.ndarray) -> torch.Tensor:
        """Returns log10 power (M, T) of the frames that reach into the clip."""
        assert len(clip) <= self.window, f"{len(clip)} samples in a window of {self.window}"
        # a frame's middle lies on a multiple of the hop, so that the first frame begins before the clip
        centre = self.n_fft // 2
        reach = -(-(len(clip) + centre) // self.hop) * self.hop
        padded = np.pad(clip, (0, min(reach, self.window) - len(clip)))  # later frames would hold zeros only
        samples = torch.from_numpy(np.pad(padded, centre, mode="reflect"))
        spectrum_TF = torch.fft.rfft(samples.unfold(0, self.n_fft, self.hop)[:-1] * self.hann)
        squares_TF2 = torch.view_as_real(spectrum_TF).square_()
        power_TF = squares_TF2[..., 0] + squares_TF2[..., 1]
        return (self.filters_MF @ power_TF.T).clamp_(min=SILENCE).log10_()
