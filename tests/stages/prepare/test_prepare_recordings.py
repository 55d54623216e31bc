"""Recordings and transcripts that do not fit each other, or are not what they seem: put right, or listed with the reason."""

import io
import json
import math
import struct

import numpy as np
import pytest
import soundfile
from prepare_makers import RATE, noise, record, tone
from transformers import WhisperTokenizer

from cache.files import read_jsonl
from cache.shards import ShardReader
from pipeline.commands.cache import verify
from stages.prepare.corpora.manifest import ManifestSettings
from stages.prepare.items import Item
from stages.prepare.run import prepare
from stages.prepare.settings import PrepareSettings
from stages.prepare.utterances import Listed, Made, make_utterance
from stages.shared import audio
from stages.shared.whisper.targets import target_ids


def made(path, text="Ano.", split="train", max_seconds=None, **settings):
    """path: or the bytes that lie there."""
    source = (lambda: path) if isinstance(path, bytes) else path
    return make_utterance(Item("a", source, text, "", "a", "a"), PrepareSettings(**settings), split, max_seconds)


def reasons(result):
    return [result.reason] if isinstance(result, Listed) else [line.reason for line in result.noticed]


def both_ways(source):
    """The samples, which must be the same in one piece and by windows, and what was said by the windows' reader."""
    said = []
    recording = audio.decode(source)
    windows = list(audio.read_windows(source, 0.7, said.append))
    np.testing.assert_allclose(np.concatenate(windows), recording.samples, atol=2e-5)
    return recording, said


@pytest.mark.parametrize(
    ("text", "clean", "removed"),
    [
        ("<|0.00|> Bo día a todos<|1.00|>", "Bo día a todos", "<|0.00|> <|1.00|>"),
        ("Chove<|endoftext|> moito", "Chove moito", "<|endoftext|>"),
        ("<|gl|><|transcribe|>Imos<|12.34|>ao mar", "Imos ao mar", "<|gl|> <|transcribe|> <|12.34|>"),
        ("a < b | c > d <| e", "a < b | c > d <| e", None),
    ],
)
def test_whispers_tokens_are_taken_out_of_a_transcript(tmp_path, text, clean, removed):
    found = made(record(tmp_path / "a.wav", tone(1)), text)
    assert found.record["text"] == clean
    assert reasons(found) == (["control_tokens"] if removed else [])
    assert not removed or found.noticed[0].detail == f"removed from the text: {removed}"


def test_a_transcript_of_nothing_but_tokens_has_no_text(tmp_path):
    path = record(tmp_path / "a.wav", tone(1))
    assert reasons(made(path, "<|nospeech|>")) == ["no_text"]
    assert made(path, "<|nospeech|>", untranscribed=True).record["text"] == ""


def test_a_transcript_never_becomes_control_tokens(tiny_whisper):
    """Shards that were made elsewhere may hold anything; ordinary text is encoded as ever."""
    tokenizer = WhisperTokenizer.from_pretrained(tiny_whisper)
    end = tokenizer.eos_token_id
    for text in ("Chove<|endoftext|> hoxe", "<|0.00|> Bo día<|1.00|>", "<|gl|><|transcribe|>", "<|startoftranscript|>"):
        *ids, last = target_ids(tokenizer, text, "gl")
        assert last == end and max(ids) < end
        assert tokenizer.convert_tokens_to_string(tokenizer.convert_ids_to_tokens(ids)) == f" {text}"
    plain = target_ids(tokenizer, "Žluťoučký kůň <| 3 |>", "cs")
    assert plain == [*tokenizer.encode(" Žluťoučký kůň <| 3 |>", add_special_tokens=False), end]


@pytest.mark.parametrize("scale", [32_768, 2**23, 2**31])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("level", [1.0, 0.2])
def test_integers_stored_as_floats_are_scaled(tmp_path, scale, subtype, level):
    speech = level * tone(3, amplitude=0.9)
    path = record(tmp_path / "a.wav", speech.astype(np.float64) * scale, subtype=subtype)
    found, said = both_ways(path)
    np.testing.assert_allclose(found.samples, speech, atol=1e-6)
    assert reasons(made(path)) == ["scaled"]
    assert len(said) == 1 and "a.wav: samples up to" in said[0]


