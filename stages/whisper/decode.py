"""Greedy transcription of clips through transformers' `generate`."""

import copy
import math

import numpy as np
import torch

from stages.whisper.features import LogMel
from stages.whisper.models import Whisper
from stages.whisper.targets import prompt_ids
from stages.whisper.window import FULL_WINDOW_S

TOKENS_PER_FULL_WINDOW = 224  # openai/whisper's sample_len: half of the 448 text positions


def max_new_tokens(audio_window_s: int) -> int:
    """The most tokens a window may give: Whisper's 224 for 30 s, in proportion for less, so that loops end early."""
    return math.ceil(TOKENS_PER_FULL_WINDOW * audio_window_s / FULL_WINDOW_S) + 8


class Transcriber:
    """Greedy transcription without timestamps, on the device where the model is."""

    def __init__(self, whisper: Whisper, language: str, dtype: torch.dtype):
        self.whisper, self.language, self.dtype = whisper, language, dtype
        self.log_mel = LogMel(whisper.model.config.num_mel_bins, whisper.audio_window_s)
        prompt_ids(whisper.tokenizer, language)  # refuses a language that the model has no token for
        self.config = copy.deepcopy(whisper.model.generation_config)
        self.config.update(num_beams=1, do_sample=False, max_length=None)
        self.config.max_new_tokens = max_new_tokens(whisper.audio_window_s)

    def __call__(self, clips: list[np.ndarray]) -> list[str]:
        """16 kHz clips of at most one window -> their texts, stripped."""
        return self.texts(self.tokens(clips))

    @torch.inference_mode()
    def tokens(self, clips: list[np.ndarray]) -> list[list[int]]:
        """The tokens after the prompt, up to and with end of text where it was reached."""
        features = self.log_mel(clips).to(self.whisper.model.device)
        with torch.autocast(features.device.type, self.dtype, enabled=self.dtype != torch.float32):
            rows = self.whisper.model.generate(
                features, language=self.language, task="transcribe", generation_config=self.config
            )
        end = self.whisper.tokenizer.eos_token_id
        return [row[: row.index(end) + 1] if end in row else row for row in rows.tolist()]

    def texts(self, tokens: list[list[int]]) -> list[str]:
        return [text.strip() for text in self.whisper.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
