"""Transcribes a recording of any length. It is cut into windows, which are decoded in order and joined."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch

from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.audio import is_silent, read_windows
from stages.shared.prefetch import prefetch
from stages.shared.whisper.decode import Transcriber, Transcript
from stages.shared.whisper.detection import detect_language
from stages.shared.whisper.device import choose_device, compute_dtype, round_weights
from stages.shared.whisper.joining import join_windows
from stages.shared.whisper.languages import WITHOUT_SPACES, language_name
from stages.shared.whisper.models import Whisper
from stages.shared.windows import Window, cut_at_pauses

BATCH = 8
SHORTEST = 160  # samples (10 ms): a shorter rest holds no speech

Batches = Iterator[list[Window]]


class Transcription(Iterator[Transcript]):
    """The windows of a recording, in order. Each is decoded when it is asked for. They are there once, as those of a file."""

    def __init__(self, windows: Iterator[Transcript]):
        self._windows, self._decoded = windows, list[Transcript]()

    def __next__(self) -> Transcript:
        self._decoded.append(next(self._windows))
        return self._decoded[-1]

    @property
    def text(self) -> str:
        """Returns what is said in the whole recording. Decodes the windows that nobody has asked for yet."""
        for _ in self:
            pass
        return joined_text(self._decoded)


def joined_text(windows: Iterable[Transcript]) -> str:
    """Returns the text of all windows, of one language, with spaces between them where it writes spaces."""
    said = [window for window in windows if window.text]
    return ("" if said and said[0].language in WITHOUT_SPACES else " ").join(window.text for window in said)


def decode_windows(
    whisper: Whisper,
    path: AnyPath,
    known: Sequence[str],
    device: str | torch.device,
    dtype: str,
    cut_loops: bool,
    warn: Callable[[str], None],
) -> Iterator[Transcript]:
    """Yields a transcript of each window of the recording. See `LoadedModel.transcribe`, also for the errors.

    known: codes of the languages that the recording may be in. One is taken as it is. Of several, or of all of Whisper's
    where there is none, the one that is heard first is taken.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file")
    whisper.model.to(choose_device(device) if isinstance(device, str) else device)
    rounded = compute_dtype(dtype, whisper.model.device)
    round_weights(whisper.model.requires_grad_(False), rounded)
    batches: Batches = prefetch(_batches(path, whisper.audio_window_s, warn))
    heard = _until_heard(batches)
    if not heard:
        raise PipelineError(f"{path}: no audio in it (0 seconds)")
    language = known[0] if len(known) == 1 else _detected(whisper, path, heard[-1], known, rounded, warn)
    decode = Transcriber(whisper, language, rounded, cut_loops)
    yield from join_windows(_decoded(decode, chain(heard, batches)))


def _detected(
    whisper: Whisper,
    path: AnyPath,
    windows: list[Window],
    known: Sequence[str],
    dtype: torch.dtype,
    warn: Callable[[str], None],
) -> str:
    """Returns the language that is heard. Raises PipelineError where nothing is heard that tells the language."""
    clips = [window.samples for window in windows if not is_silent(window.samples)]
    if not clips:
        raise PipelineError(f"{path}: nothing is to be heard in it that tells its language: give the language")
    code, probability = detect_language(whisper, clips, dtype, known)
    among = f" among {', '.join(known)}" if known else ""
    warn(f"{path}: detected {language_name(code)} ({code}){among}, probability {probability:.2f}")
    return code


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
