import hashlib
import os
import struct
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from prepare_makers import RATE, noise, program, record, tone

from cache.errors import PipelineError
from stages.shared import audio


def test_stereo_48_khz_is_the_channels_mean_at_16_khz(tmp_path):
    left, right = tone(1, 48_000, 0.4, 300), tone(1, 48_000, 0.2, 1000)
    path = record(tmp_path / "a.wav", np.stack([left, right], axis=1), 48_000, subtype="FLOAT")
    expected = (tone(1, RATE, 0.4, 300) + tone(1, RATE, 0.2, 1000)) / 2
    samples = audio.decode(path).samples
    assert samples.dtype == np.float32 and samples.shape == (RATE,)
    np.testing.assert_allclose(samples[200:-200], expected[200:-200], atol=1e-3)  # the filter rings at the edges


def test_what_lies_above_8_khz_is_filtered_out_and_not_folded_back(tmp_path):
    path = record(tmp_path / "a.wav", tone(1, 48_000, 0.5, 11_000), 48_000, subtype="FLOAT")
    assert np.abs(audio.decode(path).samples[200:-200]).max() < 1e-3


@pytest.mark.parametrize("name", ["speech.wav", "speech", "speech.raw"])
def test_mp3_is_read_whatever_it_is_called(tmp_path, name):
    path = tmp_path / name
    with open(path, "wb") as file:
        soundfile.write(file, tone(1, 44_100), 44_100, format="MP3")
    samples = audio.decode(path).samples
    expected = tone(1)
    assert abs(len(samples) - RATE) < 200
    inner = slice(2_000, 14_000)
    assert np.corrcoef(samples[inner], expected[inner])[0, 1] > 0.99
    assert np.abs(samples[inner]).max() == pytest.approx(0.3, rel=0.05)
    np.testing.assert_array_equal(samples, audio.decode(path.read_bytes()).samples)


@pytest.mark.parametrize(
    "format, subtype", [("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_24"), ("AIFF", "PCM_16")]
)
def test_formats_that_corpora_come_in(tmp_path, format, subtype):
    path = record(tmp_path / "a.bin", tone(1, 48_000), 48_000, format=format, subtype=subtype)
    inner = slice(2_000, 14_000)
    assert np.corrcoef(audio.decode(path).samples[inner], tone(1)[inner])[0, 1] > 0.99


def test_16_bit_audio_comes_through_flac_bit_for_bit(tmp_path):
    pcm = np.random.default_rng(0).integers(-32_768, 32_768, 5_000).astype(np.int16)
    pcm[:4] = [-32_768, 32_767, 0, -1]
    samples = audio.decode(record(tmp_path / "a.wav", pcm, subtype="PCM_16")).samples
    restored = audio.decode_flac(audio.encode_flac(samples))
    np.testing.assert_array_equal(restored * 32_768, pcm)


def test_flac_clips_instead_of_wrapping_round():
    restored = audio.decode_flac(audio.encode_flac(np.array([1.5, -1.5, 0.5], np.float32)))
    np.testing.assert_array_equal(restored, np.array([32_767 / 32_768, -1.0, 0.5], np.float32))


def test_audio_sha256_is_of_the_little_endian_16_bit_samples():
    samples = np.array([0.0, 0.5, -1.0, 1.0], np.float32)
    assert audio.audio_sha256(samples) == hashlib.sha256(struct.pack("<4h", 0, 16_384, -32_768, 32_767)).hexdigest()


def test_decode_flac_refuses_what_it_did_not_write(tmp_path):
    with pytest.raises(PipelineError, match="not readable FLAC"):
        audio.decode_flac(b"fLaC" + b"\0" * 100)
    other = record(tmp_path / "a.flac", tone(0.1, 8_000), 8_000).read_bytes()
    with pytest.raises(PipelineError, match="8000 Hz"):
        audio.decode_flac(other)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
def test_windows_are_the_one_shot_decode_cut_up(tmp_path, rate):
    signal = noise(21.3, 1, rate)
    path = record(tmp_path / "a.wav", signal, rate, subtype="FLOAT")
    expected = signal if rate == RATE else soxr.resample(signal, rate, RATE, quality=audio.QUALITY)
    windows = list(audio.read_windows(path, 4.0))
    assert [len(window) for window in windows[:-1]] == [64_000] * 5 and 0 < len(windows[-1]) < 64_000
    np.testing.assert_allclose(np.concatenate(windows), expected, atol=1e-4)
    np.testing.assert_allclose(audio.decode(path).samples, expected, atol=1e-4)


def test_a_window_longer_than_the_recording_is_the_recording(tmp_path):
    path = record(tmp_path / "a.wav", tone(1))
    assert [len(window) for window in audio.read_windows(path, 30)] == [RATE]
    assert list(audio.read_windows(record(tmp_path / "b.wav", np.zeros(0)), 30)) == []


