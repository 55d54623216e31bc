"""The two kinds of record: an utterance, and the teacher's distribution over its target tokens.

A record is a plain dict. FIELDS gives each field's type once; Parquet columns and WebDataset members both follow from it.
"""

import numpy as np

from cache.errors import PipelineError

# Field types: "str", "float" and "bytes" are scalars; "<dtype>[]" is a flat numpy array of that dtype.
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

# T = number of target tokens (transcript and end of text, without the prompt), K = top_k.
TEACHER_FIELDS = {
    "id": "str",  # of the utterance
    "targets": "uint16[]",  # (T,) token ids
    "top_ids": "uint16[]",  # (T*K,) row-major (T, K): the K most likely tokens, most likely first
    "top_log_probs": "float16[]",  # (T*K,) their natural log-probabilities under the full softmax
    "tail_log_probs": "float32[]",  # (T,) log of the probability mass outside the top K
}

FIELDS = {"utterances": UTTERANCE_FIELDS, "teacher": TEACHER_FIELDS}
AUDIO_FIELD = "audio"


def array_dtype(field_type: str) -> np.dtype | None:
    """The numpy dtype of an array field, None for a scalar."""
    return np.dtype(field_type[:-2]) if field_type.endswith("[]") else None


def check_record(record: dict, fields: dict[str, str], where: str) -> dict:
    """Returns `record` if it has exactly `fields` with their types; raises PipelineError naming the field if not."""
    if record.keys() != fields.keys():
        raise PipelineError(f"{where}: fields {sorted(record)}, expected {sorted(fields)}: not a shard of this kind")
    scalar_types = {"str": str, "float": float, "bytes": bytes}
    for name, field_type in fields.items():
        value, dtype = record[name], array_dtype(field_type)
        good = value.dtype == dtype and value.ndim == 1 if isinstance(value, np.ndarray) else dtype is None
        if not good or (dtype is None and not isinstance(value, scalar_types[field_type])):
            raise PipelineError(f"{where}: field '{name}' is {type(value).__name__}, expected {field_type}")
    return record
