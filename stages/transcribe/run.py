"""Transcribes a recording of any length. It is cut into windows, which are decoded in order and joined."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch

from cache import storage
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.audio import is_silent, read_windows
from stages.shared.prefetch import prefetch
from stages.shared.student.loading import LoadedModel
from stages.shared.whisper.decode import Transcriber, Transcript
from stages.shared.whisper.detection import detect_language
from stages.shared.whisper.device import choose_device, compute_dtype, round_weights
from stages.shared.whisper.joining import join_windows
from stages.shared.whisper.languages import language_code, language_name
from stages.shared.windows import Window, cut_at_pauses

BATCH = 8
SHORTEST = 160  # samples (10 ms): a shorter rest holds no speech

Batches = Iterator[list[Window]]


def transcribe(
    model: LoadedModel,
    path: str | AnyPath,
    language: str | None = None,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    cut_loops: bool = True,
    warn: Callable[[str], None] = lambda message: None,
) -> Iterator[Transcript]:
    """Yields a transcript of each window of a recording, in order: its text, start, end, and words with their times in
    seconds. A silent window has an empty text.

    path: a file or a URL. language: a code or a name; None takes the language that the model was trained for, or else the
    one that is heard first. device: auto, cpu, cuda, ... dtype: auto, fp32, bf16 or fp16. cut_loops: stop a text that
    repeats itself. warn: called with a line for each repair of the recording, if its end is missing, and for a language
    that was detected.
    The model is moved to the device and cast in place. Raises PipelineError where there is no audio, or where nothing is
    heard that tells the language.
    """
    path = storage.path(path) if isinstance(path, str) else path
    if not path.is_file():
        raise PipelineError(f"{path}: no such file")
    known = [language_code(language)] if language else _languages(model)
    model.whisper.model.to(choose_device(device) if isinstance(device, str) else device)
    rounded = compute_dtype(dtype, model.whisper.model.device)
    round_weights(model.whisper.model.requires_grad_(False), rounded)
    batches: Batches = prefetch(_batches(path, model.whisper.audio_window_s, warn))
    heard = _until_heard(batches)
    if not heard:
        raise PipelineError(f"{path}: no audio in it (0 seconds)")
    if len(known) != 1:
        clips = [window.samples for window in heard[-1] if not is_silent(window.samples)]
        if not clips:
            raise PipelineError(f"{path}: nothing is to be heard in it that tells its language: give the language")
        code, probability = detect_language(model.whisper, clips, rounded, known)
        among = f" among {', '.join(known)}" if known else ""
        warn(f"{path}: detected {language_name(code)} ({code}){among}, probability {probability:.2f}")
        known = [code]
    decode = Transcriber(model.whisper, known[0], rounded, cut_loops)
    yield from join_windows(_decoded(decode, chain(heard, batches)))


def _languages(model: LoadedModel) -> list[str]:
    """Returns the languages that the model was trained for, [] if it does not say them."""
    return list(model.student.languages if model.student else model.languages)


def _until_heard(batches: Batches) -> list[list[Window]]:
    """Returns the batches up to the first one in which something is to be heard."""
    found = []
    for batch in batches:
        found.append(batch)
        if not all(is_silent(window.samples) for window in batch):
            break
    return found


def _decoded(decode: Transcriber, batches: Batches) -> Iterator[tuple[Window, Transcript]]:
    for windows in batches:
        found, _ = decode.with_gates([window.samples for window in windows], timed=[True] * len(windows))
        yield from zip(windows, found, strict=True)


def _batches(path: AnyPath, seconds: int, warn: Callable[[str], None]) -> Batches:
    windows: list[Window] = []
    source = path if isinstance(path, Path) else path.read_bytes()
    for window in cut_at_pauses(read_windows(source, seconds, warn), seconds):
        if len(window.samples) >= SHORTEST:
            windows.append(window)
        if len(windows) == BATCH:
            yield windows
            windows = []
    if windows:
        yield windows
