"""Recordings of any format and length as 16 kHz mono float32, and the 16-bit FLAC in which utterances are kept."""

import hashlib
import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
import soxr

from cache.errors import PipelineError
from cache.records import MAX_SECONDS

SAMPLE_RATE = 16_000  # Hz: what Whisper's features are defined on
QUALITY = "VHQ"  # soxr's best; at speech lengths it costs no more time than decoding does
BLOCK = 1 << 16  # frames read at once: 4 s at 16 kHz, so that a file of any length fits in memory
# -60 dBFS, 33 steps of 16 bits: the noise of an open microphone is louder, and so is the faintest speech.
SILENCE = 0.001
PCM_SCALE = 32_768  # 16-bit steps in 1.0; a power of two, so that 16-bit audio comes back bit for bit


def decode(source: Path | bytes, at_most: float = math.inf) -> np.ndarray:
    """(samples,) float32 at 16 kHz, channels averaged; reading ends once it has more than `at_most` seconds.

    Raises PipelineError where nothing here can read the format, OSError where there is no such file.
    """
    blocks, samples = [np.zeros(0, np.float32)], 0
    with closing(_blocks(source)) as decoded:
        for block in decoded:
            blocks.append(block)
            samples += len(block)
            if samples > at_most * SAMPLE_RATE:
                break
    return np.concatenate(blocks)


def read_windows(source: Path | bytes, seconds: float) -> Iterator[np.ndarray]:
    """Consecutive (samples,) float32 windows of `seconds` at 16 kHz, the last one shorter; memory holds one window."""
    size = round(seconds * SAMPLE_RATE)
    pending = np.zeros(0, np.float32)
    with closing(_blocks(source)) as decoded:
        for block in decoded:
            pending = np.concatenate([pending, block])
            while len(pending) >= size:
                yield pending[:size]
                pending = pending[size:]
    if len(pending):
        yield pending