def test_16_bits_stored_as_floats_give_the_same_audio(tmp_path):
    pcm = np.random.default_rng(0).integers(-32_768, 32_768, 20_000).astype(np.int16)
    one = made(record(tmp_path / "a.wav", pcm, subtype="PCM_16"))
    other = made(record(tmp_path / "b.wav", pcm.astype(np.float32), subtype="FLOAT"))
    assert one.record["audio_sha256"] == other.record["audio_sha256"]
    assert (reasons(one), reasons(other)) == ([], ["scaled"])


@pytest.mark.parametrize("peak", [1.3, 5.0])
def test_what_goes_over_full_scale_is_scaled_and_not_cut(tmp_path, peak):
    """As a recorder of floats does; the loud part comes last, in another block than the first."""
    speech = np.concatenate([tone(6, amplitude=0.1), tone(1, amplitude=peak)])
    found, _ = both_ways(record(tmp_path / "a.wav", speech, subtype="FLOAT"))
    np.testing.assert_allclose(found.samples, speech / np.abs(speech).max(), atol=1e-6)
    assert found.clipped < 0.1
    assert reasons(made(tmp_path / "a.wav")) == ["scaled"]


def square(seconds, share):
    """Half of it clipped at `share` of the time, half of it an undamaged tone."""
    return np.where(np.arange(round(seconds * RATE)) % 1000 < 1000 * share, 1, 0.3) * np.sign(tone(seconds))


@pytest.mark.parametrize("options", [{}, {"subtype": "PCM_U8"}, {"subtype": "FLOAT"}, {"format": "FLAC"}])
def test_clipped_recordings_are_left_out_and_test_keeps_them(tmp_path, options):
    path = record(tmp_path / "a.bin", square(2, 0.2), **{"format": "WAV", **options})
    found = made(path)
    assert (found.reason, found.detail) == ("clipped", "20 % of the samples are at full scale, more than 10 %")
    assert reasons(made(path, split="validation")) == reasons(made(path, split="test")) == ["clipped"]
    assert isinstance(made(path, split="test"), Made)
    assert reasons(made(path, max_clipped=0.25)) == reasons(made(path, max_clipped=None)) == []
    assert reasons(made(record(tmp_path / "b.wav", square(2, 0.05)))) == []


def test_a_channel_that_is_clipped_counts_by_itself(tmp_path):
    both = np.stack([square(2, 0.15), 0 * square(2, 0.15)], axis=1)
    assert reasons(made(record(tmp_path / "a.wav", both))) == ["clipped"]


