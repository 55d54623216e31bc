"""Maps the teacher's token ids to the student's. They share the text tokens; ids of special tokens may be shifted."""

import json
from dataclasses import dataclass

import numpy as np
from transformers import AutoConfig, WhisperTokenizer

from cache.errors import PipelineError
from stages.shared.whisper.models import Whisper, find_model
from stages.shared.whisper.timestamps import time_tokens


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a model's decoder reads and predicts."""

    tokenizer: WhisperTokenizer
    size: int  # columns of the output projection
    model_id: str  # hub id or folder
    positions: int  # of the decoder


@dataclass(frozen=True)
class TokenMap:
    """to_student: (teacher's vocabulary,) the student's id of each token, -1 where it lacks the token, as a newer language."""

    to_student: np.ndarray
    vocabulary_size: int  # the student's


def vocabulary_of(whisper: Whisper) -> Vocabulary:
    config = whisper.model.config
    return Vocabulary(whisper.tokenizer, config.vocab_size, whisper.model_id, config.max_target_positions)


def load_vocabulary(model_id: str) -> Vocabulary:
    """Loads the vocabulary of `model_id` (hub id or folder), without its weights. Raises PipelineError where it has none."""
    folder = find_model(model_id).folder
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = WhisperTokenizer.from_pretrained(folder)
        return Vocabulary(tokenizer, config.vocab_size, model_id, config.max_target_positions)
    except (OSError, ValueError, AttributeError) as error:
        raise PipelineError(f"{model_id}: no Whisper tokenizer in it ({str(error).splitlines()[0]})") from None


def map_tokens(teacher: Vocabulary, student: Vocabulary) -> TokenMap:
    """Returns the map. Raises PipelineError naming the first difference if the two do not cut text into the same tokens."""
    if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        _check_text_tokens(teacher, student)
    _check_merges(teacher, student)
    student_ids = _ids(student)
    to_student = np.full(teacher.size, -1, np.int64)
    for token, number in _ids(teacher).items():
        to_student[number] = student_ids.get(token, -1)
    return TokenMap(to_student, student.size)


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Maps token -> id, with the timestamps: their ids follow <|notimestamps|> even if the tokenizer does not name them."""
    names = vocabulary.tokenizer.get_vocab()
    if "<|notimestamps|>" not in names:
        raise PipelineError(f"{vocabulary.model_id}: no token <|notimestamps|>, expected a Whisper tokenizer")
    tokens = {**time_tokens(names["<|notimestamps|>"]), **names}
    return {token: number for token, number in tokens.items() if number < vocabulary.size}


def _check_text_tokens(teacher: Vocabulary, student: Vocabulary) -> None:
    """Raises PipelineError if the tokens up to <|endoftext|> differ: they are text, the same in all multilingual Whispers."""
    ends = teacher.tokenizer.eos_token_id, student.tokenizer.eos_token_id
    for number in range(max(ends) + 1):
        one, other = (each.tokenizer.convert_ids_to_tokens(number) for each in (teacher, student))
        if one != other:
            raise PipelineError(
                f"{teacher.model_id} and {student.model_id} do not cut text into the same tokens: token {number} is "
                f"{one!r} there and {other!r} here: expected a teacher with the student's tokenizer"
            )


def _check_merges(teacher: Vocabulary, student: Vocabulary) -> None:
    merges = [json.loads(each.tokenizer.backend_tokenizer.to_str())["model"]["merges"] for each in (teacher, student)]
    pairs = [[" ".join(merge) if isinstance(merge, list) else merge for merge in each] for each in merges]
    for number in range(max(map(len, pairs))):
        one, other = (each[number] if number < len(each) else None for each in pairs)
        if one != other:
            raise PipelineError(
                f"{teacher.model_id} and {student.model_id} do not cut text into the same tokens: merge {number} is "
                f"{one!r} there and {other!r} here: expected a teacher with the student's tokenizer"
            )