def cut_at_pauses(pieces: Iterable[np.ndarray], seconds: float) -> Iterator[np.ndarray]:
    """The recording that `pieces` make up, 16 kHz, in windows of at most `seconds` each, cut where it is quietest.

    A cut within a word spoils both windows, and a rest of a few samples makes Whisper invent a sentence: so a cut lies in
    the second half of a window, and the last two windows share what is left between them.
    """
    size = round(seconds * SAMPLE_RATE)
    pending = np.zeros(0, np.float32)
    for piece in pieces:
        pending = np.concatenate([pending, piece])
        while len(pending) >= 2 * size:
            cut = _quietest(pending, size // 2, size)
            yield pending[:cut]
            pending = pending[cut:]
    if len(pending) > size:
        spread = min(size // 4, size - len(pending) // 2)
        cut = _quietest(pending, len(pending) // 2 - spread, len(pending) // 2 + spread)
        yield pending[:cut]
        pending = pending[cut:]
    if len(pending):
        yield pending


def _quietest(samples: np.ndarray, lowest: int, highest: int) -> int:
    """The middle of the quietest tenth of a second between two positions."""
    width = min(SAMPLE_RATE // 10, highest - lowest)
    energy = np.cumsum(np.square(samples[lowest:highest], dtype=np.float64))
    return lowest + width // 2 + int(np.argmin(energy[width:] - energy[:-width])) if len(energy) > width else highest


def encode_flac(samples: np.ndarray) -> bytes:
    """16 kHz mono 16-bit FLAC of (samples,) float32; what lies outside [-1, 1] is clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, _pcm16(samples), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes, at_most: float = MAX_SECONDS) -> np.ndarray:
    """(samples,) float32 of `encode_flac`'s bytes.

    Raises PipelineError where they are anything else, or claim more than `at_most` seconds: a minute of silence takes
    3 kB, and room for all that a header claims would be made at once.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            if (sound.format, sound.samplerate, sound.channels) != ("FLAC", SAMPLE_RATE, 1):
                raise PipelineError(
                    f"audio of a shard is {sound.format} of {sound.samplerate} Hz and {sound.channels} channels, expected "
                    f"FLAC of {SAMPLE_RATE} Hz mono"
                )
            if sound.frames > round(at_most * SAMPLE_RATE):
                raise PipelineError(
                    f"audio of a shard claims {sound.frames / SAMPLE_RATE:.3f} s, expected at most {at_most:.3f} s"
                )
            return sound.read(dtype="float32")
    except soundfile.SoundFileError as error:
        raise PipelineError(
            f"audio of a shard is not readable FLAC ({_reason(error)}): make the shards again"
        ) from None


def is_silent(samples: np.ndarray) -> bool:
    """Returns whether nothing can be heard in (samples,), -1 to 1: apart from a constant offset, all are below SILENCE."""
    return not len(samples) or float(samples.max() - samples.min()) < 2 * SILENCE


def audio_sha256(samples: np.ndarray) -> str:
    """Of the 16-bit little-endian samples, so that it depends neither on the encoder nor on the machine."""
    return hashlib.sha256(_pcm16(samples).astype("<i2").tobytes()).hexdigest()


def _pcm16(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.round(samples * PCM_SCALE), -PCM_SCALE, PCM_SCALE - 1).astype(np.int16)


def _blocks(source: Path | bytes) -> Generator[np.ndarray, None, None]:
    """The recording's consecutive pieces, each (samples,) float32 at 16 kHz."""
    with _opened(source) as stream:
        try:
            # Without a name to go by, libsndfile looks at the content: an MP3 called .raw is read as the MP3 it is.
            sound = soundfile.SoundFile(stream if isinstance(source, bytes) else stream.fileno(), closefd=False)
        except soundfile.SoundFileError as error:
            yield from _ffmpeg_blocks(source, _reason(error))
            return
        with sound:
            yield from _finite(_soundfile_blocks(sound, _name(source)), _name(source))


def _opened(source: Path | bytes) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _name(source: Path | bytes) -> str:
    return "audio bytes" if isinstance(source, bytes) else str(source)


def _reason(error: Exception) -> str:
    return str(error).rpartition(": ")[2].rstrip(".")


def _finite(blocks: Iterator[np.ndarray], name: str) -> Iterator[np.ndarray]:
    for block in blocks:
        if not np.isfinite(block).all():
            raise PipelineError(f"{name}: holds samples that are not finite numbers")
        yield block


def _soundfile_blocks(sound: soundfile.SoundFile, name: str) -> Iterator[np.ndarray]:
    try:
        resampler = None
        if sound.samplerate != SAMPLE_RATE:
            resampler = soxr.ResampleStream(sound.samplerate, SAMPLE_RATE, 1, dtype="float32", quality=QUALITY)
        while len(frames := sound.read(BLOCK, dtype="float32", always_2d=True)):
            mono = frames.mean(axis=1)
            yield mono if resampler is None else resampler.resample_chunk(mono)
        if resampler is not None:
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    except (RuntimeError, ValueError) as error:  # soundfile's own errors are RuntimeErrors, soxr raises both
        raise PipelineError(f"{name}: damaged, it cannot be decoded ({_reason(error)})") from None


def _ffmpeg_blocks(source: Path | bytes, reason: str) -> Iterator[np.ndarray]:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise PipelineError(
            f"{_name(source)}: libsndfile cannot read it ({reason}); if it is audio, ffmpeg is needed on PATH"
        )
    with _on_disk(source) as path, tempfile.TemporaryFile() as errors:
        # "file:" and the whitelist keep a playlist, or a name that looks like an address, from reaching the network.
        # Without rematrix_maxval ffmpeg mixes stereo to float 3 dB too loud; with it, mono is the channels' mean.
        command = [ffmpeg, "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
        command += ["-map", "0:a:0", "-af", "aresample=rematrix_maxval=1.0"]
        command += ["-f", "f32le", "-ac", "1", "-ar", str(SAMPLE_RATE), "-"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as process:
            try:
                assert process.stdout is not None
                while chunk := process.stdout.read(BLOCK * 4):
                    yield np.frombuffer(chunk[: len(chunk) // 4 * 4], "<f4").astype(np.float32)
                if process.wait() != 0:
                    raise PipelineError(f"{_name(source)}: neither libsndfile nor ffmpeg can read it ({_last(errors)})")
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


def _last(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"
