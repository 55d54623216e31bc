"""Exports, run by the programs that they are for."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from export_makers import make_lora, text_of
from makers import make_tiny_whisper, make_utterance, run, speaking
from safetensors.torch import load_file
from sources import ROOT
from transformers import WhisperFeatureExtractor, WhisperTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from cache.files import read_json
from stages.shared.audio import decode_flac
from stages.shared.student.loading import load_model
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import load_whisper
from stages.shared.whisper.saving import save_whisper
from stages.shared.whisper.targets import prompt_ids


def clips() -> list[np.ndarray]:
    return [decode_flac(make_utterance(number, 0.5 + 0.1 * number)["audio"]) for number in range(5)]


# CTranslate2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_ctranslate2_says_what_the_model_says(precision, speaker, work, monkeypatch):
    """Greedily, in the window of the training."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    make_lora(speaker, work / "lora")
    assert run(monkeypatch, "export", "lora", "--to", "ctranslate2", "--out", "out", "--precision", precision) == 0
    ours = load_model("lora").whisper
    theirs = ctranslate2.models.Whisper("out", device="cpu", compute_type="float32", intra_threads=1)
    features = ctranslate2.StorageView.from_array(LogMel(80, 1)(clips()).numpy())
    config = ours.model.generation_config
    found = theirs.generate(
        features,
        [prompt_ids(ours, "cs")] * len(clips()),
        beam_size=1,
        max_length=152,  # of which it takes half, as openai/whisper does: 76 tokens, for which the decoder has room
        suppress_tokens=config.suppress_tokens,
    )
    said = [ours.tokenizer.decode(one.sequences_ids[0], skip_special_tokens=True).strip() for one in found]
    if precision == "fp32":
        assert said == text_of(ours, clips())
    assert len(set(said)) > 1


def test_a_ctranslate2_folder_has_what_faster_whisper_reads(speaker, work, monkeypatch):
    pytest.importorskip("ctranslate2")
    make_lora(speaker, work / "lora")
    assert run(monkeypatch, "export", "lora", "--to", "ctranslate2", "--out", "out") == 0
    names = {path.name for path in Path("out").iterdir()}
    assert {"model.bin", "config.json", "tokenizer.json", "preprocessor_config.json", "README.md"} <= names
    assert read_json(Path("out/preprocessor_config.json"))["chunk_length"] == 1
    config = read_json(Path("out/config.json"))
    generation = load_model("lora").whisper.model.generation_config
    assert config["suppress_ids"] == generation.suppress_tokens
    assert config["lang_ids"] == sorted(generation.lang_to_id.values())
    assert not list(work.glob(".tmp-*"))


def test_the_lines_of_the_card_run_in_faster_whisper(work, monkeypatch):
    """The search for pauses hears no speech in tones, so that all is taken for speech here."""
    transcribe = pytest.importorskip("faster_whisper.transcribe")
    base = make_tiny_whisper(work / "tiny", positions=448)  # faster-whisper asks for as many
    save_whisper(speaking(load_whisper(str(base), 1), listen=20, end=2.5, seed=4), work / "base", torch.float32)
    make_lora(work / "base", work / "lora")
    assert run(monkeypatch, "export", "lora", "--to", "ctranslate2", "--out", "here") == 0
    clip = decode_flac(make_utterance(5, 0.9)["audio"])
    soundfile.write("speech.wav", clip, 16000, subtype="FLOAT")
    monkeypatch.setattr(transcribe, "get_speech_timestamps", lambda audio, options: [{"start": 0, "end": len(audio)}])
    monkeypatch.setattr(transcribe, "pad_or_trim", transcribe.pad_or_trim)  # the card changes it
    lines: list[str] = []
    exec(Path("here/README.md").read_text().split("```python\n")[1].split("```")[0], {"print": lines.append})
    assert len(lines) == 1 and lines[0]


# whisper.cpp


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with as many tokens as a released Whisper, at the same numbers: whisper.cpp knows no others."""
    folder = tmp_path_factory.mktemp("released")
    make_tiny_whisper(folder, languages=[code for code in LANGUAGES if code != "yue"], extra_pieces=50257 - 256, ffn=4)
    save_whisper(speaking(load_whisper(str(folder), 1), listen=20, end=2.5, seed=4), folder, torch.float32)
    return folder


def parsed(path: Path) -> tuple[list[int], np.ndarray, list[bytes], dict[str, np.ndarray]]:
    """Reads the file as whisper.cpp's loader does: sizes, mel filters, pieces of text, tensors."""
    data, place = path.read_bytes(), 0

    def numbers(count: int) -> list[int]:
        nonlocal place
        place += 4 * count
        return list(struct.unpack_from(f"<{count}i", data, place - 4 * count))

    def taken(count: int) -> bytes:
        nonlocal place
        place += count
        return data[place - count : place]

    assert numbers(1) == [0x67676D6C]
    sizes = numbers(11)
    mels, bins = numbers(2)
    filters = np.frombuffer(taken(4 * mels * bins), "<f4").reshape(mels, bins)
    pieces = [taken(numbers(1)[0]) for _ in range(numbers(1)[0])]
    tensors: dict[str, np.ndarray] = {}
    while place < len(data):
        rank, length, kind = numbers(3)
        shape = numbers(rank)[::-1]
        name, dtype = taken(length).decode(), ("<f4", "<f2")[kind]
        tensors[name] = np.frombuffer(taken(int(np.prod(shape)) * int(dtype[-1])), dtype).reshape(shape)
    return sizes, filters, pieces, tensors


