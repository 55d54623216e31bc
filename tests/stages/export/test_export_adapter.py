"""Adapter folders, read by PEFT itself."""

import json
from pathlib import Path

import pytest
import torch
from export_makers import make_experts, make_lora
from makers import run, run_captured
from peft import PeftModel
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

from stages.shared.student.forms import ExpertForm
from stages.shared.student.loading import load_model


def inputs() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 256, (2, 7), generator=random)
    return {"input_features": torch.randn(2, 80, 3000, generator=random), "decoder_input_ids": ids}


@torch.no_grad()
def logits(model, **options) -> torch.Tensor:
    return model(**inputs(), use_cache=False, **options).logits


def with_adapter(base: Path, folder: str) -> WhisperForConditionalGeneration:
    model = WhisperForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder).merge_and_unload().eval()


@pytest.mark.parametrize("layers", [None, ("encoder.layers.1", "decoder.layers.0")], ids=["all", "some"])
def test_ungated_experts_of_low_rank_are_an_adapter(layers, tiny_whisper, work, monkeypatch):
    """Also their biases, which LoRA of the usual form does not train. In Whisper's own window."""
    student = make_experts(tiny_whisper, work / "experts", ExpertForm(3, "none", layers=layers))
    assert run(monkeypatch, "export", "experts", "--to", "peft", "--out", "out") == 0
    found = logits(with_adapter(tiny_whisper, "out"))
    torch.testing.assert_close(found, logits(student, language="cs"), rtol=1e-4, atol=1e-4)
    plain = WhisperForConditionalGeneration.from_pretrained(tiny_whisper, dtype=torch.float32).eval()
    assert (found - logits(plain)).abs().max() > 0.01
    settings = json.loads(Path("out/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tiny_whisper)
    ours = load_model("out")
    assert ours.languages == ["cs"]
    torch.testing.assert_close(logits(ours.whisper.model), found, rtol=1e-4, atol=1e-4)


def test_without_trained_biases_it_is_plain_lora(tiny_whisper, work, monkeypatch):
    student = make_experts(tiny_whisper, work / "noisy", ExpertForm(3, "none"))
    with torch.no_grad():
        for name, parameter in student.expert_state("cs").items():
            if name.endswith("bias"):
                parameter.copy_(student.shared_state()[name])
    student.save_expert(work / "experts", "cs", "fp32")
    assert run(monkeypatch, "export", "experts", "--to", "peft", "--out", "out") == 0
    assert not [name for name in load_file("out/adapter_model.safetensors") if name.endswith("bias")]
    torch.testing.assert_close(
        logits(with_adapter(tiny_whisper, "out")), logits(student, language="cs"), rtol=1e-4, atol=1e-4
    )


def test_an_adapter_stays_as_it_is(speaker, work, monkeypatch):
    make_lora(speaker, work / "lora", ("cs", "gn"), language_tokens={"gn": "es"})
    assert run(monkeypatch, "export", "lora", "--to", "peft", "--out", "out") == 0
    before, after = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("lora", "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for name in ("adapter_config.json", "lora.json"):
        assert json.loads(Path("lora", name).read_text()) == json.loads(Path("out", name).read_text())
    assert run(monkeypatch, "export", "lora", "--to", "peft", "--out", "half", "--precision", "fp16") == 0
    half = load_file("half/adapter_model.safetensors")
    assert all(torch.equal(half[name], before[name].half()) for name in before)


def test_what_is_no_change_of_low_rank_is_refused(speaker, work, monkeypatch, capsys):
    make_experts(speaker, work / "gated")
    make_experts(speaker, work / "full", ExpertForm(gates="none"))
    make_experts(speaker, work / "layer", ExpertForm(3, "layer"))
    for folder, text in {
        "gated": "gated: experts of full rank with gates for each token, expected",
        "full": "full: experts of full rank with no gates, expected",
        "layer": "layer: experts of rank 3 with gates for each layer, expected",
        str(speaker): "a whole Whisper, expected an adapter or experts of low rank",
    }.items():
        status, out, error = run_captured(monkeypatch, capsys, "export", folder, "--to", "peft", "--out", "out")
        assert (status, out, len(error.splitlines())) == (1, "", 1)
        assert text in error and "--to whisper fits" in error
    assert not Path("out").exists()
