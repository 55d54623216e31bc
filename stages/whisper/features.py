"""Log-mel features, per utterance: Whisper's dynamic-range floor is a maximum over the tensor it is given."""

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from stages.audio import SAMPLE_RATE


class LogMel:
    """16 kHz samples of at most `audio_window_s` seconds -> log-mel (B, mels, 100*audio_window_s), float32."""

    def __init__(self, mels: int, audio_window_s: int):
        self.extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=audio_window_s)

    def __call__(self, clips: list[np.ndarray]) -> torch.Tensor:
        longest = max(len(clip) for clip in clips)
        assert longest <= self.extractor.n_samples, f"{longest} samples in a window of {self.extractor.n_samples}"
        # batched, the extractor still takes its maximum over each clip by itself
        features = self.extractor(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        return features["input_features"]
