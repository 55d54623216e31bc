"""Target tokens and the decoder's inputs: one place, so that teacher and student read the same ones."""

import torch
from transformers import WhisperTokenizer

from cache.errors import PipelineError
from stages.whisper.languages import WITHOUT_SPACES
from stages.whisper.models import Whisper


def prompt_ids(whisper: Whisper, language: str) -> list[int]:
    """start of transcript, language, transcribe, no timestamps; an English-only model's prompt names neither of the two.

    Raises PipelineError for a language that the model does not know.
    """
    if whisper.english_only and language != "en":
        raise PipelineError(
            f"{whisper.source} is an English-only model, the language is '{language}': expected a multilingual Whisper"
        )
    chosen = [] if whisper.english_only else [f"<|{language}|>", "<|transcribe|>"]
    names = ["<|startoftranscript|>", *chosen, "<|notimestamps|>"]
    tokenizer = whisper.tokenizer
    ids = tokenizer.convert_tokens_to_ids(names)
    for name, token in zip(names, ids, strict=True):
        if token is None or token == tokenizer.unk_token_id:
            raise PipelineError(f"{whisper.source}: no token {name}: it does not know this language")
    return ids


def target_ids(tokenizer: WhisperTokenizer, text: str, language: str) -> list[int]:
    """The transcript's tokens and end of text, (T,).

    With a leading space where the language writes spaces, as Whisper itself begins its transcripts: without it the
    first token is off the teacher's distribution.
    """
    spaced = text if language in WITHOUT_SPACES else f" {text}"
    ids = tokenizer.encode(spaced, add_special_tokens=False)
    if any(token >= tokenizer.eos_token_id for token in ids):
        ids = _plain_ids(tokenizer, spaced)
    return [*ids, tokenizer.eos_token_id]


def _plain_ids(tokenizer: WhisperTokenizer, text: str) -> list[int]:
    """Of a text that holds the name of a control token, such as "<|endoftext|>": the tokens of its letters.

    `split_special_tokens` would not do: it leaves time stamps, which are added tokens but not special ones, and it is a state
    of the tokenizer, which threads share.
    """
    backend = tokenizer.backend_tokenizer
    words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]


def reason_to_leave_out(
    whisper: Whisper, seconds: float, prompt: list[int], targets: list[int]
) -> tuple[str, str] | None:
    """(reason, detail) why `whisper` cannot be trained on an utterance, or score it; None where it can."""
    if seconds > whisper.audio_window_s:
        return "too_long", f"{seconds:.2f} s in a window of {whisper.audio_window_s} s"
    positions = whisper.model.config.max_target_positions
    # the decoder reads the prompt and all targets but the last
    if len(prompt) + len(targets) - 1 > positions:
        return "too_many_tokens", f"{len(targets)} tokens, {positions} positions"
    return None


def decoder_inputs(prompt: list[int], targets: list[list[int]], pad: int) -> torch.Tensor:
    """prompt + targets without the last one each, padded to (B, P + max T - 1)."""
    length = len(prompt) + max(len(ids) for ids in targets) - 1
    rows = [prompt + ids[:-1] for ids in targets]
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def target_positions(prompt: list[int], targets: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column) indices, each (N,), of the decoder positions whose next token is a target, row by row."""
    first = len(prompt) - 1
    rows = torch.cat([torch.full((len(ids),), row) for row, ids in enumerate(targets)])
    columns = torch.cat([torch.arange(first, first + len(ids)) for ids in targets])
    return rows, columns
