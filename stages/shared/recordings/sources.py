"""Reads the frames of a sound file at its own rate and scale: with libsndfile, or with ffmpeg where libsndfile cannot."""

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

BLOCK = 1 << 16  # frames read at a time: 4 s at 16 kHz, so that a file of any length fits into memory
UNCOUNTED = 1 << 62  # frames: libsndfile reports this for a FLAC from a pipe, whose header holds no number
AU_HEADER = 24  # bytes
# ffmpeg's messages about a file that ends too early; its exit status is still 0.
CUT_OFF = ("prematurely", "partial file", "truncated")


class Frames:
    """A recording that libsndfile reads block by block.

    missing: seconds that the headers claim but the file lacks; math.inf if their number is unknown. Known after the last block.
    """

    def __init__(self, sound: soundfile.SoundFile, claim: Claim, stream: BinaryIO, size: int, name: str):
        self.rate, self.channels, self.missing = sound.samplerate, sound.channels, 0.0
        # Only integer samples of one channel need no first reading of the whole file.
        self.plain = sound.channels == 1 and sound.subtype.startswith("PCM_")
        self._sound, self._claim, self._stream, self._size, self._name = sound, claim, stream, size, name

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields blocks of (frames, channels) float32."""
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
                # The file ends where another FLAC frame was expected: the frames before it were decoded.
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
    """A recording that ffmpeg reads. ffmpeg writes it as a Sun AU, whose header of 24 bytes holds rate and channels."""

    plain = False

    def __init__(self, process: subprocess.Popen, errors: IO[bytes], name: str):
        assert process.stdout is not None
        self._process, self._output, self._errors, self._name = process, process.stdout, errors, name
        header = self._output.read(AU_HEADER)
        self._sound = len(header) == AU_HEADER and header[:4] == b".snd"
        self.rate, self.channels = struct.unpack(">II", header[16:]) if self._sound else (1, 1)
        self.missing = 0.0
        if self._sound:
            self._output.read(max(0, struct.unpack(">I", header[4:8])[0] - AU_HEADER))  # some headers hold a note

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
    """Yields the recording, to be read once. Raises PipelineError where it cannot be read, OSError where it is missing."""
    with _opened(source) as stream:
        claim = read_claim(stream)
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        with _with_size(stream, size, claim) as file:
            try:
                # Without a file name libsndfile looks at the content: an MP3 called .raw is read as an MP3.
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
    """Yields `stream`. Fills in the size of its samples, in memory only, where the recorder was stopped before it wrote it."""
    if claim.unset_size is None:
        yield stream
        return
    samples = struct.pack("<I", min(size - claim.unset_size - 4, 0xFFFF_FFFF))
    if not isinstance(stream, io.FileIO):
        data = bytearray(stream.read())
        data[claim.unset_size : claim.unset_size + 4] = samples
        yield io.BytesIO(data)
        return
    with _Copy(stream.fileno(), 0, access=mmap.ACCESS_COPY) as copy:  # writes change the memory only
        copy[claim.unset_size : claim.unset_size + 4] = samples
        yield cast(BinaryIO, copy)


class _Copy(mmap.mmap):
    """A file in memory that allows seeking beyond its end. libsndfile does so, and other files allow it."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> None:  # type: ignore[override]
        start = (0, self.tell(), len(self))[whence]
        super().seek(min(max(0, start + offset), len(self)))


def _opened(source: Path | bytes) -> BinaryIO:
    # Unbuffered: libsndfile gets the descriptor, which must be at the beginning of the file.
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
                process.kill()  # the caller may stop early; does nothing to a process that has ended


@contextmanager
def _on_disk(source: Path | bytes) -> Iterator[Path]:
    """Yields a path. ffmpeg must be able to seek, which a pipe does not allow: MP4 may have its index at the end."""
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
