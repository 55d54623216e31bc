"""Every test utterance is scored once; gates are counted where there is something to hear or to read; any file transcribes."""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import make_utterance, save_expert

from cache.errors import PipelineError
from cache.shards import ShardReader, ShardWriter
from stages.evaluate.run import Subject, evaluate
from stages.evaluate.settings import EvaluateSettings
from stages.evaluate.words import expert_words, kept_shares
from stages.shared import scoring
from stages.shared.audio import decode_flac
from stages.shared.gate_use import GateUse
from stages.shared.student.loading import LoadedModel, load_model, transcribe
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.student.routing import Routing
from stages.shared.whisper.decode import Transcriber, Transcript, loop_start
from stages.shared.whisper.models import Whisper, load_whisper
from stages.shared.whisper.words import Word
from stages.shared.windows import cut_at_pauses

CPU = torch.device("cpu")
LAYERS = ["encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1"]


def run(
    model: LoadedModel, utterances: Path, out: Path, language: str = "cs", batch_size: int = 3
) -> tuple[dict, list[dict]]:
    settings = EvaluateSettings(batch_size=batch_size, dtype="fp32")
    metrics = evaluate(model, utterances, Subject(language, "clsr", "a model"), out, settings, CPU)
    assert json.loads(out.read_text()) == metrics
    rows = [json.loads(line) for line in out.with_suffix(".utterances.jsonl").read_text().split("\n") if line]
    return metrics, rows


def only_letters(whisper: Whisper) -> Whisper:
    """Random weights prefer special tokens, which are no text."""
    letters = set(whisper.tokenizer.convert_tokens_to_ids(list("abcdefghijklmnop\u0120")))  # U+0120 is a space
    whisper.model.generation_config.suppress_tokens = [n for n in range(len(whisper.tokenizer)) if n not in letters]
    return whisper


def talkative(tiny: Path) -> Whisper:
    """Says something else for each clip: random weights hardly listen."""
    whisper = only_letters(load_whisper(str(tiny), 1))
    with torch.no_grad():
        for layer in whisper.model.model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(300)
    return whisper


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two shards, lengths mixed, with clips of several windows and one whose transcript has no word."""
    seconds = [0.9, 2.6, 0.4, 1.0, 0.5], [1.7, 0.6]
    writer, number = ShardWriter(tmp_path / "test", "utterances", {"language": "cs", "split": "test"}), 0
    for index, lengths in enumerate(seconds):
        records = []
        for length in lengths:
            records.append({**make_utterance(number, length), "id": f"u.{number}\u2028"})
            number += 1
        writer.write(index, records, seconds=sum(lengths))
    writer.finish(corpus="made", language="cs", split="test", seconds=7.7, left_out={})
    return tmp_path / "test"


def all_rows(folder: Path) -> list[dict]:
    reader = ShardReader(folder, "utterances")
    return [row for shard in range(len(reader.shards)) for row in reader.read(shard)]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_utterance_is_scored_once_in_the_shards_order(batch_size, corpus, tiny_whisper, tmp_path):
    model = LoadedModel(talkative(tiny_whisper), None)
    metrics, rows = run(model, corpus, tmp_path / "base.json", batch_size=batch_size)
    source = all_rows(corpus)
    assert [row["id"] for row in rows] == [row["id"] for row in source]
    assert [row["reference"] for row in rows] == [row["text"] for row in source]
    assert [row["seconds"] for row in rows] == [row["seconds"] for row in source]
    transcriber = Transcriber(model.whisper, "cs", torch.float32)
    for row, utterance in zip(rows, source, strict=True):
        if utterance["seconds"] <= 1:  # one clip at a time, without a batch around it
            assert row["hypothesis"] == transcriber([decode_flac(utterance["audio"])])[0].text
        counts = scoring.score(row["reference"], row["hypothesis"], "cs")
        assert counts.items() <= row.items()
    assert len({row["hypothesis"] for row in rows}) > 1
    totals = scoring.totals(rows)
    assert totals.items() <= metrics.items()
    assert totals["utterances"] == 7
    assert metrics["audio_seconds"] == pytest.approx(7.7)
    expected = {"corpus": "made", "split": "test", "normaliser": "marks-1", "system": "clsr", "language": "cs"}
    assert expected.items() <= metrics.items()
    assert metrics["gates"] == {}


def test_a_long_clip_is_the_texts_of_its_windows_joined(tiny_whisper, tmp_path, corpus, monkeypatch):
    """Each window's text is its length here, so that what was decoded, and in which order, can be read from the row."""
    heard: list[int] = []

    def lengths(self, clips, timed):
        heard.extend(len(clip) for clip in clips)
        return [Transcript([], str(len(clip)), False, False, 1.0) for clip in clips], {}

    monkeypatch.setattr(Transcriber, "with_gates", lengths)
    _, rows = run(LoadedModel(only_letters(load_whisper(str(tiny_whisper), 1)), None), corpus, tmp_path / "base.json")
    expected = []
    for row, utterance in zip(rows, all_rows(corpus), strict=True):
        windows = list(cut_at_pauses([decode_flac(utterance["audio"])], 1))
        assert [int(part) for part in row["hypothesis"].split()] == [len(window.samples) for window in windows]
        assert len(windows) == 1 or utterance["seconds"] > 1
        expected += [len(window.samples) for window in windows]
    assert sorted(heard) == sorted(expected)


