"""Turns an item into an utterance record, or into the reason why it is left out."""

import errno
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import PipelineError
from cache.storage import RemotePath, StorageError
from stages.prepare.items import Item
from stages.prepare.settings import PrepareSettings
from stages.shared import audio

# Whisper's own tokens, which occur in pseudo-labelled corpora: <|0.00|>, <|endoftext|>, <|gl|>.
CONTROL_TOKEN = re.compile(r"<\|[^<>|]*\|>")

NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.ELOOP)  # ELOOP: a link to itself


@dataclass(frozen=True)
class Listed:
    """A line of left_out.jsonl or of noticed.jsonl."""

    id: str
    source: str
    # left out: missing, unreadable, truncated, empty, silent, too_long, clipped, too_fast, no_text, duplicate or
    # sentence_in_test and the like, in splits that were drawn
    # noticed: control_tokens, scaled or one_channel, which are corrected; clipped or too_fast, which test keeps
    reason: str
    detail: str


@dataclass(frozen=True)
class Made:
    record: dict  # of cache.records.UTTERANCE_FIELDS
    noticed: list[Listed]


def make_utterance(item: Item, settings: PrepareSettings, split: str, max_seconds: float | None) -> Made | Listed:
    """Returns the item's record, or the reason why it is left out. The text is in NFC and keeps case and punctuation.

    max_seconds: the longest recording, None for any length. It bounds the memory, however long the recording is.
    Raises StorageError where a store fails.
    """
    if item.excluded is not None:
        return _listed(item, *item.excluded)
    text, noticed = _text(item)
    if not has_words(text):
        if split != "train" or not settings.untranscribed:
            return _listed(item, "no_text", repr(item.text))
        text = ""
    longest = math.inf if max_seconds is None else max_seconds
    try:
        recording = audio.decode(_source(item), longest)
    except StorageError:
        raise  # a failing store is no reason to leave a recording out
    except (FileNotFoundError, NotADirectoryError):
        return _listed(item, "missing", f"{item.audio}: no such file")
    except (PipelineError, PermissionError, IsADirectoryError, ValueError) as error:  # ValueError: a NUL in the name
        return _listed(item, "unreadable", str(error))
    if unusable := _unusable(recording, settings, longest):
        return _listed(item, *unusable)
    doubtful = [_listed(item, *found) for found in _doubtful(recording, text, settings)]
    if doubtful and split != "test":
        return doubtful[0]
    noticed += [*doubtful, *(_listed(item, *found) for found in recording.mix.corrections())]
    return Made(_record(item, text, recording.samples), noticed)


def _text(item: Item) -> tuple[str, list[Listed]]:
    """Returns the transcript without Whisper's own tokens, and a line for noticed.jsonl if there were any."""
    tokens = CONTROL_TOKEN.findall(item.text)
    noticed = [_listed(item, "control_tokens", f"removed from the text: {' '.join(tokens)}")] if tokens else []
    return clean_text(CONTROL_TOKEN.sub(" ", item.text)), noticed


def _unusable(recording: audio.Recording, settings: PrepareSettings, longest: float) -> tuple[str, str] | None:
    """Returns (reason, detail) if no split can use the recording."""
    seconds = len(recording.samples) / audio.SAMPLE_RATE
    if settings.max_missing_seconds is not None and recording.missing > settings.max_missing_seconds:
        return "truncated", f"{seconds:.3g} s, and {audio.describe_missing(recording.missing)}"
    if len(recording.samples) == 0 or seconds < settings.min_seconds:
        return "empty", f"{seconds:g} s, shorter than {settings.min_seconds:g} s"
    if seconds > longest:
        return "too_long", f"longer than {longest:g} s"
    if audio.is_silent(recording.samples):
        return "silent", f"no sample above {audio.SILENCE:g}"
    return None


def _doubtful(recording: audio.Recording, text: str, settings: PrepareSettings) -> Iterator[tuple[str, str]]:
    """Yields (reason, detail) if a recording must not be trained on. Test keeps it: without it results would look better."""
    if settings.max_clipped is not None and recording.clipped > settings.max_clipped:
        share, most = 100 * recording.clipped, 100 * settings.max_clipped
        yield "clipped", f"{share:.3g} % of the samples are at full scale, more than {most:g} %"
    seconds = len(recording.samples) / audio.SAMPLE_RATE
    count, limit = sum(map(_is_word_character, text)), settings.max_characters_per_second
    if limit is not None and count > limit * seconds:
        yield (
            "too_fast",
            f"{count} letters, marks and digits in {seconds:.3g} s, {count / seconds:.3g} a second: more than {limit:g}",
        )


def _record(item: Item, text: str, samples: np.ndarray) -> dict:
    return {
        "id": item.id,
        "text": text,
        "seconds": len(samples) / audio.SAMPLE_RATE,
        "speaker": item.speaker,
        "group": item.group,
        "source": item.source,
        "audio_sha256": audio.audio_sha256(samples),
        "audio": audio.encode_flac(samples),
    }


def _source(item: Item) -> Path | bytes:
    if isinstance(item.audio, Path):
        _refuse_no_name(item.audio)
        return item.audio
    return item.audio.read_bytes() if isinstance(item.audio, RemotePath) else item.audio()


def _refuse_no_name(path: Path) -> None:
    try:
        path.stat()
    except OSError as error:
        if error.errno in NO_SUCH_NAME:
            raise FileNotFoundError(error.errno, error.strerror, str(path)) from None


def as_duplicate(record: dict, first: str) -> Listed:
    """first: the utterance with the same audio, as "split/id"."""
    return Listed(record["id"], record["source"], "duplicate", f"same audio as {first}")


def clean_text(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def has_words(text: str) -> bool:
    """Returns whether `text` holds a letter, a mark or a digit. Without one there is nothing to score."""
    return any(map(_is_word_character, text))


def _is_word_character(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def _listed(item: Item, reason: str, detail: str) -> Listed:
    return Listed(item.id, item.source, reason, detail)
