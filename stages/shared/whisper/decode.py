"""Transcribes clips greedily with transformers' `generate`. All stages decode text here."""

import copy
import math
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutput

from stages.shared.audio import SAMPLE_RATE, is_silent
from stages.shared.whisper.alignment import align
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.targets import prompt_ids, token_of
from stages.shared.whisper.window import POSITIONS_PER_SECOND
from stages.shared.whisper.words import Word, split_words, timed_words

# Shapes: B clips of a batch, T positions, S encoder positions, D model width
LOOP_TOKENS, LOOP_REPEATS = 24, 4  # a loop is at least so many tokens, in at least so many copies of one piece
LONGEST_PIECE = 32  # tokens
CHECK_EVERY = 8  # tokens

Gates = dict[str, list[torch.Tensor]]  # layer -> a (B, T) for each call; {} for a model without experts


def loop_start(tokens: list[int]) -> int | None:
    """Returns where the repeated copies begin if `tokens` ends in a loop, else None. The first copy is not in the loop.

    Greedy decoding that repeats itself goes on up to the last allowed token. One such clip adds hundreds of errors.
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
    """Stops the rows of a batch that are in a loop. The others go on."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.Tensor:  # type: ignore[override]
        ended = [False] * len(input_ids)
        if input_ids.shape[1] % CHECK_EVERY == 0:
            ended = [loop_start(row) is not None for row in input_ids.tolist()]
        return torch.tensor(ended, device=input_ids.device)


@dataclass(frozen=True)
class Transcript:
    tokens: list[int]  # after the prompt; ends with end of text if that was reached
    text: str  # stripped
    looped: bool  # ends in a loop; if loops are cut, one copy of the repeated piece is left
    unended: bool  # stopped at the greatest number of tokens: its end is missing
    compression_ratio: float  # of the text with its loop, see `compression_ratio`
    silent: bool = False  # the clip is silent and was not decoded
    language: str = ""  # code of the language that it was decoded as
    start: float = 0.0  # seconds: of the first word and the last one, or of the window if there are none
    end: float = 0.0
    words: tuple[Word, ...] = ()  # with times, where these were asked for


