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
        # without timestamps asked for, one that is generated all the same makes `generate` seek back, at worst for ever
        stamps = range(self.config.no_timestamps_token_id + 1, whisper.model.config.vocab_size)
        self.config.suppress_tokens = [*(self.config.suppress_tokens or []), *stamps]

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
        return [self._ended(row) for row in rows.tolist()]

    def _ended(self, row: list[int]) -> list[int]:
        """Without padding; `generate` strips end of text where no other clip of the batch was longer."""
        end = self.whisper.tokenizer.eos_token_id
        text = row[: row.index(end)] if end in row else row
        return [*text, end] if len(text) < self.config.max_new_tokens else text

    def texts(self, tokens: list[list[int]]) -> list[str]:
        return [text.strip() for text in self.whisper.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
