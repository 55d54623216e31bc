"""A plain folder, against the model that it was made from: by transformers alone, and by older readers of its files."""

import base64
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from export_makers import LAYERS, OPEN, SHUT, make_experts, make_lora, text_of
from huggingface_hub import ModelCard
from makers import make_tiny_whisper, make_utterance, run, run_captured
from metrics_files import write_metrics
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from cache.shards import ShardWriter
from stages.export.fold import fixed_layers
from stages.shared.audio import decode_flac
from stages.shared.student.forms import ExpertForm
from stages.shared.student.loading import load_model
from stages.shared.whisper.alignment_heads import ALIGNMENT_HEADS
from stages.shared.whisper.models import load_whisper


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return dict(load_whisper(str(folder)).model.named_parameters())


def export(monkeypatch, *arguments: object) -> None:
    assert run(monkeypatch, "export", *map(str, arguments)) == 0


# Any model


def test_an_adapter_becomes_a_plain_whisper_of_the_same_weights(speaker, work, monkeypatch):
    make_lora(speaker, work / "lora")
    export(monkeypatch, "lora", "--to", "whisper", "--out", "out")
    merged = load_model("lora").whisper
    found = weights("out")
    for name, parameter in merged.model.named_parameters():
        assert torch.equal(found[name], parameter), name
    clips = [decode_flac(make_utterance(number, 0.8)["audio"]) for number in range(3)]
    said = text_of(load_whisper("out"), clips)
    assert said == text_of(merged, clips)
    assert len(set(said)) > 1


def test_transformers_alone_runs_it_in_both_windows(speaker, work, monkeypatch):
    """In 30 s, and in the window of the training by the lines of the card."""
    make_lora(speaker, work / "lora")
    export(monkeypatch, "lora", "--to", "whisper", "--out", "here")
    model = WhisperForConditionalGeneration.from_pretrained("here", dtype="auto")
    assert model.dtype == torch.float32
    assert model.model.encoder.embed_positions.weight.shape[0] == model.config.max_source_positions == 1500
    base = WhisperForConditionalGeneration.from_pretrained(speaker)
    given, wanted = model.generation_config, base.generation_config
    for name in ("lang_to_id", "task_to_id", "suppress_tokens", "no_timestamps_token_id", "is_multilingual"):
        assert getattr(given, name) == getattr(wanted, name), name
    assert given.max_length == 448
    clip = decode_flac(make_utterance(5, 0.9)["audio"])
    whole = WhisperFeatureExtractor.from_pretrained("here")(clip, sampling_rate=16000, return_tensors="pt")
    assert model.generate(whole.input_features, language="cs", task="transcribe").shape[0] == 1
    soundfile.write("clip.wav", clip, 16000, subtype="FLOAT")
    code = Path("here/README.md").read_text().split("```python\n")[1].split("```")[0]
    lines: list[str] = []
    exec(code, {"print": lines.append})
    (expected,) = text_of(load_model("lora").whisper, [clip])
    assert [line.strip() for line in lines] == [expected]


