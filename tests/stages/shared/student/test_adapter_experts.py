"""Adapters as experts without gates: one base serves several languages, by experts and adapters."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from makers import make_tiny_whisper, save_expert
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration

from cache.errors import PipelineError
from stages.shared.student.adapters import ADAPTER, METADATA, WEIGHTS
from stages.shared.student.loading import load_model
from stages.shared.student.lora import add_lora, save_lora
from stages.shared.student.metadata import base_metadata
from stages.shared.student.model import DistilWhisperForConditionalGeneration as Student
from stages.shared.whisper.models import load_whisper


def batch(rows: int = 4, frames: int = 100) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 256, (rows, 7), generator=random)
    return {"input_features": torch.randn(rows, 80, frames, generator=random), "decoder_input_ids": ids}


@torch.no_grad()
def logits(model, **options) -> torch.Tensor:
    return model(**batch(), use_cache=False, **options).logits


def make_adapter(tiny: Path, folder: Path, languages: list[str], seed: int = 3, **facts) -> Path:
    whisper = load_whisper(str(tiny), 1)
    adapter, parameters = add_lora(whisper, rank=4, alpha=12, dropout=0.0)
    random = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    base = load_whisper(str(tiny), 1)
    named = base_metadata(base.model_id, dict(base.model.named_parameters()), 1)
    save_lora(adapter, folder, {"languages": languages, **named, **facts})
    return folder


@pytest.fixture
def adapter(tiny_whisper: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_whisper, tmp_path / "adapter", ["cs"])


def student_in(tiny: Path, window: int = 1) -> Student:
    return Student.from_whisper(load_whisper(str(tiny), window).model).eval()


def test_it_is_the_model_that_peft_merges(adapter, tiny_whisper):
    student = student_in(tiny_whisper)
    assert student.load_expert(adapter) == "cs"
    merged = load_model(str(adapter)).whisper.model
    weights = dict(merged.named_parameters())
    for name, parameter in student.expert_state("cs").items():
        assert torch.equal(parameter, weights["model." + name.replace(".expert.", ".")]), name
    torch.testing.assert_close(logits(student, language="cs"), logits(merged), atol=1e-5, rtol=1e-5)
    base = logits(load_whisper(str(tiny_whisper), 1).model)
    assert (logits(student, language="cs") - base).abs().max() > 0.01
    assert torch.equal(logits(student, language=["nl", None, "pl", "nl"]), base)
    with student.route("cs") as routing:
        logits(student)
    assert all(gate.all() for calls in routing.gates.values() for gate in calls)


def test_one_base_serves_experts_and_adapters(adapter, tiny_whisper, tmp_path):
    """Each row by its own: two adapters, an expert with gates, and a language that has none of them."""
    make_adapter(tiny_whisper, tmp_path / "other", ["gl"], seed=4)
    gated = student_in(tiny_whisper)
    gated.add_expert("pl")
    random = torch.Generator().manual_seed(6)
    for parameter in gated.expert_state("pl").values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
    facts = base_metadata(str(tiny_whisper), gated.base_parameters(), 1)
    save_expert(gated, "pl", tmp_path / "expert", facts, "fp32")
    student = student_in(tiny_whisper)
    for source in (adapter, tmp_path / "other", tmp_path / "expert"):
        student.load_expert(source)
    alone = {
        "cs": logits(load_model(str(adapter)).whisper.model),
        "gl": logits(load_model(str(tmp_path / "other")).whisper.model),
        "pl": logits(gated, language="pl"),
        "nl": logits(load_whisper(str(tiny_whisper), 1).model),
    }
    mixed = logits(student, language=list(alone))
    for row, expected in enumerate(alone.values()):
        torch.testing.assert_close(mixed[row], expected[row], atol=1e-5, rtol=1e-5)
    asked = list(alone)
    options = dict(task="transcribe", max_new_tokens=6)
    rows = student.generate(batch()["input_features"], language=asked, **options).tolist()
    for row, code in enumerate(asked):
        own = student.generate(batch()["input_features"], language=code, **options)[row].tolist()
        assert rows[row][: len(own)] == own[: len(rows[row])]


def test_an_adapter_of_several_languages(tiny_whisper, tmp_path):
    folder = make_adapter(tiny_whisper, tmp_path / "both", ["cs", "gn"], language_tokens={"gn": "es"})
    student = student_in(tiny_whisper)
    with pytest.raises(PipelineError, match="holds experts for cs, gn: expected one of them, found None"):
        student.load_expert(folder)
    with pytest.raises(PipelineError, match="holds experts for cs, gn: expected one of them, found gl"):
        student.load_expert(folder, "galician")
    assert [student.load_expert(folder, code) for code in ("czech", "gn")] == ["cs", "gn"]
    assert torch.equal(logits(student, language="gn"), logits(student, language="cs"))
    assert student.config.language_tokens == {"gn": "es"}


def test_it_is_saved_as_an_expert(adapter, tiny_whisper, tmp_path):
    student = student_in(tiny_whisper)
    student.load_expert(adapter)
    student.save_expert(tmp_path / "expert", "cs", "fp32", rank=4)
    facts = json.loads((tmp_path / "expert/experts.json").read_text())
    assert (facts["gates"], facts["rank"]) == ("none", 4)
    other = student_in(tiny_whisper)
    other.load_expert(tmp_path / "expert")
    torch.testing.assert_close(logits(other, language="cs"), logits(student, language="cs"), atol=1e-4, rtol=1e-4)


def test_another_base_or_window_is_refused(adapter, tiny_whisper, tmp_path):
    other = student_in(make_tiny_whisper(tmp_path / "other", seed=5))
    with pytest.raises(PipelineError, match=r"lora\.json: trained on base weights .* expected the same base model"):
        other.load_expert(adapter)
    wide = student_in(make_tiny_whisper(tmp_path / "wide", width=16))
    with pytest.raises(PipelineError, match=r"lora_A\.weight' has shape \[4, 32\], expected \[4, 16\]"):
        wide.load_expert(adapter)
    with pytest.raises(PipelineError, match="audio_window_s 1, the model has 2"):
        student_in(tiny_whisper, 2).load_expert(adapter)
    assert other.languages == wide.languages == []


# Adapters of other programs


def foreign(tiny: Path, folder: Path, **changes) -> WhisperForConditionalGeneration:
    """Written by PEFT alone. Returns the model with the adapter merged."""
    torch.manual_seed(8)
    options = dict(r=4, lora_alpha=6, target_modules=["fc1", "fc2"], init_lora_weights=False) | changes
    model = get_peft_model(WhisperForConditionalGeneration.from_pretrained(tiny), LoraConfig(**options))
    model.save_pretrained(folder)
    return model.merge_and_unload().eval()


def whole(tiny: Path) -> Student:
    return Student.from_whisper(WhisperForConditionalGeneration.from_pretrained(tiny)).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["fc2"]},
        {"target_modules": r".*decoder.*\.fc1"},
    ],
    ids=str,
)
def test_what_peft_wrote_is_read(changes, tiny_whisper, tmp_path):
    merged = foreign(tiny_whisper, tmp_path / "theirs", **changes)
    student = whole(tiny_whisper)
    with pytest.raises(PipelineError, match="no lora.json in it that names a language: give the language"):
        student.load_expert(tmp_path / "theirs")
    assert student.load_expert(tmp_path / "theirs", "cs") == "cs"
    weights = dict(merged.named_parameters())
    for name, parameter in student.expert_state("cs").items():
        assert torch.equal(parameter, weights["model." + name.replace(".expert.", ".")]), name


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"target_modules": ["fc1", "q_proj"]}, r"q_proj.lora_A.weight': expected the factors of fc1 and fc2"),
        ({"use_dora": True}, "use_dora is True: only plain LoRA"),
        ({"lora_bias": True}, "lora_B.bias': expected the factors of fc1 and fc2"),
        ({"rank_pattern": {"fc1": 2}}, r"has shape \[2, 32\], expected \[4, 32\]"),
        ({"alpha_pattern": {"fc1": 2}}, "alpha_pattern is .* only plain LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base"),
        ({"modules_to_save": ["proj_out"]}, "proj_out.*expected the factors of fc1 and fc2"),
    ],
    ids=str,
)
def test_what_is_no_plain_lora_of_the_ffns_is_refused(changes, text, tiny_whisper, tmp_path):
    foreign(tiny_whisper, tmp_path / "theirs", **changes)
    student = whole(tiny_whisper)
    with pytest.raises(PipelineError, match=text):
        student.load_expert(tmp_path / "theirs", "cs")
    assert student.languages == []


def changed(folder: Path, **changes) -> None:
    settings = json.loads((folder / ADAPTER).read_text())
    (folder / ADAPTER).write_text(json.dumps({**settings, **changes}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"base_model_name_or_path": "openai/whisper-huge"}, "is 'openai/whisper-huge', the model is .*tiny"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None"),
        ({"peft_type": "IA3"}, "expected peft_type 'LORA'"),
        ({"r": "4"}, "r is '4'"),
        ({"lora_alpha": None}, "lora_alpha None, expected a whole number and a number"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit(changes, text, tiny_whisper, tmp_path):
    foreign(tiny_whisper, tmp_path / "theirs")
    changed(tmp_path / "theirs", **changes)
    with pytest.raises(PipelineError, match=text):
        whole(tiny_whisper).load_expert(tmp_path / "theirs", "cs")


def test_the_same_model_may_lie_elsewhere(tiny_whisper, tmp_path):
    """The last part of the name decides: a hub id and the folder of a download have it in common."""
    foreign(tiny_whisper, tmp_path / "theirs")
    changed(tmp_path / "theirs", base_model_name_or_path=f"owner/{tiny_whisper.name}")
    assert whole(tiny_whisper).load_expert(tmp_path / "theirs", "cs") == "cs"
    with pytest.raises(PipelineError, match="trained with 30 s; the model has audio_window_s 1"):
        student_in(tiny_whisper).load_expert(tmp_path / "theirs", "cs")


def test_damaged_adapters_are_refused(adapter, tiny_whisper, tmp_path):
    def edited(change) -> Path:
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        shutil.copytree(adapter, tmp_path / "damaged")
        tensors = load_file(adapter / WEIGHTS)
        change(tensors)
        save_file(tensors, tmp_path / "damaged" / WEIGHTS)
        return tmp_path / "damaged"

    student, name = student_in(tiny_whisper), "base_model.model.model.decoder.layers.1.fc2.lora_B.weight"
    for change, text in (
        (lambda tensors: tensors.pop(name), "there is but the factor lora_A"),
        (lambda tensors: tensors[name].fill_(torch.nan), "has values that are not finite"),
        (
            lambda tensors: tensors.update({name.replace("layers.1", "layers.7"): tensors[name].clone()}),
            "in the base's layers",
        ),
    ):
        with pytest.raises(PipelineError, match=text):
            student.load_expert(edited(change))
    facts = json.loads((adapter / METADATA).read_text())
    (adapter / METADATA).write_text(json.dumps({**facts, "format_version": 9}))
    with pytest.raises(PipelineError, match="format_version is 9"):
        student.load_expert(adapter)
    assert student.languages == []