class Transcriber:
    """Transcribes greedily, without timestamps, on the model's device. A model with experts uses those of `language`.

    A text may have as many tokens as the decoder has positions (448 less the prompt).
    cut_loops: stop a text that repeats itself, and keep one copy of the repeated piece.
    Raises PipelineError for a language that the model has no token for.
    """

    def __init__(self, whisper: Whisper, language: str, dtype: torch.dtype, cut_loops: bool = True):
        self.whisper, self.language, self.dtype, self.cut_loops = whisper, language, dtype, cut_loops
        self.log_mel = LogMel(whisper.model.config.num_mel_bins, whisper.audio_window_s)
        self.spoken = {} if whisper.english_only else {"language": f"<|{language}|>", "task": "transcribe"}
        self.prompt = prompt_ids(whisper, language)
        self.config = copy.deepcopy(whisper.model.generation_config)
        if token := getattr(self.config, "lang_to_id", {}).get(f"<|{token_of(whisper.model, language)}|>"):
            self.config.lang_to_id = {**self.config.lang_to_id, f"<|{language}|>": token}
        self.config.update(num_beams=1, do_sample=False, max_length=None)
        self.max_tokens = whisper.model.config.max_target_positions - len(self.prompt)
        self.config.max_new_tokens = self.max_tokens
        # Timestamps are suppressed: `generate` seeks back at one that was not asked for, at worst for ever.
        stamps = range(self.config.no_timestamps_token_id + 1, whisper.model.config.vocab_size)
        self.config.suppress_tokens = [*(self.config.suppress_tokens or []), *stamps]

    def __call__(self, clips: list[np.ndarray]) -> list[Transcript]:
        """Returns a transcript of each clip: (samples,) float32 at 16 kHz, at most one window. Silent clips have no text."""
        return self.with_gates(clips)[0]

    @torch.inference_mode()
    def with_gates(self, clips: list[np.ndarray], timed: Sequence[bool] = ()) -> tuple[list[Transcript], Gates]:
        """Returns the transcripts, and the gates of the clips that are not silent, in their order.

        timed: for each clip, whether its transcript gets its words with their times in the clip; (): none does.
        """
        audible = [number for number, clip in enumerate(clips) if not is_silent(clip)]
        found = {number: self._silence() for number in range(len(clips))}
        gates: Gates = {}
        if audible:
            features = self.log_mel([clips[number] for number in audible]).to(self.whisper.model.device)
            with self._route() as routing, self._autocast():
                encoded_BSD = self.whisper.model.model.encoder(features).last_hidden_state
                found |= zip(audible, self._generate(encoded_BSD), strict=True)
                gates = routing.gates if routing else {}
            rows = [row for row, number in enumerate(audible) if timed and timed[number] and found[number].text]
            numbers = [audible[row] for row in rows]
            words = self._words(encoded_BSD[rows], [found[n] for n in numbers], [clips[n] for n in numbers])
            found |= {n: replace(found[n], words=own) for n, own in zip(numbers, words, strict=True)}
        return list(found.values()), gates

    def _words(
        self, encoded_BSD: torch.Tensor, transcripts: list[Transcript], clips: list[np.ndarray]
    ) -> list[tuple[Word, ...]]:
        """Returns the words of each clip with their times in it. The decoder reads each text once more, for its attention."""
        if not transcripts:
            return []
        end = self.whisper.tokenizer.eos_token_id
        texts = [[token for token in one.tokens if token < end] for one in transcripts]
        positions = [math.ceil(len(clip) / SAMPLE_RATE * POSITIONS_PER_SECOND) for clip in clips]
        with self._route(), self._autocast():
            aligned = align(self.whisper.model, encoded_BSD, self.prompt, texts, positions)
        pieces = [split_words(self.whisper.tokenizer, ids, self.language) for ids in texts]
        return [timed_words(own, *times, clip) for own, times, clip in zip(pieces, aligned, clips, strict=True)]

    @torch.inference_mode()
    def decode(self, encoded_BSD: torch.Tensor, silent: Sequence[bool]) -> list[Transcript]:
        """Returns transcripts from the encoder's output (B, S, D). silent: for each clip; a silent one has no text.

        Raises ValueError for a model with experts: the output does not tell whether its encoder used them.
        """
        if hasattr(self.whisper.model, "route"):
            raise ValueError("a model with experts: give the clips, so that its encoder also uses the experts")
        with self._autocast():
            found = self._generate(encoded_BSD)
        return [self._silence() if nothing else one for one, nothing in zip(found, silent, strict=True)]

    def _route(self) -> AbstractContextManager[Any]:
        """Routes all calls within the block if the model has experts. Does nothing for a plain Whisper."""
        model: Any = self.whisper.model
        return model.route(self.language) if hasattr(model, "route") else nullcontext()

    def _generate(self, encoded_BSD: torch.Tensor) -> list[Transcript]:
        rows = self.whisper.model.generate(
            encoder_outputs=BaseModelOutput(encoded_BSD),
            **self.spoken,
            generation_config=self.config,
            stopping_criteria=StoppingCriteriaList([_EndOfLoops()] if self.cut_loops else []),
        )
        return [self._transcript(row) for row in rows.tolist()]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.whisper.model.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _silence(self) -> Transcript:
        end = self.whisper.tokenizer.eos_token_id
        return Transcript([end], "", False, False, 0.0, silent=True, language=self.language)

    def _transcript(self, row: list[int]) -> Transcript:
        """Removes the padding. `generate` strips end of text from the longest clips of a batch: it is added again."""
        end = self.whisper.tokenizer.eos_token_id
        tokens = row[: row.index(end)] if end in row else row
        loop = loop_start(tokens)
        cut = loop is not None and self.cut_loops
        unended = not cut and end not in row and len(tokens) == self.max_tokens
        kept = tokens[:loop] if cut else tokens
        return Transcript(
            tokens=kept if cut or unended else [*kept, end],
            text=self.text(kept),
            looped=loop is not None,
            unended=unended,
            compression_ratio=compression_ratio(self.text(tokens)),
            language=self.language,
        )

    def text(self, tokens: list[int]) -> str:
        return self.whisper.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def compression_ratio(text: str) -> float:
    """Returns the bytes of the text divided by its compressed bytes, as openai/whisper does. Above 2.4 it mostly repeats."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))