def test_an_utterance_without_a_word_is_listed(tiny_whisper, tmp_path):
    writer = ShardWriter(tmp_path / "test", "utterances", {"language": "cs", "split": "test"})
    writer.write(0, [make_utterance(0), {**make_utterance(1), "text": "...!"}, make_utterance(2)], seconds=1.8)
    writer.finish(corpus="made", language="cs", split="test", seconds=1.8, left_out={})
    metrics, rows = run(
        LoadedModel(only_letters(load_whisper(str(tiny_whisper), 1)), None), tmp_path / "test", tmp_path / "base.json"
    )
    assert [row["id"] for row in metrics["unscored"]] == ["clip-001"]
    assert {row["id"] for row in rows} | {"clip-001"} == {"clip-000", "clip-001", "clip-002"}
    assert metrics["words"] == sum(row["words"] for row in rows) == 9


# Gates


def routed(tiny: Path, bias: float) -> LoadedModel:
    """An expert that all tokens go to (bias > 0), or none."""
    whisper, random = only_letters(load_whisper(str(tiny), 1)), torch.Generator().manual_seed(5)
    student = DistilWhisperForConditionalGeneration.from_whisper(whisper.model, ["cs"]).eval()
    with torch.no_grad():
        for layer in student.routed.values():
            layer.gates["cs"].inner.bias.fill_(50)
            layer.gates["cs"].outer.weight.fill_(bias)
            layer.experts["cs"].fc2.bias.add_(torch.randn(32, generator=random))
    return LoadedModel(replace(whisper, model=student), student)


@pytest.mark.parametrize(("bias", "share"), [(1.0, 1.0), (-1.0, 0.0)])
def test_gate_shares_of_planted_gates(bias, share, corpus, tiny_whisper, tmp_path):
    metrics, rows = run(routed(tiny_whisper, bias), corpus, tmp_path / "clsr.json")
    assert metrics["gates"] == dict.fromkeys(LAYERS, share)
    base, base_rows = run(
        LoadedModel(only_letters(load_whisper(str(tiny_whisper), 1)), None), corpus, tmp_path / "base.json"
    )
    same = [row["hypothesis"] for row in rows] == [row["hypothesis"] for row in base_rows]
    assert same == (share == 0)


def test_a_language_without_an_expert_is_evaluated_as_the_base(corpus, tiny_whisper, tmp_path):
    metrics, rows = run(routed(tiny_whisper, 1.0), corpus, tmp_path / "clsr.json", "nl")
    base, base_rows = run(
        LoadedModel(only_letters(load_whisper(str(tiny_whisper), 1)), None), corpus, tmp_path / "base.json", "nl"
    )
    assert rows == base_rows
    assert set(metrics["gates"].values()) == {0.0}
    assert base["gates"] == {}
    ignored = ("seconds", "gates")
    assert {name: value for name, value in metrics.items() if name not in ignored} == {
        name: value for name, value in base.items() if name not in ignored
    }


def test_padding_does_not_count():
    """By hand: two clips of 0.02 s and 0.06 s, one token and three; what lies beyond says the opposite."""
    routing = Routing("cs")
    routing.record("encoder.layers.0", torch.tensor([[True, False, False, False], [True, True, False, True]]))
    prompt = torch.ones(2, 4, dtype=torch.bool)
    routing.record("decoder.layers.0", prompt)
    for step in ([False, True], [False, False]):  # the first clip ended with its first token
        routing.record("decoder.layers.0", torch.tensor(step)[:, None])
    use = GateUse()
    use.add(routing.gates, [0.02, 0.06], [1, 3])
    assert use.shares() == {"encoder.layers.0": 3 / 4, "decoder.layers.0": (4 + 4 + 1) / (4 + 4 + 2)}
    use.add(routing.gates, [0.02, 0.06], [1, 3])
    assert use.tokens == {"encoder.layers.0": 8, "decoder.layers.0": 20}


