"""One Transcriber decodes for validation, evaluate and transcribe: its route, the room for a text, and silence."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from makers import make_tiny_whisper, make_utterance, saying

from cache.files import read_jsonl
from cache.shards import ShardReader, ShardWriter
from stages.evaluate.run import Subject, evaluate
from stages.evaluate.settings import EvaluateSettings
from stages.shared.audio import decode_flac
from stages.shared.student.loading import LoadedModel, transcribe
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.models import load_whisper
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.train_student.processes import SINGLE_PROCESS
from stages.train_student.validation import Validation, validate_languages

CPU = torch.device("cpu")
LAYERS = ["encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1"]
RATE = 16_000


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With as many positions as the released ones have."""
    return make_tiny_whisper(tmp_path_factory.mktemp("tiny"), positions=448)


def with_expert(tiny: Path) -> LoadedModel:
    """An expert for cs that all tokens go to; letters alone are said."""
    whisper = load_whisper(str(tiny), 1)
    letters = set(whisper.tokenizer.convert_tokens_to_ids(list("abcdefghijklmnop")))
    whisper.model.generation_config.suppress_tokens = [n for n in range(len(whisper.tokenizer)) if n not in letters]
    student = DistilWhisperForConditionalGeneration.from_whisper(whisper.model, ["cs"]).eval()
    with torch.no_grad():
        for layer in student.routed.values():
            layer.gates["cs"].outer.weight.fill_(1.0)
            layer.gates["cs"].inner.bias.fill_(50)
    return LoadedModel(replace(whisper, model=student), student)


def clip(number: int = 0) -> np.ndarray:
    return decode_flac(make_utterance(number)["audio"])


def shards(folder: Path, records: list[dict], split: str = "test") -> Path:
    writer = ShardWriter(folder, "utterances", {"language": "cs", "split": split})
    writer.write(0, records, seconds=sum(record["seconds"] for record in records))
    writer.finish(corpus="made", language="cs", split=split, seconds=1.0, left_out={})
    return folder


# Who decodes: each gives the text of one clip


def by_evaluate(model: LoadedModel, tmp_path: Path, **settings) -> str:
    chosen = EvaluateSettings(dtype="fp32", **settings)
    evaluate(
        model, shards(tmp_path / "test", [make_utterance(0)]), Subject("cs", "x", "x"), tmp_path / "x.json", chosen, CPU
    )
    return read_jsonl(tmp_path / "x.utterances.jsonl")[0]["hypothesis"]


def by_transcribe(model: LoadedModel, tmp_path: Path) -> str:
    (tmp_path / "clip.flac").write_bytes(make_utterance(0)["audio"])
    return " ".join(said.text for said in transcribe(model, tmp_path / "clip.flac", "cs", CPU, "fp32"))


def by_validation(model: LoadedModel, tmp_path: Path) -> str:
    """Validation keeps rates alone: the text that is right for it is that of `evaluate`."""
    text = by_evaluate(model, tmp_path)
    own = Validation("cs", [(clip(), text)], Transcriber(model.whisper, "cs", torch.float32))
    assert validate_languages([own], SINGLE_PROCESS)["wer"] == 0
    return text


@pytest.mark.parametrize("decode", [by_evaluate, by_transcribe, by_validation])
def test_the_experts_of_both_sides_are_called(decode: Callable, tiny_whisper, tmp_path):
    model = with_expert(tiny_whisper)
    assert model.student is not None
    calls: Counter[str] = Counter()
    for name, layer in model.student.routed.items():
        layer.experts["cs"].register_forward_hook(lambda *_, name=name: calls.update([name]))
        layer.shared.register_forward_hook(lambda *_, name=name: calls.update([f"shared {name}"]))
    assert decode(model, tmp_path)
    assert set(calls) == set(LAYERS)  # and the shared blocks of none
    assert all(calls[layer] >= 1 for layer in LAYERS)


def test_all_of_them_say_the_same(tiny_whisper, tmp_path):
    texts = set()
    for number, decode in enumerate((by_evaluate, by_transcribe, by_validation)):
        (tmp_path / str(number)).mkdir()
        texts.add(decode(with_expert(tiny_whisper), tmp_path / str(number)))
    assert len(texts) == 1


