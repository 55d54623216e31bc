"""The frames of a sound file as they lie in it: by libsndfile, and by ffmpeg where that cannot read them."""

import io
import math
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
import soundfile

from cache.errors import PipelineError
from stages.shared.recordings.claims import Claim, read_claim

BLOCK = 1 << 16  # frames read at once: 4 s at 16 kHz, so that a file of any length fits in memory
UNCOUNTED = 1 << 62  # frames: what libsndfile reports where a FLAC from a pipe does not say how many it has
AU_HEADER = 24  # bytes
# What ffmpeg says of a file that ends too early, though it ends with success.
CUT_OFF = ("prematurely", "partial file", "truncated")


class Frames:
    """A recording that is being read, by libsndfile. `missing` is known after the last block.

    missing: how many seconds more the file says it has; math.inf where it only says that there are more.
    """

    def __init__(self, sound: soundfile.SoundFile, claim: Claim, stream: BinaryIO, size: int, name: str):
        self.rate, self.channels, self.missing = sound.samplerate, sound.channels, 0.0
        # Integer samples of one channel are the only ones that never need a look at the whole file first.
        self.plain = sound.channels == 1 and sound.subtype.startswith("PCM_")
        self._sound, self._claim, self._stream, self._size, self._name = sound, claim, stream, size, name

    def __iter__(self) -> Iterator[np.ndarray]:
        """Blocks of (frames, channels) float32."""
        done = 0
        for block in self._read():
            done += len(block)
            yield _finite(block, self._name)
        self.missing = self._missing(done)

    def _read(self) -> Iterator[np.ndarray]:
        while True:
            frames = np.full((BLOCK, self.channels), np.nan, np.float32)
            try:
                count = len(self._sound.read(out=frames))
            except (RuntimeError, ValueError) as error:  # soundfile's own errors are RuntimeErrors
                if self._sound.format != "FLAC" or self._position() < self._size:
                    raise PipelineError(f"{self._name}: damaged, it cannot be decoded ({reason_of(error)})") from None
                # The end of the file where another FLAC frame was expected: what was decoded before it is there.
                yield frames[np.isfinite(frames[:, 0])]
                return
            if not count:
                return
            yield frames[:count]

    def _position(self) -> int:
        # libsndfile reads a file by its descriptor, without `stream`
        is_file = isinstance(self._stream, io.FileIO)
        return os.lseek(self._stream.fileno(), 0, os.SEEK_CUR) if is_file else self._stream.tell()

    def _missing(self, done: int) -> float:
        if self._claim.unended:
            return math.inf
        if self._claim.missing_bytes:
            present = self._claim.data_bytes
            return done / self.rate * self._claim.missing_bytes / present if present and done else math.inf
        counted = self._claim.counts_frames and self._sound.frames < UNCOUNTED
        return max(0, self._sound.frames - done) / self.rate if counted else 0.0