@pytest.mark.parametrize(("bias", "share"), [(1.0, 100), (-1.0, 0)])
def test_each_word_has_the_planted_share(bias, share, corpus, tiny_whisper, tmp_path):
    _, rows = run(routed(tiny_whisper, bias), corpus, tmp_path / "clsr.json")
    assert {row["id"]: row["expert_words"] for row in rows} == {
        row["id"]: [share] * len(row["hypothesis"].split()) for row in rows
    }
    assert any(row["expert_words"] for row in rows)


def test_a_word_has_the_share_of_its_tokens_where_they_are_predicted(tiny_whisper):
    """By hand: the second clip is silent; of the third a letter is two tokens, and the last token begins no word."""
    model = routed(tiny_whisper, 1.0).whisper
    transcriber = Transcriber(model, "cs", torch.float32)
    ids = model.tokenizer.convert_tokens_to_ids
    first, quiet = [*ids(["a", "b", "\u0120", "c"]), transcriber.whisper.tokenizer.eos_token_id], [0]
    third = [*ids(["\u0120", "d"]), *ids(["\u00c3", "\u00a9"]), *ids(["\u0120"])]  # the bytes of é, and a space
    found = [
        Transcript(first, transcriber.text(first), False, False, 1.0),
        Transcript(quiet, "", False, False, 0.0, silent=True),
        Transcript(third, transcriber.text(third), False, False, 1.0),
    ]
    assert [one.text for one in found] == ["ab c", "", "dé"]
    prompt = torch.zeros(2, 3, dtype=torch.bool)
    upper = [[1, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]]  # predict the first token, the second, and so on
    lower = [[1, 1, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0]]
    routing = Routing("cs")
    for layer, gates in (("decoder.layers.0", upper), ("decoder.layers.1", lower)):
        routing.record(layer, torch.cat([prompt, torch.tensor(gates)[:, :1].bool()], 1))
        for step in range(1, 6):
            routing.record(layer, torch.tensor(gates)[:, step : step + 1].bool())
    # ab: (1 + 1/2 + 0 of the space) / 3; c: 1/2; dé: the space before it has no word; (1/2 + 1 + 1/2 + 0) / 4
    assert expert_words(transcriber, found, routing.gates) == [[50, 50], [], [50]]
    assert expert_words(Transcriber(model, "nl", torch.float32), found, routing.gates) == [None] * 3


@pytest.mark.parametrize(
    ("kept", "shares"),
    [
        (slice(0, 5), [10, 20, 30, 40, 50]),
        (slice(1, 5), [30, 40, 50]),  # "- a" is one word with two written ones
        (slice(0, 3), [10, 20, 30, 40]),
        (slice(2, 3), [40]),  # the second "b"
        (slice(5, 5), []),
    ],
)
def test_words_that_a_join_has_dropped_have_no_share(kept: slice, shares: list[int]):
    said = [Word(text, n, n + 1, 0.1 * n) for n, text in enumerate([" - a", " b", " b", " c"])]
    before = Transcript([], "- a b b c", False, False, 1.0, words=tuple(said))
    left = before.words[kept]
    after = replace(before, words=left, text="".join(word.text for word in left).strip())
    assert kept_shares([10, 20, 30, 40, 50], before, after) == shares


@pytest.mark.parametrize("ends", [True, False])
def test_gate_use_counts_each_position_that_was_read(ends, tiny_whisper, monkeypatch):
    """One clip has no padding: what the decoder's layers saw is what is counted, whether it ended by itself or not."""
    model = routed(tiny_whisper, 1.0)
    end = model.whisper.tokenizer.eos_token_id
    model.whisper.model.generation_config.suppress_tokens.remove(end)
    transcriber = Transcriber(model.whisper, "cs", torch.float32, cut_loops=False)
    if ends:
        transcriber.config.forced_eos_token_id = end  # at the last step
    (found,), gates = transcriber.with_gates([tone(1.0, 16000)])
    read = sum(gate.shape[1] for gate in gates["decoder.layers.0"])
    use = GateUse()
    use.add(gates, [1.0], [len(found.tokens)])
    assert use.tokens["decoder.layers.0"] == read
    assert use.tokens["encoder.layers.0"] == 50


# Loops


@given(
    st.lists(st.integers(0, 4), max_size=20), st.lists(st.integers(0, 4), min_size=1, max_size=32), st.integers(24, 60)
)
def test_a_loop_is_cut_after_one_copy_however_far_it_ran(before, piece, copies):
    start = loop_start([*before, *piece * copies])
    assert start is not None
    assert start == loop_start([*before, *piece * (copies + 3)])
    assert start <= len(before) + len(piece)
    rest = [*before, *piece * copies][start:]
    period = next(n for n in range(1, 33) if all(a == b for a, b in zip(rest, rest[n:], strict=False)))
    assert rest[:period] == [*before, *piece * copies][start - period : start]  # what is cut repeats what is left


