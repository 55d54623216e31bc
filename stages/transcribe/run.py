"""Transcribes a recording of any length. It is cut at pauses into windows, which are decoded in order."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from cache import storage
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.audio import cut_at_pauses, read_windows
from stages.shared.prefetch import prefetch
from stages.shared.student.loading import LoadedModel
from stages.shared.whisper.decode import Transcriber, Transcript
from stages.shared.whisper.device import choose_device, compute_dtype, round_weights
from stages.shared.whisper.languages import language_code

BATCH = 8
SHORTEST = 160  # samples (10 ms): a shorter rest holds no speech


def transcribe(
    model: LoadedModel,
    path: str | AnyPath,
    language: str | None = None,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    cut_loops: bool = True,
    warn: Callable[[str], None] = lambda message: None,
) -> Iterator[Transcript]:
    """Yields a transcript of each window of a recording, in order. A silent window has an empty text.

    path: a file or a URL. language: a code or a name; None takes the language that the model was trained for. device: auto,
    cpu, cuda, ... dtype: auto, fp32, bf16 or fp16. cut_loops: stop a text that repeats itself. warn: called with a line
    for each repair of the recording, and if its end is missing.
    The model is moved to the device and cast in place. Raises PipelineError where there is no audio, or no known language.
    """
    path = storage.path(path) if isinstance(path, str) else path
    if not path.is_file():
        raise PipelineError(f"{path}: no such file")
    code = language_code(language) if language else _only_language(model)
    model.whisper.model.to(choose_device(device) if isinstance(device, str) else device)
    rounded = compute_dtype(dtype, model.whisper.model.device)
    round_weights(model.whisper.model.requires_grad_(False), rounded)
    decode = Transcriber(model.whisper, code, rounded, cut_loops)
    some = False
    for clips in prefetch(_batches(path, model.whisper.audio_window_s, warn)):
        some = True
        yield from decode(clips)
    if not some:
        raise PipelineError(f"{path}: no audio in it (0 seconds)")


def _only_language(model: LoadedModel) -> str:
    if len(model.languages) != 1:
        known = (
            f"it was trained for {', '.join(model.languages)}" if model.languages else "it does not say its language"
        )
        raise PipelineError(f"{model.whisper.model_id}: no language was given, and {known}: give one")
    return model.languages[0]


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
