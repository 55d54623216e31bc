"""From an item to an utterance record, or to the reason why it is left out."""

import errno
import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from cache.errors import PipelineError
from cache.storage import RemotePath, StorageError
from stages import audio
from stages.prepare.items import Item

NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.ELOOP)  # a link to itself


@dataclass(frozen=True)
class LeftOut:
    id: str
    source: str
    reason: str  # missing, unreadable, empty, silent, too_long, no_text, duplicate, sentence_in_test, …
    detail: str


def make_utterance(
    item: Item, min_seconds: float, max_seconds: float | None, untranscribed: bool = False
) -> dict | LeftOut:
    """A record of cache.records.UTTERANCE_FIELDS, with the text in NFC, its case and punctuation kept.

    max_seconds: None where any length will do. Memory is bounded by it, however long the recording.
    untranscribed: keep it where it has no text, too.
    """
    if item.excluded is not None:
        return _left_out(item, *item.excluded)
    text = clean_text(item.text)
    if not has_words(text):
        if not untranscribed:
            return _left_out(item, "no_text", repr(item.text))
        text = ""
    longest = math.inf if max_seconds is None else max_seconds
    try:
        samples = audio.decode(_source(item), longest)
    except StorageError:
        raise  # a store that fails is no reason to leave a recording out
    except (FileNotFoundError, NotADirectoryError):
        return _left_out(item, "missing", f"{item.audio}: no such file")
    except (PipelineError, PermissionError, IsADirectoryError, ValueError) as error:  # ValueError: a null in the name
        return _left_out(item, "unreadable", str(error))
    seconds = len(samples) / audio.SAMPLE_RATE
    if len(samples) == 0 or seconds < min_seconds:
        return _left_out(item, "empty", f"{seconds:g} s, shorter than {min_seconds:g} s")
    if seconds > longest:
        return _left_out(item, "too_long", f"longer than {longest:g} s")
    if audio.is_silent(samples):
        return _left_out(item, "silent", f"no sample above {audio.SILENCE:g}")
    return {
        "id": item.id,
        "text": text,
        "seconds": seconds,
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


def as_duplicate(record: dict, first: str) -> LeftOut:
    """first: which utterance has the same audio."""
    return LeftOut(record["id"], record["source"], "duplicate", f"same audio as {first}")


def clean_text(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def has_words(text: str) -> bool:
    """Whether there is a letter, a mark or a digit in it: whether anything can be said or scored."""
    return any(unicodedata.category(character)[0] in "LMN" for character in text)


def _left_out(item: Item, reason: str, detail: str) -> LeftOut:
    return LeftOut(item.id, item.source, reason, detail)
