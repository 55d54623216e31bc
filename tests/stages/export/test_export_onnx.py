"""The graphs, run by ONNX Runtime with the lines of the documents."""

import re
from pathlib import Path

import pytest
import torch
from export_makers import make_experts, make_lora
from makers import make_utterance, run
from runtimes import onnx_says
from sources import ROOT

from stages.export.snippets import snippet
from stages.shared.audio import decode_flac
from stages.shared.student.loading import load_model
from stages.shared.student.routing import Routing
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.models import load_whisper
from stages.shared.whisper.saving import save_whisper

pytest.importorskip("onnxruntime")
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


def clips() -> list:
    return [decode_flac(make_utterance(number, 0.5 + 0.1 * number)["audio"]) for number in range(4)]


def test_the_gates_route_in_the_graphs(attentive, work, monkeypatch):
    """Both ways in each side: the same text as the routed model, which is neither the base's nor the expert's alone."""
    student = make_experts(attentive, work / "experts", noise=0.5)
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in student.expert_state("cs").items():
            if ".gate." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=random))
    student.save_expert(work / "experts", "cs", "fp32")
    assert run(monkeypatch, "export", "experts", "--to", "onnx", "--out", "out") == 0
    ours = load_model("experts").whisper
    transcripts, gates = Transcriber(ours, "cs", torch.float32, cut_loops=False).with_gates(clips())
    for side in ("encoder", "decoder"):
        taken = torch.cat([gate.flatten().float() for name, each in gates.items() for gate in each if side in name])
        assert 0.1 < taken.mean() < 0.9
    wanted = [one.text for one in transcripts]
    assert onnx_says(Path("out"), "cs", 1)(clips()) == wanted
    assert len(set(wanted)) > 1
    assert wanted != [one.text for one in Transcriber(ours, "nl", torch.float32, cut_loops=False)(clips())]
    model = load_model("experts")
    with torch.no_grad():
        for routed in model.student.routed.values():
            del routed.gates["cs"]
    assert wanted != [one.text for one in Transcriber(model.whisper, "cs", torch.float32, cut_loops=False)(clips())]


def test_each_row_asks_for_its_own_language(attentive, work, monkeypatch):
    """In one batch: a row in the expert's language, and one in another, which takes the shared blocks."""
    import numpy
    import onnxruntime

    make_experts(attentive, work / "experts", noise=0.5)
    assert run(monkeypatch, "export", "experts", "--to", "onnx", "--out", "out") == 0
    ours = load_model("experts").whisper
    features = Transcriber(ours, "cs", torch.float32).log_mel(clips()[:1])
    tokens = ours.tokenizer.convert_tokens_to_ids(["<|cs|>", "<|nl|>"])
    session = onnxruntime.InferenceSession("out/encoder.onnx")
    inputs = {"features": features.repeat(2, 1, 1).numpy(), "language": numpy.array(tokens)}
    keys, _ = session.run(None, inputs)
    for row, language in enumerate(["cs", "nl"]):
        with torch.no_grad(), ours.model.router.use(Routing(language)):
            hidden = ours.model.model.encoder(features).last_hidden_state
            expected = ours.model.model.decoder.layers[1].encoder_attn.k_proj(hidden)[0]
        found = torch.from_numpy(keys[1, row]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_is_merged_into_the_graphs(attentive, work, monkeypatch):
    make_lora(attentive, work / "lora")
    assert run(monkeypatch, "export", "lora", "--to", "onnx", "--out", "out") == 0
    transcribe = Transcriber(load_model("lora").whisper, "cs", torch.float32, cut_loops=False)
    assert onnx_says(Path("out"), "cs", 1)(clips()) == [one.text for one in transcribe(clips())]


def test_the_page_has_the_lines_of_the_card():
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    code = snippet("onnx", "cs", 30, "")
    assert code in page
    assert len(re.findall("\n", code)) < 40
