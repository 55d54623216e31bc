"""Reads recordings of any format and length as 16 kHz mono float32; writes and reads the 16-bit FLAC of utterances."""

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from cache.errors import PipelineError
from cache.records import MAX_SECONDS
from stages.shared.recordings.levels import Levels, Mix
from stages.shared.recordings.sources import FfmpegFrames, Frames, name_of, open_frames, reason_of

SAMPLE_RATE = 16_000  # Hz: Whisper's features are defined at this rate
QUALITY = "VHQ"  # soxr's best; for speech it takes no more time than decoding
# -60 dBFS, 33 steps of 16 bits. The noise of an open microphone is louder, and so is the faintest speech.
SILENCE = 0.001
# A file that lacks at most this much counts as whole: an MP3's frame is at most 0.072 s, and some writers miscount.
MISSING_SECONDS = 0.1
PCM_SCALE = 32_768  # 16-bit steps in 1.0; a power of two, so that 16-bit audio comes back bit for bit


@dataclass(frozen=True)
class Recording:
    samples: np.ndarray  # (samples,) float32 at 16 kHz
    missing: float  # seconds that the headers claim but the file lacks; math.inf if their number is unknown
    clipped: float  # share of the samples at full scale, in the channel with the highest share
    mix: Mix


def decode(source: Path | bytes, at_most: float = math.inf) -> Recording:
    """Returns the recording with its channels mixed to one. Stops reading once it has more than `at_most` seconds.

    Raises PipelineError where the format cannot be read, OSError where there is no such file.
    """
    levels, samples = Levels(), 0
    with open_frames(source) as frames:
        blocks = [np.zeros((0, frames.channels), np.float32)]
        for block in _resampled(_measured(frames, levels), frames, source):
            blocks.append(block)
            samples += len(block)
            if samples > at_most * SAMPLE_RATE:
                break
    mix = levels.mix()
    return Recording(mix(np.concatenate(blocks)), frames.missing, levels.clipped(), mix)


def read_windows(
    source: Path | bytes, seconds: float, warn: Callable[[str], None] = lambda message: None
) -> Iterator[np.ndarray]:
    """Yields consecutive (samples,) float32 windows of `seconds` at 16 kHz, the last one shorter. Memory holds one window.

    The samples are those of `decode`. A file that is cut off is read as far as it goes.
    warn: called with a line for each correction, and for a missing end.
    """
    mix = _mix_of_all(source)
    size = round(seconds * SAMPLE_RATE)
    pending = np.zeros(0, np.float32)
    with open_frames(source) as frames:
        for _, detail in mix.corrections():
            warn(f"{name_of(source)}: {detail}")
        for block in _resampled(frames, frames, source):
            pending = np.concatenate([pending, mix(block)])
            while len(pending) >= size:
                yield pending[:size]
                pending = pending[size:]
    if frames.missing > MISSING_SECONDS:
        warn(f"{name_of(source)}: {describe_missing(frames.missing)}; read as far as it goes")
    if len(pending):
        yield pending


def describe_missing(seconds: float) -> str:
    """seconds: `Recording.missing`; math.inf if their number is unknown."""
    amount = "its end is missing" if math.isinf(seconds) else f"the last {seconds:.3g} s are missing"
    return f"the file is cut off: {amount}"


def _mix_of_all(source: Path | bytes) -> Mix:
    """Returns how to mix the channels. Reads the whole recording first, unless its format needs no correction."""
    levels = Levels()
    with open_frames(source) as frames:
        if not frames.plain:
            for _ in _measured(frames, levels):
                pass
    return levels.mix()


def _measured(frames: Iterable[np.ndarray], levels: Levels) -> Iterator[np.ndarray]:
    for block in frames:
        levels.add(block)
        yield block


def _resampled(
    blocks: Iterable[np.ndarray], frames: Frames | FfmpegFrames, source: Path | bytes
) -> Iterator[np.ndarray]:
    """Yields the blocks, each (samples, channels), at 16 kHz."""
    if frames.rate == SAMPLE_RATE:
        yield from blocks
        return
    try:
        resampler = soxr.ResampleStream(frames.rate, SAMPLE_RATE, frames.channels, dtype="float32", quality=QUALITY)
        for block in blocks:
            yield resampler.resample_chunk(block)
        yield resampler.resample_chunk(np.zeros((0, frames.channels), np.float32), last=True)
    except (RuntimeError, ValueError) as error:  # soxr raises either
        raise PipelineError(f"{name_of(source)}: cannot be resampled ({reason_of(error)})") from None


def encode_flac(samples: np.ndarray) -> bytes:
    """Returns (samples,) float32 as 16 kHz mono 16-bit FLAC. Values outside [-1, 1] are clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, _pcm16(samples), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes, at_most: float = MAX_SECONDS) -> np.ndarray:
    """Returns the (samples,) float32 of `encode_flac`'s bytes.

    Raises PipelineError where the bytes are anything else, or claim more than `at_most` seconds. A minute of silence takes
    3 kB, and the decoder allocates at once all that a header claims.
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
            f"audio of a shard is not readable FLAC ({reason_of(error)}): make the shards again"
        ) from None


def is_silent(samples: np.ndarray) -> bool:
    """Returns whether (samples,), -1 to 1, are silent: apart from a constant offset, all are below SILENCE."""
    return not len(samples) or float(samples.max() - samples.min()) < 2 * SILENCE


def audio_sha256(samples: np.ndarray) -> str:
    """Returns the hash of the 16-bit little-endian samples. It depends neither on the encoder nor on the machine."""
    return hashlib.sha256(_pcm16(samples).astype("<i2").tobytes()).hexdigest()


def _pcm16(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.round(samples * PCM_SCALE), -PCM_SCALE, PCM_SCALE - 1).astype(np.int16)