def test_windows_need_little_memory_however_long_the_recording(tmp_path):
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 48_000, 2, "PCM_16") as file:
        for _ in range(120):
            file.write(np.stack([tone(1, 48_000)] * 2, axis=1))
    tracemalloc.start()
    samples = sum(len(window) for window in audio.read_windows(path, 5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples == 120 * RATE
    assert peak < 6e6  # decoded whole, it would be 46 MB


def test_decode_stops_soon_after_at_most(tmp_path):
    path = record(tmp_path / "a.wav", tone(60))
    assert 5 * RATE < len(audio.decode(path, at_most=5).samples) < 10 * RATE


def test_no_samples(tmp_path):
    assert audio.decode(record(tmp_path / "a.wav", np.zeros(0))).samples.shape == (0,)
    assert audio.decode(record(tmp_path / "b.wav", np.zeros(0), 44_100)).samples.shape == (0,)


def test_samples_that_are_not_numbers_are_refused(tmp_path):
    samples = tone(1)
    samples[100] = np.nan
    with pytest.raises(PipelineError, match="not finite"):
        audio.decode(record(tmp_path / "a.wav", samples, subtype="FLOAT"))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        audio.decode(tmp_path / "none.wav")


def test_unknown_format_without_ffmpeg_says_what_is_needed(tmp_path, no_programs):
    path = tmp_path / "notes.m4a"
    path.write_bytes(b"no audio at all " * 50)
    with pytest.raises(PipelineError, match=r"notes\.m4a.*ffmpeg is needed") as caught:
        audio.decode(path)
    assert "\n" not in str(caught.value)


FAKE_FFMPEG = f"""exec '{sys.executable}' -c '
import array, struct, sys
wanted = "-map 0:a:0 -c:a pcm_f32be -f au -"
assert sys.argv[-7:] == wanted.split(), sys.argv
path = sys.argv[sys.argv.index("-i") + 1].removeprefix("file:")
if open(path, "rb").read(4) != b"fake": sys.exit("first line\\nno such codec")
sys.stdout.buffer.write(b".snd" + struct.pack(">5I", 32, 0xFFFFFFFF, 6, 16000, 2) + bytes(8))
samples = array.array("f", [value for i in range(100000) for value in (i / 100000, i / 200000)])
if sys.byteorder == "little": samples.byteswap()
sys.stdout.buffer.write(samples.tobytes())
' "$@" """


@pytest.mark.parametrize("as_bytes", [False, True])
def test_ffmpeg_reads_what_libsndfile_cannot(tmp_path, no_programs, as_bytes):
    program(no_programs, "ffmpeg", FAKE_FFMPEG)
    path = tmp_path / "a.m4a"
    path.write_bytes(b"fake audio")
    source = path.read_bytes() if as_bytes else path
    expected = 0.75 * np.arange(100_000, dtype=np.float64) / 100_000  # of the channels i / 100000 and half of it
    np.testing.assert_allclose(audio.decode(source).samples, expected, atol=1e-7)
    windows = list(audio.read_windows(source, 2.0))
    assert [len(window) for window in windows] == [32_000, 32_000, 32_000, 4_000]
    np.testing.assert_allclose(np.concatenate(windows), expected, atol=1e-7)


def test_ffmpegs_own_reason_is_passed_on(tmp_path, no_programs):
    program(no_programs, "ffmpeg", FAKE_FFMPEG)
    path = tmp_path / "a.m4a"
    path.write_bytes(b"other")
    with pytest.raises(PipelineError, match=r"neither libsndfile nor ffmpeg can read it \(no such codec\)"):
        audio.decode(path)


def test_an_abandoned_reading_ends_ffmpeg(tmp_path, no_programs):
    header = r"printf '.snd\000\000\000\030\377\377\377\377\000\000\000\006\000\000\076\200\000\000\000\001'"
    sound = f"{header}; /usr/bin/head -c 300000 /dev/zero"
    # the first reading looks for the loudest sample, and has to end
    first = f"test -e {tmp_path}/pid || {{ echo > {tmp_path}/pid; {sound}; exit; }}"
    program(no_programs, "ffmpeg", f"{first}; echo $$ > {tmp_path}/pid; {sound}; exec /bin/sleep 20")
    path = tmp_path / "a.m4a"
    path.write_bytes(b"endless")
    windows = audio.read_windows(path, 1.0)
    assert len(next(windows)) == RATE
    started = time.monotonic()
    windows.close()
    assert time.monotonic() - started < 10
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.02)


def test_sources_are_closed(tmp_path):
    path = record(tmp_path / "a.wav", tone(20))
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(20):
        next(audio.read_windows(path, 1.0))
        audio.decode(path, at_most=0.1)
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    assert after <= before
