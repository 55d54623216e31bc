"""LoRA: PEFT's own folder, the weights that the paper's formula gives, and the same pages of the command line as any method."""

import json
from pathlib import Path

import pytest
import torch
from makers import make_tiny_whisper, run
from peft import PeftModel
from safetensors.torch import load_file, save_file
from soundfile import write
from training import train_one
from transformers import WhisperForConditionalGeneration

from cache.errors import PipelineError
from stages.shared.student.loading import load_model
from stages.shared.whisper.models import load_whisper
from stages.shared.whisper.window import restore_audio_window
from stages.train_student.settings import TrainSettings

CPU = torch.device("cpu")


def train(tiny: Path, utterances: Path, out: Path, **changes) -> dict:
    chosen = dict(
        max_steps=3, batch_size=4, accumulate=1, learning_rate=0.02, dtype="fp32", log_every=1, max_validation=2
    )
    settings = TrainSettings(**{**chosen, "lora_rank": 4, "lora_alpha": 12, **changes})
    return train_one(load_whisper(str(tiny), 1), "lora", "cs", utterances, None, out, settings, CPU)


@pytest.fixture
def trained(tiny_whisper: Path, utterances: Path, tmp_path: Path) -> Path:
    train(tiny_whisper, utterances, tmp_path / "lora")
    return tmp_path / "lora"


def test_the_weights_are_those_of_the_formula(trained, tiny_whisper):
    """W + alpha / r B A (Hu et al. 2021, equation 3) in fc1 and fc2 of every layer; all else is the base's."""
    base, merged = (
        load_whisper(str(tiny_whisper), 1).model.state_dict(),
        load_model(str(trained)).whisper.model.state_dict(),
    )
    adapter = load_file(trained / "adapter_model.safetensors")
    assert merged.keys() == base.keys()
    places = {f"model.{side}.layers.{n}.fc{k}" for side in ("encoder", "decoder") for n in (0, 1) for k in (1, 2)}
    expected = {f"base_model.model.{place}.lora_{part}.weight" for place in places for part in "AB"}
    assert adapter.keys() == expected
    for name, tensor in base.items():
        place = name.removesuffix(".weight")
        if place in places:
            down, up = (adapter[f"base_model.model.{place}.lora_{part}.weight"] for part in "AB")
            assert down.shape[0] == up.shape[1] == 4
            assert up.abs().max() > 0.01
            torch.testing.assert_close(merged[name], tensor + 12 / 4 * up @ down)
        else:
            assert torch.equal(merged[name], tensor), name


def test_peft_reads_the_folder(trained, tiny_whisper):
    plain = WhisperForConditionalGeneration.from_pretrained(tiny_whisper)
    theirs = PeftModel.from_pretrained(plain, trained).eval()
    ours = load_model(str(trained)).whisper.model
    assert theirs.peft_config["default"].task_type is None
    inputs = dict(input_features=torch.randn(1, 80, 3000), decoder_input_ids=torch.tensor([[258, 300, 301, 302]]))
    restore_audio_window(ours)
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, atol=1e-5, rtol=1e-5)
        adapted = theirs(**inputs).logits
        with theirs.disable_adapter():
            assert (theirs(**inputs).logits - adapted).abs().max() > 1e-2
    assert not [path.name for path in trained.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_the_facts_beside_it(trained, tiny_whisper):
    facts = json.loads((trained / "lora.json").read_text())
    assert (facts["base"], facts["languages"], facts["audio_window_s"]) == (str(tiny_whisper), ["cs"], 1)
    assert facts["base_weights"] == load_whisper(str(tiny_whisper), 1).fingerprint
    assert json.loads((trained / "training.json").read_text())["parameters"] == 8 * 4 * (32 + 64)


@pytest.mark.parametrize("change", [{"lora_rank": 5}, {"lora_alpha": 3}, {"lora_dropout": 0.5}])
def test_each_setting_changes_the_weights(change, trained, tiny_whisper, utterances, tmp_path):
    train(tiny_whisper, utterances, tmp_path / "other", **change)
    one, other = (load_model(str(tmp_path / name)).whisper.model for name in ("lora", "other"))
    name = "model.decoder.layers.1.fc2.weight"
    assert not torch.allclose(one.state_dict()[name], other.state_dict()[name], atol=1e-5)


def test_another_base_is_refused(trained, tmp_path, tiny_whisper):
    other = make_tiny_whisper(tmp_path / "other", seed=5)
    facts = json.loads((trained / "lora.json").read_text())
    (trained / "lora.json").write_text(json.dumps({**facts, "base": str(other)}))
    with pytest.raises(PipelineError, match="expected the same base model"):
        load_model(str(trained))
    with pytest.raises(PipelineError, match="audio_window_s 1, asked for 2"):
        load_model(str(trained), 2)


def test_a_damaged_folder_is_refused(trained):
    path = trained / "adapter_model.safetensors"
    state = load_file(path)
    name = "base_model.model.model.decoder.layers.1.fc2.lora_A.weight"
    save_file({**state, name: torch.zeros(4, 3)}, path)
    with pytest.raises(
        PipelineError, match=r"decoder\.layers\.1\.fc2\.lora_A\.weight' has shape \[4, 3\], expected \[4, 64\]"
    ):
        load_model(str(trained))
    save_file({key: tensor for key, tensor in state.items() if key != name}, path)
    with pytest.raises(PipelineError, match=r"has shape None, expected \[4, 64\]"):
        load_model(str(trained))
    settings = json.loads((trained / "adapter_config.json").read_text())
    (trained / "adapter_config.json").write_text(json.dumps({**settings, "what": 1}))
    with pytest.raises(PipelineError, match=r"adapter_config\.json: not a LoRA configuration"):
        load_model(str(trained))
    facts = json.loads((trained / "lora.json").read_text())
    (trained / "lora.json").write_text(json.dumps({**facts, "format_version": 2}))
    with pytest.raises(PipelineError, match="format_version is 2, expected 1"):
        load_model(str(trained))
    (trained / "lora.json").write_text(json.dumps({**facts, "base": 5}))
    with pytest.raises(PipelineError, match=r"lora\.json: base is 5, expected text"):
        load_model(str(trained))


def test_it_is_a_method_like_any_other(tiny_whisper, utterances, tmp_path, monkeypatch, capsys):
    """Trained, evaluated and used by the command line."""
    monkeypatch.chdir(tmp_path)
    recipe = "{batch_size: 4, accumulate: 1, max_steps: 2, max_validation: 2, lora_rank: 2}"
    Path("params.yaml").write_text(f"audio_window_s: 1\nstudent: {tiny_whisper}\ndevice: cpu\ntrain: {recipe}\n")
    assert run(monkeypatch, "train-student", "--lang", "cs", "--method", "lora") == 0
    assert run(monkeypatch, "evaluate", "--lang", "cs", "--system", "lora") == 0
    assert json.loads(Path("metrics/cs/lora.json").read_text())["model"] == "models/cs/lora"
    write("talk.wav", torch.randn(16000).numpy() / 10, 16000)
    assert run(monkeypatch, "transcribe", "talk.wav", "--model", "models/cs/lora") == 0
    assert "a LoRA adapter" in capsys.readouterr().err