def test_a_ggml_file_holds_the_model(released, work, monkeypatch):
    assert run(monkeypatch, "export", str(released), "--to", "ggml", "--out", "out", "--lang", "cs") == 0
    sizes, filters, pieces, tensors = parsed(Path("out/ggml-model.bin"))
    assert sizes == [51865, 1500, 32, 2, 2, 80, 32, 2, 2, 80, 1]
    np.testing.assert_array_equal(filters, WhisperFeatureExtractor().mel_filters.T.astype("f4"))
    tokenizer = WhisperTokenizer.from_pretrained(released)
    assert len(pieces) == 50257
    letters = bytes_to_unicode()
    for number in (0, 65, 255, 256, 50256):
        assert "".join(letters[byte] for byte in pieces[number]) == tokenizer.convert_ids_to_tokens(number)
    state = load_file(released / "model.safetensors")
    own = {
        "encoder.positional_embedding": "encoder.embed_positions.weight",
        "encoder.conv1.weight": "encoder.conv1.weight",
        "encoder.conv1.bias": "encoder.conv1.bias",
        "encoder.ln_post.weight": "encoder.layer_norm.weight",
        "encoder.blocks.1.attn.key.weight": "encoder.layers.1.self_attn.k_proj.weight",
        "encoder.blocks.0.mlp.2.bias": "encoder.layers.0.fc2.bias",
        "decoder.blocks.1.cross_attn.key.weight": "decoder.layers.1.encoder_attn.k_proj.weight",
        "decoder.blocks.0.cross_attn_ln.bias": "decoder.layers.0.encoder_attn_layer_norm.bias",
        "decoder.blocks.0.mlp_ln.weight": "decoder.layers.0.final_layer_norm.weight",
        "decoder.token_embedding.weight": "decoder.embed_tokens.weight",
        "decoder.positional_embedding": "decoder.embed_positions.weight",
        "decoder.ln.bias": "decoder.layer_norm.bias",
    }
    for name, place in own.items():
        matrix = state[f"model.{place}"].ndim > 1 and "positional" not in name
        wanted = state[f"model.{place}"].numpy().astype("f2" if matrix else "f4")
        np.testing.assert_array_equal(tensors[name].reshape(wanted.shape), wanted, err_msg=name)
        assert tensors[name].dtype == wanted.dtype
    assert tensors["encoder.conv2.bias"].shape == (32, 1)
    assert len(tensors) == len(state)


WHISPER_CPP = """
import sys, numpy
sys.path.insert(0, {support!r})
from runtimes import whisper_cpp_says
from pathlib import Path
clips = list(numpy.load("clips.npz").values())
print(*whisper_cpp_says(Path("out"), "cs", 1)(clips), sep="\\n")
"""


def test_whisper_cpp_says_what_the_model_says(released, work, monkeypatch):
    """From the same values, rounded to float16, and among the same tokens; whisper.cpp stops at half of the decoder's room.

    In a process of its own: whisper.cpp ends it where it fails.
    """
    pytest.importorskip("pywhispercpp")
    model = load_whisper(str(released))
    for parameter in model.model.parameters():
        parameter.data.copy_(parameter.data.half())
    model.model.generation_config.suppress_tokens = list(range(50258, 50364))  # whisper.cpp has a list of its own
    model.model.generation_config.begin_suppress_tokens = [50257]
    save_whisper(model, work / "rounded", torch.float32)
    assert run(monkeypatch, "export", "rounded", "--to", "ggml", "--out", "out", "--lang", "cs") == 0
    np.savez("clips.npz", *clips())
    code = WHISPER_CPP.format(support=str(ROOT / "tests/support"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = text_of(load_whisper("rounded"), clips())
    for said, text in zip(done.stdout.splitlines(), wanted, strict=True):
        assert len(said) > 100 and text.startswith(said)
    assert len(set(wanted)) > 3


def test_a_vocabulary_of_another_size_is_refused(speaker, work, monkeypatch, capsys):
    assert run(monkeypatch, "export", str(speaker), "--to", "ggml", "--out", "out", "--lang", "cs") == 1
    assert "1865 tokens, expected 51864, 51865, 51866 as in a released Whisper" in capsys.readouterr().err
    assert not Path("out").exists()