@pytest.mark.parametrize(
    "tokens",
    [
        list(range(100)),
        [7] * 23,
        [1, *[7] * 22, 2],
        list(range(8)) * 3,  # a refrain
        [*range(20), 7, 7, 7, 7, 7],
        [*[7] * 40, 1],  # it went on
        [],
    ],
)
def test_what_is_said_again_a_few_times_is_no_loop(tokens):
    assert loop_start(tokens) is None


def test_decoding_ends_in_a_loop_and_keeps_one_copy(tiny_whisper):
    whisper = load_whisper(str(tiny_whisper), 5)
    letter = whisper.tokenizer.convert_tokens_to_ids("a")
    whisper.model.generation_config.suppress_tokens = [n for n in range(len(whisper.tokenizer)) if n != letter]
    model = DistilWhisperForConditionalGeneration.from_whisper(whisper.model, ["cs"]).eval()
    transcriber = Transcriber(replace(whisper, model=model), "cs", torch.float32)
    found, gates = transcriber.with_gates([tone(1.0, 16000)] * 2)
    read = sum(gate.shape[1] for gate in gates["decoder.layers.0"])
    assert 24 <= read < 40  # of the 444 tokens that there is room for
    said = b"a" * (read - 4 + 1)  # the last one is not read, the prompt is
    ratio = len(said) / len(zlib.compress(said))
    assert found == [Transcript([letter], "a", looped=True, unended=False, compression_ratio=ratio, language="cs")] * 2
    assert ratio > 2.4


# Transcribing


@pytest.fixture
def experts(tiny_whisper: Path, tmp_path: Path) -> Path:
    loaded = routed(tiny_whisper, 1.0)
    facts = {"base": str(tiny_whisper), "base_weights": loaded.whisper.fingerprint, "audio_window_s": 1}
    assert loaded.student is not None
    save_expert(loaded.student, "cs", tmp_path / "experts", facts)
    return tmp_path / "experts"


def tone(seconds: float, rate: int) -> np.ndarray:
    return (0.1 * np.sin(2 * np.pi * 300 / rate * np.arange(round(seconds * rate)))).astype(np.float32)


def texts(model: LoadedModel, path: Path) -> list[str]:
    return [said.text for said in transcribe(model, path, "cs", CPU, "fp32")]


def test_experts_transcribe_files_of_any_kind(experts, tmp_path):
    """A mono 16 kHz file, the same sound in stereo at 48 kHz, and an MP3 whose name says WAV."""
    model = load_model(str(experts))
    assert model.student is not None
    only_letters(model.whisper)
    direct = Transcriber(model.whisper, "cs", torch.float32)
    expected = [direct([tone(0.8, 16000)])[0].text]
    soundfile.write(tmp_path / "mono.wav", tone(0.8, 16000), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone(0.8, 48000)] * 2, 1), 48000, subtype="FLOAT")
    soundfile.write(tmp_path / "mp3.wav", tone(0.8, 16000), 16000, format="MP3")
    assert texts(model, tmp_path / "mono.wav") == expected
    assert texts(model, tmp_path / "stereo.wav") == expected
    assert len(texts(model, tmp_path / "mp3.wav")) in (1, 2)  # the encoder's padding may reach beyond a window
    model.student.drop_expert("cs")
    assert [direct([tone(0.8, 16000)])[0].text] != expected  # the experts did speak


def test_a_file_of_several_windows(experts, tmp_path):
    """More windows than go through the model at once."""
    sound = np.tile(np.concatenate([tone(0.7, 16000), np.zeros(1600, np.float32)]), 14)
    soundfile.write(tmp_path / "long.wav", sound, 16000)
    model = load_model(str(experts))
    only_letters(model.whisper)
    found = texts(model, tmp_path / "long.wav")
    assert 12 <= len(found) <= 15  # cut in the pauses
    assert all(found)


@pytest.mark.parametrize("seconds", [0, 0.005])
def test_a_file_without_sound_is_refused(seconds, experts, tmp_path):
    soundfile.write(tmp_path / "empty.wav", tone(seconds, 16000), 16000)
    with pytest.raises(PipelineError, match=r"empty\.wav: no audio in it") as caught:
        texts(load_model(str(experts)), tmp_path / "empty.wav")
    assert "\n" not in str(caught.value)


def test_what_is_no_file_or_no_audio_is_refused(experts, tmp_path):
    model = load_model(str(experts))
    with pytest.raises(PipelineError, match=r"nothing\.wav: no such file"):
        texts(model, tmp_path / "nothing.wav")
    with pytest.raises(PipelineError, match="no such file"):
        texts(model, tmp_path)
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(PipelineError, match=r"text\.wav"):
        texts(model, tmp_path / "text.wav")