class FfmpegFrames:
    """The same by ffmpeg, which writes a Sun AU: that says in 24 bytes what follows."""

    plain = False

    def __init__(self, process: subprocess.Popen, errors: IO[bytes], name: str):
        assert process.stdout is not None
        self._process, self._output, self._errors, self._name = process, process.stdout, errors, name
        header = self._output.read(AU_HEADER)
        self._sound = len(header) == AU_HEADER and header[:4] == b".snd"
        self.rate, self.channels = struct.unpack(">II", header[16:]) if self._sound else (1, 1)
        self.missing = 0.0
        if self._sound:
            self._output.read(max(0, struct.unpack(">I", header[4:8])[0] - AU_HEADER))  # a note, at times

    def __iter__(self) -> Iterator[np.ndarray]:
        width = 4 * self.channels
        while chunk := self._output.read(BLOCK * width):
            whole = chunk[: len(chunk) // width * width]
            yield _finite(np.frombuffer(whole, ">f4").astype(np.float32).reshape(-1, self.channels), self._name)
        last = _messages(self._errors) if self._process.wait() == 0 else None
        if last is None or not self._sound:
            message = (_messages(self._errors) or ["no message"])[-1]
            raise PipelineError(f"{self._name}: neither libsndfile nor ffmpeg can read it ({message})")
        if any(sign in line for line in last for sign in CUT_OFF):
            self.missing = math.inf


@contextmanager
def open_frames(source: Path | bytes) -> Iterator[Frames | FfmpegFrames]:
    """The recording, to be read once. Raises PipelineError where nothing here can read it, OSError where it is missing."""
    with _opened(source) as stream:
        claim = read_claim(stream)
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        with _with_size(stream, size, claim) as file:
            try:
                # Without a name to go by, libsndfile looks at the content: an MP3 called .raw is read as the MP3 it is.
                sound = soundfile.SoundFile(file.fileno() if isinstance(file, io.FileIO) else file, closefd=False)
            except soundfile.SoundFileError as error:
                reason = reason_of(error)
            else:
                with sound:
                    yield Frames(sound, claim, file, size, name_of(source))
                return
    with _ffmpeg(source, reason) as frames:
        yield frames


@contextmanager
def _with_size(stream: BinaryIO, size: int, claim: Claim) -> Iterator[BinaryIO]:
    """`stream`, with the size of its samples filled in where a recorder could not do that any more."""
    if claim.unset_size is None:
        yield stream
        return
    samples = struct.pack("<I", min(size - claim.unset_size - 4, 0xFFFF_FFFF))
    if not isinstance(stream, io.FileIO):
        data = bytearray(stream.read())
        data[claim.unset_size : claim.unset_size + 4] = samples
        yield io.BytesIO(data)
        return
    with _Copy(stream.fileno(), 0, access=mmap.ACCESS_COPY) as copy:  # written to in memory alone
        copy[claim.unset_size : claim.unset_size + 4] = samples
        yield cast(BinaryIO, copy)


class _Copy(mmap.mmap):
    """A file in memory that can be sought beyond its end, as libsndfile does and as any other file allows."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> None:  # type: ignore[override]
        start = (0, self.tell(), len(self))[whence]
        super().seek(min(max(0, start + offset), len(self)))


def _opened(source: Path | bytes) -> BinaryIO:
    # Unbuffered, so that libsndfile, which is given the descriptor, begins at the beginning.
    return io.BytesIO(source) if isinstance(source, bytes) else cast(BinaryIO, open(source, "rb", buffering=0))


def name_of(source: Path | bytes) -> str:
    return "audio bytes" if isinstance(source, bytes) else str(source)


def reason_of(error: Exception) -> str:
    return str(error).rpartition(": ")[2].rstrip(".")


def _finite(block: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(block).all():
        raise PipelineError(f"{name}: holds samples that are not finite numbers")
    return block


@contextmanager
def _ffmpeg(source: Path | bytes, reason: str) -> Iterator[FfmpegFrames]:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise PipelineError(
            f"{name_of(source)}: libsndfile cannot read it ({reason}); if it is audio, ffmpeg is needed on PATH"
        )
    with _on_disk(source) as path, tempfile.TemporaryFile() as errors:
        # "file:" and the whitelist keep a playlist, or a name that looks like an address, from reaching the network.
        command = [ffmpeg, "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
        command += ["-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "-"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as process:
            try:
                yield FfmpegFrames(process, errors, name_of(source))
            finally:
                process.kill()  # where the caller stops early; does nothing to a process that has ended


@contextmanager
def _on_disk(source: Path | bytes) -> Iterator[Path]:
    """A path that ffmpeg can seek in: MP4 keeps its index at the end, so a pipe would not do."""
    if isinstance(source, Path):
        yield source.absolute()
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(source)
        file.flush()
        yield Path(file.name)


def _messages(errors: IO[bytes]) -> list[str]:
    errors.seek(0)
    return errors.read().decode(errors="replace").strip().splitlines()