def test_gates_are_told_of_encoder_and_decoder(tiny_whisper):
    model = with_expert(tiny_whisper)
    _, gates = Transcriber(model.whisper, "cs", torch.float32).with_gates([clip(0), clip(1)])
    assert set(gates) == set(LAYERS)
    assert all(bool(gate.all()) for calls in gates.values() for gate in calls)
    _, other = Transcriber(model.whisper, "nl", torch.float32).with_gates([clip(0)])
    assert not any(bool(gate.any()) for calls in other.values() for gate in calls)
    assert Transcriber(load_whisper(str(tiny_whisper), 1), "cs", torch.float32).with_gates([clip(0)])[1] == {}


def test_what_was_encoded_without_a_route_is_not_decoded_with_one(tiny_whisper):
    model = with_expert(tiny_whisper)
    transcriber = Transcriber(model.whisper, "cs", torch.float32)
    encoded = model.whisper.model.model.encoder(transcriber.log_mel([clip()])).last_hidden_state
    with pytest.raises(ValueError, match="experts"):
        transcriber.decode(encoded, [False])


# How long a text may be

LONG = " ".join(f"slovo{number:03d}" for number in range(40))  # 359 bytes, each a token here: far more than 15 a second


@pytest.mark.parametrize("decode", [by_evaluate, by_transcribe, by_validation])
def test_a_text_of_many_tokens_is_said_to_its_end(decode: Callable, tiny_whisper, tmp_path):
    assert decode(LoadedModel(saying(tiny_whisper, LONG), None), tmp_path) == LONG


def numbers(count: int) -> str:
    return " ".join(map(str, range(100, 100 + count)))


@pytest.mark.parametrize("tokens", [443, 444, 445, 600])
def test_a_text_that_did_not_end_is_counted_and_marked(tokens, tiny_whisper, tmp_path):
    """The 448 positions have room for the prompt of four and 444 tokens, the last of which may be end of text."""
    text = numbers(150)[: tokens - 2] + "x"  # with the space before it, one byte less than the tokens without the end
    whisper = saying(tiny_whisper, text)
    (said,) = Transcriber(whisper, "cs", torch.float32)([clip()])
    room = tokens + 1 <= 444
    assert said.unended == (not room)
    assert (said.tokens[-1] == whisper.tokenizer.eos_token_id) == room
    source = shards(tmp_path / "test", [make_utterance(0)])
    metrics = evaluate(
        LoadedModel(whisper, None),
        source,
        Subject("cs", "x", "x"),
        tmp_path / "x.json",
        EvaluateSettings(dtype="fp32"),
        CPU,
    )
    row = read_jsonl(tmp_path / "x.utterances.jsonl")[0]
    assert (metrics["unended"], row["unended"], metrics["loops"]) == (int(not room), not room, 0)
    own = Validation("cs", [(clip(), "Ano.")], Transcriber(whisper, "cs", torch.float32))
    assert validate_languages([own], SINGLE_PROCESS)["unended"] == int(not room)


def test_a_clip_that_does_not_end_beside_one_that_does(tiny_whisper):
    """A batch pads what ended with end of text; what did not end has none."""
    whisper = saying(tiny_whisper, numbers(150))
    position = whisper.model.model.decoder.embed_positions.weight
    ends = position[447].clone()
    said = Transcriber(whisper, "cs", torch.float32)([clip(0), clip(1)])
    assert [one.unended for one in said] == [True, True]
    with torch.no_grad():
        position[200] = 100 * whisper.model.model.decoder.embed_tokens.weight[whisper.tokenizer.eos_token_id]
    said = Transcriber(whisper, "cs", torch.float32)([clip(0), clip(1)])
    assert [one.unended for one in said] == [False, False]
    assert torch.equal(position[447], ends)


