"""Reads the validation clips, by which weights and folds are chosen."""

import numpy as np

from cache.errors import PipelineError
from cache.shards import ShardReader
from stages.shared.audio import decode_flac
from stages.shared.whisper.models import Whisper

Clip = tuple[np.ndarray, str]  # 16 kHz samples, transcript
VALIDATION_BATCH = 16


def validation_clips(validation: ShardReader, base: Whisper, most: int | None = None) -> list[Clip]:
    """Returns the first `most` utterances that fit the window, shortest first. None: all of them.

    Raises PipelineError where there is none.
    """
    clips: list[Clip] = []
    for shard in range(len(validation.shards)):
        if most is None or len(clips) < most:
            rows = [row for row in validation.read(shard) if row["seconds"] <= base.audio_window_s]
            clips += [(decode_flac(row["audio"], row["seconds"]), row["text"]) for row in rows]
    if not clips:
        raise PipelineError(f"{validation.folder}: no validation utterance fits a window of {base.audio_window_s} s")
    return sorted(clips[:most], key=lambda pair: len(pair[0]))
