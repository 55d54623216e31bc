"""Makes target tokens and decoder inputs. Teacher and student both use these functions, so that theirs are equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from cache.errors import PipelineError
from stages.shared.whisper.languages import (
    LANGUAGES,
    WITHOUT_SPACES,
    how_to_name_a_token,
    language_name,
    token_language,
)
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.timestamps import check_timestamps, is_timed, prompt_before, with_times

# Shapes: B rows of a batch, P tokens of a row's prompt, T target tokens of one text, N target tokens of all rows


def token_of(model: WhisperForConditionalGeneration, language: str) -> str:
    """Returns the language whose token stands for `language` in the model's prompts: itself, or the one of `use_token`."""
    return (getattr(model.config, "language_tokens", None) or {}).get(language, language)


def other_tokens(model: WhisperForConditionalGeneration, languages: Sequence[str]) -> dict[str, str]:
    """Maps the languages that have no token of their own in prompts to the language whose token stands for them."""
    tokens = {language: token_of(model, language) for language in languages}
    return {language: token for language, token in tokens.items() if token != language}


def use_token(model: WhisperForConditionalGeneration, language: str, token: str | None) -> None:
    """Makes the token of the language `token` stand for `language` in prompts. None changes nothing.

    The choice is saved with the model's configuration. Raises PipelineError where the model already has another one.
    """
    if token is None:
        return
    code, recorded = token_language(token), getattr(model.config, "language_tokens", None) or {}
    if recorded.get(language, code) != code:
        raise PipelineError(
            f"{model.config.name_or_path or 'this model'} was trained for {language_name(language)} ({language}) under the "
            f"token of '{recorded[language]}', asked for '{code}': they must agree"
        )
    model.config.language_tokens = {**recorded, language: code}


def prompt_language(model: WhisperForConditionalGeneration, language: str) -> str:
    """Returns the token that stands for `language` in prompts, such as `<|es|>`. Raises PipelineError where there is none."""
    code = token_of(model, language)
    if code not in LANGUAGES:
        raise PipelineError(how_to_name_a_token(language))
    return f"<|{code}|>"


def prompt_ids(whisper: Whisper, language: str) -> list[int]:
    """Returns the prompt (P,): start of transcript, language, transcribe, no timestamps.

    The prompt of an English-only model has neither language nor task. Raises PipelineError where no token of the model
    stands for `language`.
    """
    token = prompt_language(whisper.model, language)
    if whisper.english_only and token != "<|en|>":
        raise PipelineError(
            f"{whisper.model_id} is an English-only model, the language is '{language}': expected a multilingual Whisper"
        )
    chosen = [] if whisper.english_only else [token, "<|transcribe|>"]
    names = ["<|startoftranscript|>", *chosen, "<|notimestamps|>"]
    tokenizer = whisper.tokenizer
    ids = tokenizer.convert_tokens_to_ids(names)
    for name, token in zip(names, ids, strict=True):
        if token is None or token == tokenizer.unk_token_id:
            raise PipelineError(
                f"{whisper.model_id}: no token {name}: it does not know this language; give a model that does, or "
                f"{how_to_name_a_token(language).partition(': ')[2]}"
            )
    return ids


def target_ids(tokenizer: WhisperTokenizer, text: str, language: str) -> list[int]:
    """Returns the transcript's tokens and end of text, (T,).

    Where the language writes spaces, the text begins with one, as Whisper's own transcripts do. Without the space the
    teacher gives the first token a low probability.
    """
    spaced = text if language in WITHOUT_SPACES else f" {text}"
    ids = tokenizer.encode(spaced, add_special_tokens=False)
    if any(token >= tokenizer.eos_token_id for token in ids):
        ids = _plain_ids(tokenizer, spaced)
    return [*ids, tokenizer.eos_token_id]


def _plain_ids(tokenizer: WhisperTokenizer, text: str) -> list[int]:
    """Returns the tokens of a text's letters, also where it holds the name of a control token, such as "<|endoftext|>".

    `split_special_tokens` does not help: it leaves timestamps, which are added tokens but not special ones. It also is
    state of the tokenizer, which threads share.
    """
    backend = tokenizer.backend_tokenizer
    words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]


@dataclass(frozen=True)
class TargetForm:
    """How the texts of a language become targets, by the ids of one model.

    prompt: as of targets without times. timestamps: the share of the utterances whose targets carry times.
    """

    tokenizer: WhisperTokenizer
    language: str
    prompt: list[int]
    timestamps: float = 0.0

    def of_transcript(self, utterance: dict[str, Any]) -> list[int]:
        """Returns the targets (T,) of an utterance's transcript."""
        return self.of_words(utterance, target_ids(self.tokenizer, utterance["text"], self.language))

    def of_words(self, utterance: dict[str, Any], ids: list[int]) -> list[int]:
        """Returns the targets (T,) of an utterance for which `ids` are its words: text and its end."""
        if not is_timed(utterance["id"], self.timestamps):
            return ids
        return with_times(ids, utterance["seconds"], self.prompt[-1])


def target_form(whisper: Whisper, language: str, timestamps: float) -> TargetForm:
    """Raises PipelineError where no token of the model stands for `language`, or where it lacks those of times."""
    prompt = prompt_ids(whisper, language)
    if timestamps:
        check_timestamps(whisper.tokenizer, whisper.model.config.vocab_size, whisper.audio_window_s, whisper.model_id)
    return TargetForm(whisper.tokenizer, language, prompt, timestamps)


class Room(NamedTuple):
    """How much a model takes of an utterance."""

    seconds: int  # of audio
    positions: int  # of the decoder


def room_of(whisper: Whisper) -> Room:
    return Room(whisper.audio_window_s, whisper.model.config.max_target_positions)


def reason_to_leave_out(room: Room, seconds: float, prompt: list[int], targets: list[int]) -> tuple[str, str] | None:
    """Returns (reason, detail) if a model with `room` can neither be trained on an utterance nor score it, else None.

    prompt: as of targets without times.
    """
    if seconds > room.seconds:
        return "too_long", f"{seconds:.2f} s in a window of {room.seconds} s"
    # the decoder reads the prompt and all targets but the last
    if len(prompt_before(prompt, targets)) + len(targets) - 1 > room.positions:
        return "too_many_tokens", f"{len(targets)} tokens, {room.positions} positions"
    return None


def reason_against_transcript(form: TargetForm, room: Room, utterance: dict[str, Any]) -> tuple[str, str] | None:
    """Returns (reason, detail) if a model with `room` cannot be trained on an utterance's transcript, else None."""
    if not utterance["text"]:
        return "no_text", "no transcript"
    return reason_to_leave_out(room, utterance["seconds"], form.prompt, form.of_transcript(utterance))


def decoder_inputs(prompts: list[list[int]], targets: list[list[int]], pad: int) -> torch.Tensor:
    """Returns each row's prompt and its targets but the last, padded with `pad` to (B, max (P + T) - 1)."""
    rows = [prompt + ids[:-1] for prompt, ids in zip(prompts, targets, strict=True)]
    length = max(map(len, rows))
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def target_positions(prompts: list[list[int]], targets: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (rows, columns), (N,) each: the decoder positions whose next token is a target, row by row."""
    rows = torch.cat([torch.full((len(ids),), row) for row, ids in enumerate(targets)])
    firsts = [len(prompt) - 1 for prompt in prompts]
    columns = torch.cat([torch.arange(first, first + len(ids)) for first, ids in zip(firsts, targets, strict=True)])
    return rows, columns
