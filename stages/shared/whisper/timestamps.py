"""Targets that say when a clip begins and ends: Whisper's own tokens of time, `<|0.00|>` to `<|30.00|>`.

In a text with times `<|notimestamps|>` is not there, and a time stands before and after the words. Their ids follow that
of `<|notimestamps|>`, also where a tokenizer does not name them.
"""

import hashlib

from transformers import WhisperTokenizer

from cache.errors import PipelineError

PER_SECOND = 50  # tokens of time: they are 0.02 s apart
TIMES = 30 * PER_SECOND + 1


def time_tokens(notimestamps: int) -> dict[str, int]:
    """Maps the name of each token of time to its id. notimestamps: the id of `<|notimestamps|>`."""
    return {f"<|{step / PER_SECOND:.2f}|>": notimestamps + 1 + step for step in range(TIMES)}


def is_timed(utterance: str, share: float) -> bool:
    """Returns whether the targets of the utterance with this id carry times, where a `share` of all utterances does.

    It depends on nothing else, so that caches and runs agree. A larger share holds all utterances of a smaller one.
    """
    # the name keeps the choice apart from that of groups by the hash of their names: an id may be a group's name
    digest = hashlib.sha256(f"timestamps {utterance}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def with_times(ids: list[int], seconds: float, notimestamps: int) -> list[int]:
    """Returns `ids`, text and its end, with `<|0.00|>` and the time of the clip's end around the text.

    seconds: length of the clip, rounded to 0.02 s. notimestamps: the id of `<|notimestamps|>`.
    """
    *text, end = ids
    start = notimestamps + 1
    return [start, *text, start + round(seconds * PER_SECOND), end]


def prompt_before(prompt: list[int], targets: list[int]) -> list[int]:
    """Returns the prompt that stands before `targets`: where they begin with a time it lacks `<|notimestamps|>`, its end."""
    return prompt[:-1] if targets and targets[0] > prompt[-1] else prompt


def check_timestamps(tokenizer: WhisperTokenizer, size: int, window: int, model_id: str) -> None:
    """Raises PipelineError where a model has not all tokens of time that a window takes.

    size: of the vocabulary. window: seconds.
    """
    names = tokenizer.get_vocab()
    wanted = time_tokens(names["<|notimestamps|>"])
    for name, number in ((name, wanted[name]) for name in ("<|0.00|>", f"<|{window:.2f}|>")):
        if number >= size or names.get(name, number) != number:
            raise PipelineError(
                f"{model_id}: no token {name} at {number}, where Whisper has it: a model without tokens of time cannot learn "
                "them; set train.timestamps and teacher.adapt.timestamps to 0"
            )
