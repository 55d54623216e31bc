"""A published expert beside whisper-base's real weights: what the independent reference computes, we do."""

from pathlib import Path

import pytest
import torch
from makers import make_utterance, run
from published import make_published, save_published

from stages.shared.audio import decode_flac
from stages.shared.student.loading import load_model
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import load_whisper
from stages.shared.whisper.targets import decoder_inputs, prompt_ids, target_ids

pytestmark = pytest.mark.real
BASE = "openai/whisper-base"


@torch.no_grad()
def test_logits_and_gates_are_the_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    whisper = load_whisper(BASE)
    utterance = make_utterance(0, seconds=4.0)
    inputs = {
        "input_features": LogMel(80, 30)([decode_flac(utterance["audio"])]),
        "decoder_input_ids": decoder_inputs(
            [prompt_ids(whisper, "ca")], [target_ids(whisper.tokenizer, utterance["text"], "ca")], 50257
        ),
    }
    layers = make_published(whisper.model, ["catalan"], scale=0.1)
    expected = whisper.model(**inputs, use_cache=False).logits
    gates = {place: layer.seen[0] for place, layer in layers.items()}
    for side in ("encoder", "decoder"):  # both ways are taken
        assert 0.05 < torch.cat([gate.flatten() for place, gate in gates.items() if side in place]).mean() < 0.95
    folder = save_published(whisper.model, ["catalan"], tmp_path / "published", "model.safetensors")
    del whisper, layers

    direct = DistilWhisperForConditionalGeneration.from_whisper(load_whisper(BASE).model).eval()
    direct.load_expert(folder, "catalan")
    arguments = ["--lang", "catalan", "--base", BASE, "--out", str(tmp_path / "ours")]
    assert run(monkeypatch, "experts", "import", str(folder), *arguments) == 0
    assert f"the base in its checkpoint equals {BASE}" in capsys.readouterr().err
    for student in (direct, load_model(str(tmp_path / "ours")).student):
        assert student is not None
        with student.route("ca") as routing:
            found = student(**inputs, use_cache=False).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert {place: calls[0].float().tolist() for place, calls in routing.gates.items()} == {
            place: gate.tolist() for place, gate in gates.items()
        }
    assert (expected - load_whisper(BASE).model(**inputs, use_cache=False).logits).abs().max() > 1