def test_loops_are_cut_or_left(tiny_whisper, tmp_path):
    whisper = saying(tiny_whisper, "ano" + " ne" * 20)
    for cut in (True, False):
        (tmp_path / str(cut)).mkdir()
        text = by_evaluate(LoadedModel(whisper, None), tmp_path / str(cut), cut_loops=cut)
        assert text == ("ano ne" if cut else "ano" + " ne" * 20)
    said = {cut: Transcriber(whisper, "cs", torch.float32, cut)([clip()])[0] for cut in (True, False)}
    assert (said[True].looped, said[False].looped) == (True, True)
    assert not said[False].unended
    endless = saying(tiny_whisper, " ne" * 300)
    (uncut,) = Transcriber(endless, "cs", torch.float32, cut_loops=False)([clip()])
    assert (uncut.looped, uncut.unended, len(uncut.tokens)) == (True, True, 444)


# Silence


def silent(seconds: float = 0.6, offset: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(0).uniform(-0.0009, 0.0009, round(seconds * RATE))
    return (noise + offset).astype(np.float32)


@pytest.mark.parametrize("nothing", [np.zeros(9600, np.float32), silent(), silent(offset=0.2), silent(offset=-0.03)])
def test_nothing_is_said_where_nothing_is_to_be_heard(nothing, tiny_whisper):
    """Also where a constant offset of the recorder makes samples large."""
    whisper = saying(tiny_whisper, "Titulky vytvořil JohnyX.")
    said = Transcriber(whisper, "cs", torch.float32)([clip(0), nothing, clip(1), nothing])
    assert [one.text for one in said] == ["Titulky vytvořil JohnyX.", "", "Titulky vytvořil JohnyX.", ""]
    assert [one.silent for one in said] == [False, True, False, True]
    assert not any(one.unended or one.looped for one in said)
    assert [one.text for one in Transcriber(whisper, "cs", torch.float32)([nothing])] == [""]


def test_silent_windows_of_a_recording_give_no_words(tiny_whisper, tmp_path):
    sound = np.concatenate([clip(0)[:9600], silent(3.4), clip(1)[:9600]])
    soundfile.write(tmp_path / "pauses.wav", sound, RATE, subtype="FLOAT")
    model = LoadedModel(saying(tiny_whisper, "Ano."), None)
    said = [one.text for one in transcribe(model, tmp_path / "pauses.wav", "cs", CPU, "fp32")]
    assert said.count("Ano.") == 2
    assert said.count("") == len(said) - 2 >= 2


def test_a_silent_recording_gives_no_pseudo_targets(tiny_whisper, tmp_path):
    """`prepare` leaves such recordings out; shards may come from elsewhere."""
    from stages.shared.audio import audio_sha256, encode_flac

    sound = silent()
    mute = {**make_utterance(1), "audio": encode_flac(sound), "audio_sha256": audio_sha256(sound), "text": ""}
    source = shards(tmp_path / "train", [make_utterance(0), mute, make_utterance(2)], "train")
    settings = TeacherCacheSettings(targets="pseudo", dtype="fp32", top_k=8)
    manifest = cache_teacher(ScoringJob(saying(tiny_whisper, "Ano."), "cs", settings, CPU), source, tmp_path / "out")
    assert manifest["left_out"] == {"nothing_heard": 1}
    rows = ShardReader(tmp_path / "out", "teacher").read(0)
    assert [len(row["targets"]) > 0 for row in rows] == [True, False, True]
    assert [row["teacher_text"] for row in rows] == ["Ano.", "", "Ano."]


def test_gates_of_silent_windows_do_not_count(tiny_whisper, tmp_path):
    from stages.shared.audio import audio_sha256, encode_flac

    sound = silent()
    mute = {**make_utterance(1), "audio": encode_flac(sound), "audio_sha256": audio_sha256(sound)}
    loud = make_utterance(0)
    for name, records in {"with": [loud, mute], "without": [loud]}.items():
        source = shards(tmp_path / name, records)
        out = tmp_path / f"{name}.json"
        metrics = evaluate(
            with_expert(tiny_whisper), source, Subject("cs", "x", "x"), out, EvaluateSettings(dtype="fp32"), CPU
        )
        assert metrics["gates"] == dict.fromkeys(LAYERS, 1.0)
    first, second = (read_jsonl(tmp_path / f"{name}.utterances.jsonl") for name in ("with", "without"))
    assert first[0]["hypothesis"] == second[0]["hypothesis"]
    assert first[1]["hypothesis"] == ""
