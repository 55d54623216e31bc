"""The graphs, run by ONNX Runtime with the lines of the documents."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from export_makers import make_experts, make_lora
from makers import make_utterance, run
from runtimes import onnx_says
from sources import ROOT

from stages.export.formats import ONNX
from stages.export.run import Export, export
from stages.shared.audio import decode_flac
from stages.shared.card.snippets import snippet
from stages.shared.student.loading import LoadedModel, load_model, locate
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.models import load_whisper
from stages.shared.whisper.saving import save_whisper

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def attentive(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attends to some positions more than to others; random weights hardly look at the keys."""
    whisper = load_whisper(str(speaker))
    with torch.no_grad():
        for name, parameter in whisper.model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(20)
    folder = tmp_path_factory.mktemp("attentive")
    save_whisper(whisper, folder, torch.float32)
    return folder


@pytest.fixture(scope="module")
def folder(attentive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `experts`, whose gates send tokens both ways in each side, and `out`, their graphs."""
    folder = tmp_path_factory.mktemp("graphs")
    student = make_experts(attentive, folder / "experts", noise=0.5)
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in student.expert_state("cs").items():
            if ".gate." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=random))
    student.save_expert(folder / "experts", "cs", "fp32")
    export(locate(str(folder / "experts")), folder / "out", Export(ONNX, "fp32", ["cs"]))
    return folder


def clips() -> list:
    return [decode_flac(make_utterance(number, 0.5 + 0.1 * number)["audio"]) for number in range(4)]


def said(model: LoadedModel, language: str = "cs") -> list[str]:
    return [one.text for one in Transcriber(model.whisper, language, torch.float32, cut_loops=False)(clips())]


def test_the_gates_route_in_the_graphs(folder):
    """The same text as the routed model, which is neither the base's nor the expert's alone."""
    ours = load_model(str(folder / "experts"))
    _, gates = Transcriber(ours.whisper, "cs", torch.float32).with_gates(clips())
    for side in ("encoder", "decoder"):
        taken = torch.cat([gate.flatten().float() for name, each in gates.items() for gate in each if side in name])
        assert 0.1 < taken.mean() < 0.9
    wanted = said(ours)
    assert onnx_says(folder / "out", "cs", 1)(clips()) == wanted
    assert len(set(wanted)) > 1
    assert wanted != said(ours, "nl")
    for routed in ours.student.routed.values():
        del routed.gates["cs"]
    assert wanted != said(ours)


def test_each_row_asks_for_its_own_language(folder):
    """In one batch: a row in the expert's language, and one in another, which takes the shared blocks."""
    ours = load_model(str(folder / "experts")).whisper
    features = Transcriber(ours, "cs", torch.float32).log_mel(clips()[:1])
    tokens = ours.tokenizer.convert_tokens_to_ids(["<|cs|>", "<|nl|>"])
    session = onnxruntime.InferenceSession(folder / "out/encoder.onnx")
    keys, _ = session.run(None, {"features": features.repeat(2, 1, 1).numpy(), "language": np.array(tokens)})
    for row, language in enumerate(["cs", "nl"]):
        with torch.no_grad(), ours.model.route(language):
            hidden = ours.model.model.encoder(features).last_hidden_state
            expected = ours.model.model.decoder.layers[1].encoder_attn.k_proj(hidden)[0]
        found = torch.from_numpy(keys[1, row]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_an_adapter_is_merged_into_the_graphs(attentive, work, monkeypatch):
    make_lora(attentive, work / "lora")
    assert run(monkeypatch, "export", "lora", "--to", "onnx", "--out", "out") == 0
    assert onnx_says(Path("out"), "cs", 1)(clips()) == said(load_model("lora"))


def test_the_page_has_the_lines_of_the_card():
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    code = snippet("onnx", "cs", 30, "")
    assert code in page
    assert len(re.findall("\n", code)) < 40
