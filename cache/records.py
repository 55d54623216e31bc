"""The two kinds of record: an utterance, and the teacher's distribution over its target tokens.

A record is a plain dict. FIELDS gives each field's type once; Parquet columns and WebDataset members both follow from it.
"""

import hashlib
import struct
from typing import Any

import numpy as np

from cache.errors import PipelineError

# Field types: "str", "float", "int" and "bytes" are scalars, with "?" they may be None; "<dtype>[]" is a flat numpy array.
UTTERANCE_FIELDS = {
    "id": "str",  # unique within the split
    "text": "str",  # transcript, Unicode NFC
    "seconds": "float",
    "speaker": "str",  # "" where the corpus does not say
    "group": "str",  # what must not be torn apart by a split or a subset: a scene, a speaker
    "source": "str",  # where the audio came from: a path or an address within the corpus
    "audio_sha256": "str",  # of the 16-bit samples, so that it does not depend on the FLAC encoder
    "audio": "bytes",  # 16 kHz mono FLAC
}

# T = number of target tokens (text and end of text, without the prompt), M = sum of top_counts.
# An utterance that could not be scored has T = 0, and the reason stands in left_out.jsonl.
TEACHER_FIELDS = {
    "id": "str",  # of the utterance
    "targets": "uint16[]",  # (T,) token ids
    "top_counts": "uint16[]",  # (T,) how many tokens are kept at each position
    "top_ids": "uint16[]",  # (M,) the kept tokens, position after position, the most likely first
    "top_probs": "uint8[]",  # (M,) their probabilities under the full softmax, see cache.distributions
    "tail_log_probs": "float32[]",  # (T,) natural logarithm of the mass of all other tokens
    "mean_log_prob": "float?",  # of the targets, per token, natural logarithm
    "teacher_text": "str?",  # what the teacher itself heard, where it was asked to transcribe
    "compression_ratio": "float?",  # of that text as decoded: bytes / zlib bytes, high where it repeats itself
    "word_errors": "int?",  # of that text against the transcript, where there is one
    "words": "int?",  # of the transcript, after normalisation
}

FIELDS = {"utterances": UTTERANCE_FIELDS, "teacher": TEACHER_FIELDS}
AUDIO_FIELD = "audio"
_SCALAR_TYPES = {"str": str, "float": float, "int": int, "bytes": bytes}

# A shard is read whole, so that its size is bounded; READ_* bound what a reader takes in, whatever a file claims of itself.
MAX_SHARD_BYTES = 1 << 30  # by `memory_bytes`
READ_BYTES = 2 * MAX_SHARD_BYTES  # of a tar; of Parquet's pages and, separately, of what they decode to
READ_RECORDS = 1 << 17  # of the smallest kind so many make up MAX_SHARD_BYTES
MAX_SECONDS = 24 * 3600  # of an utterance: as 16-bit samples more than a shard holds
VALUE_BYTES = 16  # measured: what pyarrow takes at most while it decodes a value of a list, its levels included


def array_dtype(field_type: str) -> np.dtype | None:
    """The numpy dtype of an array field, None for a scalar."""
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
    """JSON can hold halves of a surrogate pair, which nothing can write or print."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_seconds(record: dict, where: str) -> None:
    """Raises PipelineError where an utterance's length is none that a recording can have."""
    if not 0 <= record["seconds"] <= MAX_SECONDS:
        raise PipelineError(f"{where}: {record['seconds']} seconds, expected 0 to {MAX_SECONDS}: the shard is damaged")


def check_size(records: list[dict], fields: dict[str, str], where: str) -> None:
    """Raises PipelineError, which begins with `where`, where `records` are more than a reader would take from a shard."""
    size = sum(memory_bytes(record[name]) for record in records for name in fields)
    if size > MAX_SHARD_BYTES:
        raise PipelineError(
            f"{where}: {len(records)} records take {size} bytes to read, expected at most {MAX_SHARD_BYTES}: "
            "make the shards smaller (prepare.shard_rows)"
        )


def memory_bytes(value: Any) -> int:
    """No less than what reading a value takes: its container, and what is in it."""
    if isinstance(value, np.ndarray):
        return 1024 + VALUE_BYTES * len(value)
    if isinstance(value, str):
        return 1024 + 4 * len(value)  # Python's widest character
    return 1024 + (len(value) if isinstance(value, bytes) else 0)


def content_sha256(records: list[dict], fields: dict[str, str]) -> str:
    """A hash over the records alone, the same in every format."""
    digest = hashlib.sha256()
    for record in records:
        for name, kind in fields.items():
            data = _canonical(record[name], kind)
            digest.update(len(data).to_bytes(8, "little"))  # so that no byte can move from one field to the next
            digest.update(data)
    return digest.hexdigest()


def _canonical(value: Any, field_type: str) -> bytes:
    if value is None:
        return b""
    if (dtype := array_dtype(field_type)) is not None:
        return b"a" + value.astype(dtype.newbyteorder("<"), copy=False).tobytes()
    if field_type == "bytes":
        return value
    # the first byte tells None from "" and from a number
    if field_type.startswith("str"):
        return b"s" + value.encode()
    return struct.pack("<cd", b"f", value) if field_type.startswith("float") else b"i%d" % value
