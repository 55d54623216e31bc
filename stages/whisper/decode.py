"""Greedy transcription of clips through transformers' `generate`."""

import copy
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutput

from stages.whisper.features import LogMel
from stages.whisper.models import Whisper
from stages.whisper.targets import prompt_ids, token_of

MAX_TOKENS = 224  # openai/whisper's sample_len: half of the 448 text positions
TOKENS_PER_SECOND = 15  # more than any speech has, in scripts of several tokens a letter too: ends runaway text early
LOOP_TOKENS, LOOP_REPEATS = 24, 4  # a loop: at least so many tokens, in at least so many copies of one piece
LONGEST_PIECE = 32
CHECK_EVERY = 8


def max_new_tokens(audio_window_s: int) -> int:
    """The most tokens a window may give."""
    return min(MAX_TOKENS, TOKENS_PER_SECOND * audio_window_s)


def loop_start(tokens: list[int]) -> int | None:
    """Where the loop begins that `tokens` ends in, after the first copy of what it repeats; None where there is none.

    Greedy decoding that repeats itself does so up to its last allowed token; one such clip counts hundreds of errors.
    """
    for piece in range(1, LONGEST_PIECE + 1):
        start = len(tokens)
        while start > piece and tokens[start - 1] == tokens[start - 1 - piece]:
            start -= 1
        repeated = len(tokens) - start + piece
        if repeated >= max(LOOP_TOKENS, LOOP_REPEATS * piece):
            return start
    return None


class _EndOfLoops(StoppingCriteria):
    """Ends each row of a batch that is in a loop; the others go on."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.Tensor:  # type: ignore[override]
        ended = [False] * len(input_ids)
        if input_ids.shape[1] % CHECK_EVERY == 0:
            ended = [loop_start(row) is not None for row in input_ids.tolist()]
        return torch.tensor(ended, device=input_ids.device)


@dataclass(frozen=True)
class Transcript:
    tokens: list[int]  # after the prompt, up to and with end of text where it was reached
    text: str  # stripped
    looped: bool  # ended for repeating itself; of the repeated piece one copy is left
    ended: bool  # by end of text, neither by a loop nor by the most tokens there may be
    compression_ratio: float  # of the text with its loop


class Transcriber:
    """Greedy transcription without timestamps, on the device where the model is."""

    def __init__(self, whisper: Whisper, language: str, dtype: torch.dtype):
        self.whisper, self.language, self.dtype = whisper, language, dtype
        self.log_mel = LogMel(whisper.model.config.num_mel_bins, whisper.audio_window_s)
        prompt_ids(whisper, language)  # refuses a language that the model has no token for
        self.spoken = {} if whisper.english_only else {"language": f"<|{language}|>", "task": "transcribe"}
        self.config = copy.deepcopy(whisper.model.generation_config)
        if token := getattr(self.config, "lang_to_id", {}).get(f"<|{token_of(whisper.model, language)}|>"):
            self.config.lang_to_id = {**self.config.lang_to_id, f"<|{language}|>": token}
        self.config.update(num_beams=1, do_sample=False, max_length=None)
        self.config.max_new_tokens = max_new_tokens(whisper.audio_window_s)
        # without timestamps asked for, one that is generated all the same makes `generate` seek back, at worst for ever
        stamps = range(self.config.no_timestamps_token_id + 1, whisper.model.config.vocab_size)
        self.config.suppress_tokens = [*(self.config.suppress_tokens or []), *stamps]

    @torch.inference_mode()
    def __call__(self, clips: list[np.ndarray]) -> list[Transcript]:
        """16 kHz clips of at most one window -> what is said in each."""
        features = self.log_mel(clips).to(self.whisper.model.device)
        with self._autocast():
            return self.decode(self.whisper.model.model.encoder(features).last_hidden_state)

    @torch.inference_mode()
    def decode(self, encoded_BSD: torch.Tensor) -> list[Transcript]:
        """The encoder's output of B clips -> what is said in each."""
        with self._autocast():
            rows = self.whisper.model.generate(
                encoder_outputs=BaseModelOutput(encoded_BSD),
                **self.spoken,
                generation_config=self.config,
                stopping_criteria=StoppingCriteriaList([_EndOfLoops()]),
            )
        return [self._transcript(row) for row in rows.tolist()]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.whisper.model.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _transcript(self, row: list[int]) -> Transcript:
        """Without padding; `generate` strips end of text where no other clip of the batch was longer."""
        end = self.whisper.tokenizer.eos_token_id
        tokens = row[: row.index(end)] if end in row else row
        loop = loop_start(tokens)
        ended = loop is None and len(tokens) < self.config.max_new_tokens
        return Transcript(
            tokens=[*tokens[:loop], end] if ended else tokens[:loop],
            text=self._text(tokens[:loop]),
            looped=loop is not None,
            ended=ended,
            compression_ratio=compression_ratio(self._text(tokens)),
        )

    def _text(self, tokens: list[int]) -> str:
        return self.whisper.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def compression_ratio(text: str) -> float:
    """Bytes of the text per byte of it compressed, as openai/whisper has it: above 2.4 it mostly repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))