def test_older_readers_find_the_same_vocabulary(work, monkeypatch):
    """vocab.json and merges.txt, read by the tokenizers library, make the pieces that tokenizer.json makes."""
    make_tiny_whisper(work / "base", merges=[("a", "b"), ("ab", "c"), ("\u0120", "d")])
    (work / "base/normalizer.json").write_text('{"colour": "color"}')
    export(monkeypatch, "base", "--to", "whisper", "--out", "out", "--lang", "cs")
    tokenizer = WhisperTokenizer.from_pretrained("base")
    old = Tokenizer(BPE.from_file("out/vocab.json", "out/merges.txt"))
    old.pre_tokenizer = ByteLevel(add_prefix_space=False)
    for text in ("abc d", "Co je to za divnou loď?", "ab\tabcab"):
        assert old.encode(text).ids == tokenizer.encode(text, add_special_tokens=False)
    vocabulary, added = (json.loads(Path(f"out/{name}.json").read_text()) for name in ("vocab", "added_tokens"))
    assert not vocabulary.keys() & added.keys()
    assert vocabulary | added == tokenizer.get_vocab()
    special = json.loads(Path("out/special_tokens_map.json").read_text())
    assert special["eos_token"] == "<|endoftext|>"
    assert {"<|cs|>", "<|notimestamps|>"} <= set(special["additional_special_tokens"])
    assert "<|0.00|>" not in special["additional_special_tokens"]
    assert json.loads(Path("out/normalizer.json").read_text()) == {"colour": "color"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_half_precision_rounds_each_value_once(precision, speaker, work, monkeypatch):
    make_lora(speaker, work / "lora")
    export(monkeypatch, "lora", "--to", "whisper", "--out", "out", "--precision", precision)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    model = WhisperForConditionalGeneration.from_pretrained("out", dtype="auto")
    assert model.dtype == dtype
    merged = dict(load_model("lora").whisper.model.named_parameters())
    name = "model.decoder.layers.1.fc2.weight"
    assert torch.equal(dict(model.named_parameters())[name], merged[name].to(dtype))


# openai/whisper's own table: a gzipped (layers, heads) bool array each.
OPENAI = {
    (4, 6, 51864): b"ABzY8J1N>@0{>%R00Bk>$p{7v037`oCl~+#00",
    (4, 6, 51865): b"ABzY8bu8Lr0{>%RKn9Fp%m@SkK7Kt=7ytkO",
    (6, 8, 51864): b"ABzY8;40c<0{>%RzzG;p*o+Vo09|#PsxSZm00",
    (6, 8, 51865): b"ABzY8KQ!870{>%RzyTQH3`Q^yNP!>##QT-<FaQ7m",
    (12, 12, 51864): b"ABzY8>?_)10{>%RpeA61k&I|OI3I$65C{;;pbCHh0B{qLQ;+}v00",
    (12, 12, 51865): b"ABzY8DmU6=0{>%Rpa?J`kvJ6qF(V^F86#Xh7JUGMK}P<N0000",
    (24, 16, 51864): b"ABzY8usPae0{>%R7<zz_OvQ{)4kMa0BMw6u5rT}kRKX;$NfYBv00*Hl@qhsU00",
    (24, 16, 51865): b"ABzY8B0Jh+0{>%R7}kK1fFL7w6%<-Pf*t^=N)Qr&0RR9",
    (32, 20, 51865): b"ABzY8zd+h!0{>%R7=D0pU<_bnWW*tkYAhobTNnu$jnkEkXqp)j;w1Tzk)UH3X%SZd&fFZ2fC2yj",
    (32, 20, 51866): b"ABzY8gWO1E0{>%R7(9S+Kn!D~%ngiGaR?*L!iJG9p-nab0JQ=-{D1-g00",
    (4, 20, 51866): b"ABzY8j^C+e0{>%RARaKHP%t(lGR*)0g!tONPyhe`",
}


def test_the_heads_of_the_times_of_words_are_those_of_the_release(work, monkeypatch):
    for size, dump in OPENAI.items():
        heads = np.frombuffer(gzip.decompress(base64.b85decode(dump)), dtype=bool).reshape(size[:2])
        assert np.argwhere(heads).tolist() == ALIGNMENT_HEADS[size]
    assert OPENAI.keys() == ALIGNMENT_HEADS.keys()


@pytest.mark.parametrize("own", [None, [[0, 1]]])
def test_the_generation_settings_name_these_heads(own, speaker, work, monkeypatch):
    """Those that the model names, else those of its size, if it is a released one's."""
    monkeypatch.setitem(ALIGNMENT_HEADS, (2, 2, 1865), [[1, 0]])
    shutil.copytree(speaker, work / "base")
    settings = json.loads(Path("base/generation_config.json").read_text())
    Path("base/generation_config.json").write_text(json.dumps({**settings, "alignment_heads": own, "max_length": None}))
    export(monkeypatch, "base", "--to", "whisper", "--out", "out", "--lang", "cs")
    found = json.loads(Path("out/generation_config.json").read_text())
    assert found["alignment_heads"] == (own or [[1, 0]])
    assert found["max_length"] == json.loads(Path("out/config.json").read_text())["max_length"] == 80


def test_the_card_says_what_it_is(speaker, work, monkeypatch):
    make_lora(speaker, work / "lora", ("gn",), language_tokens={"gn": "es"})
    for name, said in {"lora": "ab xy", "other": "xy xy"}.items():
        texts = [("ab cd", said)] * 1234
        write_metrics(Path(f"metrics/gn/{name}.json"), texts, language="gn", model=name, corpus="made")
    export(monkeypatch, "lora", "--to", "whisper", "--out", "out", "--licence", "cc0-1.0")
    card = ModelCard.load("out/README.md")
    assert (card.data.language, card.data.library_name) == (["gn"], "transformers")
    assert (card.data.pipeline_tag, card.data.license) == ("automatic-speech-recognition", "cc0-1.0")
    for part in (
        *("Guarani (gn)", "`<|es|>` stands for Guarani", "| audio window | 1 s |", 'language="es"', "chunk_length=1"),
        "| **this model** | gn | made | test | 1,234 | 50.0 (50.0 to 50.0) |",
    ):
        assert part in card.text
    assert "100.0" not in card.text and "Folded" not in card.text


# Experts


def test_gates_that_never_change_fold_without_a_loss(speaker, validation, work, monkeypatch, capsys):
    kept = dict(zip(LAYERS, (OPEN, SHUT, SHUT, OPEN), strict=True))
    student = make_experts(speaker, work / "experts", gates=kept)
    assert fixed_layers(student, "cs") is None
    status, _, error = run_captured(monkeypatch, capsys, "export", "experts", "--to", "whisper", "--out", "out")
    assert status == 0, error
    assert "fold by gates: layers with the expert's block: encoder 1 of 2, decoder 1 of 2" in error
    assert "validation, 5 utterances: routed" in error and "difference +0.0 points" in error
    found, expert, base = weights("out"), student.expert_state("cs"), weights(speaker)
    for name, parameter in expert.items():
        if ".expert." in name:
            own = "model." + name.replace(".expert.", ".")
            chosen = parameter if kept[".".join(name.split(".")[:3])] == OPEN else base[own]
            assert torch.equal(found[own], chosen), name
    untouched = [name for name in base if ".fc1." not in name and ".fc2." not in name]
    assert all(torch.equal(found[name], base[name]) for name in untouched)
    card = Path("out/README.md").read_text()
    assert "| encoder.layers.0 | expert | 100 % |" in card and "| encoder.layers.1 | base | 0 % |" in card
    assert "the block that most tokens of the validation split took" in card


def test_all_keeps_every_expert(speaker, validation, work, monkeypatch):
    student = make_experts(speaker, work / "experts", gates=dict.fromkeys(LAYERS, SHUT))
    export(monkeypatch, "experts", "--to", "whisper", "--out", "out", "--fold", "all")
    found = weights("out")
    for name, parameter in student.expert_state("cs").items():
        if ".expert." in name:
            assert torch.equal(found["model." + name.replace(".expert.", ".")], parameter)


def test_the_fold_by_error_rate_mends_a_layer_whose_gate_is_wrong(speaker, work, monkeypatch, capsys):
    """One expert differs from the base, its gate takes it, and the transcripts are what the base says."""
    student = make_experts(speaker, work / "experts", gates=dict.fromkeys(LAYERS, OPEN), noise=0)
    with torch.no_grad():
        for name, parameter in student.expert_state("cs").items():
            if name.startswith("decoder.layers.1.expert."):
                parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    student.save_expert(work / "experts", "cs", "fp32")
    clips = [make_utterance(number, 0.8) for number in range(4)]
    texts = text_of(load_whisper(str(speaker)), [decode_flac(clip["audio"]) for clip in clips])
    writer = ShardWriter(work / "data/utterances/cs/validation", "utterances", {"language": "cs"})
    writer.write(0, [{**clip, "text": text} for clip, text in zip(clips, texts, strict=True)], seconds=3.2)
    writer.finish(corpus="made", language="cs", split="validation", seconds=3.2, left_out={})
    status, _, error = run_captured(
        monkeypatch, capsys, "export", "experts", "--to", "whisper", "--out", "out", "--fold", "wer"
    )
    assert status == 0, error
    assert "fold by wer: layers with the expert's block: encoder 2 of 2, decoder 1 of 2" in error
    assert "folded 0.0 %, difference -100.0 points" in error
    assert "| decoder.layers.1 | base | 100 % |" in Path("out/README.md").read_text()
    assert "which flatters it" in Path("out/README.md").read_text()


@pytest.mark.parametrize(
    "form",
    [ExpertForm(3, "none"), ExpertForm(None, "layer"), ExpertForm(None, "none", layers=("decoder.layers.0",))],
    ids=["low-rank", "layer-gates", "some-layers"],
)
def test_what_does_not_depend_on_the_token_folds_exactly(form, speaker, work, monkeypatch, capsys):
    """Without any validation shards."""
    student = make_experts(
        speaker, work / "experts", form, gates=dict(zip(LAYERS, (OPEN, SHUT, OPEN, SHUT), strict=True))
    )
    status, _, error = run_captured(monkeypatch, capsys, "export", "experts", "--to", "whisper", "--out", "out")
    assert status == 0, error
    assert "the fold is exact" in error
    random = torch.Generator().manual_seed(1)
    features = torch.randn(2, 80, 100, generator=random)
    ids = torch.randint(0, 256, (2, 7), generator=random)
    with torch.no_grad():
        routed = student(features, decoder_input_ids=ids, language="cs").logits
        folded = load_whisper("out").model(features, decoder_input_ids=ids).logits
        base = load_whisper(str(speaker)).model(features, decoder_input_ids=ids).logits
    torch.testing.assert_close(folded, routed, rtol=1e-4, atol=1e-4)
    assert (folded - base).abs().max() > 0.1
    assert "nothing is lost here" in Path("out/README.md").read_text()
