"""The two kinds of record: an utterance, and the teacher's distribution over its target tokens.

A record is a plain dict. FIELDS holds each field's type once; Parquet columns and WebDataset members follow from it.
"""

import hashlib
import struct
from typing import Any

import numpy as np

from cache.errors import PipelineError

# Field types: "str", "float", "int" and "bytes" are scalars, with "?" also None; "<dtype>[]" is a flat numpy array.
UTTERANCE_FIELDS = {
    "id": "str",  # unique within the split
    "text": "str",  # transcript, Unicode NFC
    "seconds": "float",
    "speaker": "str",  # "" where the corpus does not say
    "group": "str",  # utterances that a split or a subset must keep together: a scene, a speaker
    "source": "str",  # origin of the audio: a path or an address within the corpus
    "audio_sha256": "str",  # of the 16-bit samples: does not depend on the FLAC encoder
    "audio": "bytes",  # 16 kHz mono FLAC
}

# what a teacher record's targets are: the corpus' text, or the teacher's own words
TRANSCRIPT, TEACHER = "transcript", "teacher"
# by source, the field of a manifest that counts the utterances with such targets
TARGET_COUNTS = {TRANSCRIPT: "transcript_targets", TEACHER: "teacher_targets"}
# Shapes: T target tokens (text and end of text, without the prompt), M kept tokens (the sum of top_counts).
# An utterance that could not be scored has T = 0; left_out.jsonl holds the reason.
TEACHER_FIELDS = {
    "id": "str",  # of the utterance
    "targets": "uint16[]",  # (T,) token ids
    "target_source": "str?",  # TRANSCRIPT or TEACHER; None where T = 0
    "top_counts": "uint16[]",  # (T,) number of kept tokens at each position
    "top_ids": "uint16[]",  # (M,) the kept tokens, by position, the most likely first
    "top_probs": "uint8[]",  # (M,) codes of their probabilities under the full softmax, see cache.distributions
    "tail_log_probs": "float32[]",  # (T,) natural logarithm of the mass of all other tokens
    "mean_log_prob": "float?",  # of the targets, per token, natural logarithm
    "teacher_text": "str?",  # transcript by the teacher, where it was asked for one
    "compression_ratio": "float?",  # of teacher_text as decoded: bytes / zlib bytes, high where it repeats itself
    "word_errors": "int?",  # of teacher_text against the transcript, where there is one
    "words": "int?",  # of the transcript, after normalisation
}

FIELDS = {"utterances": UTTERANCE_FIELDS, "teacher": TEACHER_FIELDS}
AUDIO_FIELD = "audio"
_SCALAR_TYPES = {"str": str, "float": float, "int": int, "bytes": bytes}

# A shard is read whole, so its size is bounded. READ_* bound what a reader accepts, whatever a file claims.
MAX_SHARD_BYTES = 1 << 30  # by `memory_bytes`
READ_BYTES = 2 * MAX_SHARD_BYTES  # of a tar; of Parquet's pages and, separately, of the values decoded from them
READ_RECORDS = 1 << 17  # so many of the smallest records take MAX_SHARD_BYTES
MAX_SECONDS = 24 * 3600  # of an utterance: more 16-bit samples than a shard holds
VALUE_BYTES = 16  # measured: the most that pyarrow takes while it decodes one value of a list, levels included


def array_dtype(field_type: str) -> np.dtype | None:
    """Returns the numpy dtype of an array field, None for a scalar."""
    return np.dtype(field_type[:-2]) if field_type.endswith("[]") else None


def check_record(record: dict, fields: dict[str, str], where: str) -> dict:
    """Returns `record` if it has exactly `fields` with their types; raises PipelineError naming the field if not."""
    if record.keys() != fields.keys():
        raise PipelineError(f"{where}: fields {sorted(record)}, expected {sorted(fields)}: not a shard of this kind")
    for name, field_type in fields.items():
        if not _is_of(record[name], field_type):
            raise PipelineError(f"{where}: field '{name}' is {type(record[name]).__name__}, expected {field_type}")
    return record


def _is_of(value: object, field_type: str) -> bool:
    if (dtype := array_dtype(field_type)) is not None:
        return isinstance(value, np.ndarray) and value.dtype == dtype and value.ndim == 1
    if value is None:
        return field_type.endswith("?")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return False
    if isinstance(value, str) and not _is_text(value):
        return False
    return type(value) is _SCALAR_TYPES[field_type.removesuffix("?")]


def _is_text(value: str) -> bool:
    """Returns whether `value` can be written. JSON can hold half a surrogate pair, which cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_seconds(record: dict, where: str) -> None:
    """Raises PipelineError where an utterance's length is negative or beyond MAX_SECONDS."""
    if not 0 <= record["seconds"] <= MAX_SECONDS:
        raise PipelineError(f"{where}: {record['seconds']} seconds, expected 0 to {MAX_SECONDS}: the shard is damaged")


def check_size(records: list[dict], fields: dict[str, str], where: str) -> None:
    """Raises PipelineError, beginning with `where`, if `records` take more memory than a reader accepts from a shard."""
    size = sum(memory_bytes(record[name]) for record in records for name in fields)
    if size > MAX_SHARD_BYTES:
        raise PipelineError(
            f"{where}: {len(records)} records take {size} bytes to read, expected at most {MAX_SHARD_BYTES}: "
            "make the shards smaller (prepare.shard_rows)"
        )


def memory_bytes(value: Any) -> int:
    """Returns an upper bound on the memory that reading a value takes: its container and its content."""
    if isinstance(value, np.ndarray):
        return 1024 + VALUE_BYTES * len(value)
    if isinstance(value, str):
        return 1024 + 4 * len(value)  # Python's widest character
    return 1024 + (len(value) if isinstance(value, bytes) else 0)


def content_sha256(records: list[dict], fields: dict[str, str]) -> str:
    """Returns a hash of the records. It is the same in every format."""
    digest = hashlib.sha256()
    for record in records:
        for name, kind in fields.items():
            data = _canonical(record[name], kind)
            digest.update(
                len(data).to_bytes(8, "little")
            )  # the length keeps a byte from moving to the next field unnoticed
            digest.update(data)
    return digest.hexdigest()


def _canonical(value: Any, field_type: str) -> bytes:
    if value is None:
        return b""
    if (dtype := array_dtype(field_type)) is not None:
        return b"a" + value.astype(dtype.newbyteorder("<"), copy=False).tobytes()
    if field_type == "bytes":
        return value
    # the first byte distinguishes None, "" and numbers
    if field_type.startswith("str"):
        return b"s" + value.encode()
    return struct.pack("<cd", b"f", value) if field_type.startswith("float") else b"i%d" % value