FORMATS = {
    "wav": {},
    "wavex": {"format": "WAVEX"},
    "gsm": {"format": "WAV", "subtype": "GSM610"},
    "adpcm": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "rf64": {"format": "RF64"},
    "w64": {"format": "W64"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "nist": {"format": "NIST"},
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_ends_too_early_is_left_out(tmp_path, name):
    rate = 8_000 if name == "gsm" else RATE
    whole = record(
        tmp_path / "whole", 0.5 * noise(8, 1, rate) + tone(8, rate), rate, **{"format": "WAV", **FORMATS[name]}
    )
    assert reasons(made(whole)) == []
    data = whole.read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(data[: len(data) // 2])
    for split in ("train", "test"):
        found = made(cut, split=split)
        assert found.reason == "truncated" and "the file is cut off" in found.detail
    recording, said = both_ways(cut)
    assert len(said) == 1 and "cut: the file is cut off" in said[0]
    assert 2 < len(recording.samples) / RATE < 4.1
    if name in ("vorbis", "opus"):
        assert math.isinf(recording.missing)
    else:
        assert recording.missing + len(recording.samples) / RATE == pytest.approx(8, abs=0.1)
    assert reasons(made(data[: len(data) // 2], max_missing_seconds=None)) == []
    np.testing.assert_array_equal(audio.decode(cut.read_bytes()).samples, recording.samples)


def test_a_cut_within_the_limit_or_beyond_the_window_is_no_fault(tmp_path):
    data = record(tmp_path / "a.wav", tone(4)).read_bytes()
    assert reasons(made(data[:-1])) == reasons(made(data[: -RATE // 10])) == []
    assert reasons(made(data[: -RATE // 4 - 2])) == ["truncated"]
    assert reasons(made(data[: -RATE // 4 - 2], max_missing_seconds=0.2)) == []
    assert reasons(made(data[: -RATE // 4 - 2], max_seconds=2.0)) == ["too_long"]


def test_a_flac_damaged_within_is_not_called_cut_off(tmp_path):
    data = bytearray(record(tmp_path / "a.flac", noise(30, 1)).read_bytes())
    data[len(data) // 3 : len(data) // 3 + 3000] = b"\x55" * 3000
    found = made(bytes(data))
    assert found.reason == "unreadable" and "damaged" in found.detail


def test_a_flac_from_a_pipe_is_read_to_its_end(tmp_path):
    """It does not say how many samples it has: to libsndfile its end is an error, which took the last block with it."""
    signal = np.round(noise(5.3, 1) * 32_768) / 32_768
    data = bytearray(record(tmp_path / "a.flac", signal).read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "b.flac").write_bytes(data)
    found, said = both_ways(tmp_path / "b.flac")
    np.testing.assert_array_equal(found.samples, signal.astype(np.float32))
    assert said == [] and found.missing == 0


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000])
def test_a_wav_of_a_recorder_that_could_not_go_back_is_read_to_its_end(tmp_path, size, as_bytes):
    signal = np.round(noise(2, 1) * 32_768).astype(np.int16)
    data = record(tmp_path / "a.wav", signal).read_bytes()
    at = data.index(b"data") + 4
    for riff in (0, 0xFFFFFFFF, len(data) - 8):
        path = tmp_path / "b.wav"
        path.write_bytes(data[:4] + struct.pack("<I", riff) + data[8:at] + struct.pack("<I", size) + data[at + 4 : -3])
        found, said = both_ways(path.read_bytes() if as_bytes else path)
        np.testing.assert_array_equal(found.samples * 32_768, signal[:-2])
        assert said == [] and reasons(made(path)) == []


def test_an_empty_wav_with_notes_behind_it_stays_empty(tmp_path):
    data = record(tmp_path / "a.wav", np.zeros(0)).read_bytes() + b"LIST\x04\0\0\0INFO"
    assert reasons(made(data)) == ["empty"]


def mp3(samples, counted):
    """Of a variable bit rate; without the frame that counts the others where it is not `counted`."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", RATE, 1, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5
    ) as file:
        file.write(samples)
    data = buffer.getvalue()
    return data if counted else data[data.index(data[:2], data.index(b"Xing")) :]


def test_an_estimated_length_is_no_claim():
    """Without a count an MP3's length is a guess from its first frame, far off where what follows takes fewer bytes."""
    samples = np.concatenate([tone(1, amplitude=0.001), noise(4, 2), np.zeros(10 * RATE, np.float32)])
    assert audio.decode(mp3(samples, counted=False)).missing == 0
    assert audio.decode(mp3(samples, counted=True)).missing < 0.1
    assert audio.decode(mp3(samples, counted=True)[:-2000]).missing > 1


@pytest.mark.parametrize("inverse", [-1.0, -0.97])
@pytest.mark.parametrize("rate", [RATE, 44_100])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_of_channels_that_cancel_the_louder_one_is_taken(tmp_path, inverse, rate, subtype):
    """From the first sample on, though they begin with a silence in which nothing cancels."""
    quiet, speech = np.zeros(5 * rate, np.float32), tone(2, rate) + noise(2, 1, rate)
    left = np.concatenate([quiet, speech]) + 0.01
    path = record(tmp_path / "a.wav", np.stack([inverse * left, left], axis=1), rate, subtype=subtype)
    alone = record(tmp_path / "b.wav", left, rate, subtype=subtype)
    found, said = both_ways(path)
    wanted = -left if inverse == -1.0 else left
    np.testing.assert_allclose(np.abs(found.samples), np.abs(audio.decode(alone).samples), atol=1e-4)
    assert wanted.shape == left.shape
    assert reasons(made(path)) == ["one_channel"] and "cancel" in said[0]


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_that_do_not_cancel_are_averaged(tmp_path, channels):
    alone = np.zeros((2 * RATE, channels), np.float32)
    alone[:, 0] = noise(2, 1)
    different = np.stack([noise(2, number) for number in range(channels)], axis=1)
    silent = np.zeros((2 * RATE, channels), np.float32) + 0.2
    for signal in (alone, different, silent, np.repeat(noise(2, 9)[:, None], channels, axis=1)):
        found, said = both_ways(record(tmp_path / "a.wav", signal, subtype="FLOAT"))
        np.testing.assert_allclose(found.samples, signal.mean(axis=1), atol=1e-6)
        assert said == []


@pytest.mark.parametrize(
    ("text", "seconds", "fast"),
    [
        ("Onte pola tarde fomos todos xuntos ata a praia grande para ver os barcos.", 0.84, True),
        ("Onte pola tarde fomos todos xuntos ata a praia grande para ver os barcos.", 3.0, False),
        ("ကျွန်တော်တို့သည်မနေ့ကကမ်းခြေသို့သွားခဲ့ကြသည်", 1.4, False),  # Burmese, marks and all, faster than it is read
        ("!?… " * 40 + "Ano", 0.5, False),
    ],
)
def test_a_rate_that_no_one_speaks_at(tmp_path, text, seconds, fast):
    path = record(tmp_path / "a.wav", noise(seconds, 1))
    assert reasons(made(path, text)) == (["too_fast"] if fast else [])
    assert isinstance(made(path, text, split="test"), Made)
    assert reasons(made(path, text, split="test")) == (["too_fast"] if fast else [])
    assert reasons(made(path, text, max_characters_per_second=None)) == []


def test_what_is_noticed_is_counted_listed_and_verified(tmp_path, capsys):
    texts = ["Ano.", "<|0.00|>Ne.", "x" * 100, "<|gl|>Kde?"]
    rows = []
    for split in ("train", "test"):
        for number, text in enumerate(texts):
            record(tmp_path / f"{split}{number}.wav", noise(1, len(rows)))
            rows.append({"path": f"{split}{number}.wav", "split": split, "text": text})
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = ManifestSettings(corpus="manifest", path=tmp_path / "m.jsonl", validation_fraction=0)
    summary = {split.split: split for split in prepare(corpus, PrepareSettings(shard_rows=2), "gl", tmp_path / "o", 30)}
    assert summary["train"].left_out == {"too_fast": 1} and summary["train"].noticed == {"control_tokens": 2}
    assert summary["test"].left_out == {} and summary["test"].noticed == {"control_tokens": 2, "too_fast": 1}
    lines = read_jsonl(tmp_path / "o/test/noticed.jsonl")
    assert [(line["id"], line["reason"]) for line in lines] == [
        ("test1.wav", "control_tokens"),
        ("test2.wav", "too_fast"),
        ("test3.wav", "control_tokens"),
    ]
    manifest = ShardReader(tmp_path / "o/test", "utterances").manifest
    assert manifest["noticed"] == summary["test"].noticed
    assert all("noticed" not in entry for entry in manifest["shards"])
    verify((tmp_path / "o/test", tmp_path / "o/train"), None)
    (tmp_path / "o/test/noticed.jsonl").write_text("")
    with pytest.raises(Exception, match="faults: 1"):
        verify((tmp_path / "o/test",), None)
    assert "noticed.jsonl: lists {}" in capsys.readouterr().out
