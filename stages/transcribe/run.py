"""What was said in a recording of any length: windows cut at pauses, one after the other."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.audio import cut_at_pauses, read_windows
from stages.shared.prefetch import prefetch
from stages.shared.student.loading import Loaded
from stages.shared.whisper.decode import Transcriber, Transcript
from stages.shared.whisper.device import compute_dtype, round_weights

BATCH = 8
SHORTEST = 160  # samples (10 ms): a rest shorter than this is no speech


def transcribe(
    model: Loaded,
    path: AnyPath,
    language: str,
    device: torch.device,
    dtype: str = "auto",
    cut_loops: bool = True,
    warn: Callable[[str], None] = lambda message: None,
) -> Iterator[Transcript]:
    """Yields what is said in each window, in order, as they are decoded; nothing is said in a silent one.

    warn: called with a line for each thing that was put right in the recording, and for what is missing at its end.
    Raises PipelineError where there is no audio to read.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file")
    model.whisper.model.to(device)
    rounded = compute_dtype(dtype, device)
    round_weights(model.whisper.model.requires_grad_(False), rounded)
    decode = Transcriber(model.whisper, language, rounded, cut_loops)
    some = False
    for clips in prefetch(_batches(path, model.whisper.audio_window_s, warn)):
        some = True
        yield from decode(clips)
    if not some:
        raise PipelineError(f"{path}: no audio in it (0 seconds)")


def _batches(path: AnyPath, seconds: int, warn: Callable[[str], None]) -> Iterator[list[np.ndarray]]:
    clips: list[np.ndarray] = []
    source = path if isinstance(path, Path) else path.read_bytes()
    for window in cut_at_pauses(read_windows(source, seconds, warn), seconds):
        if len(window) >= SHORTEST:
            clips.append(window)
        if len(clips) == BATCH:
            yield clips
            clips = []
    if clips:
        yield clips
