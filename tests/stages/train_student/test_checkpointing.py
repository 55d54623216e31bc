"""Gradient checkpointing: each layer computed once more, the same gradients, and memory that is seen to fall."""

from pathlib import Path

import pytest
import torch
from makers import make_utterance_shards

from cache.shards import ShardReader
from stages.shared.whisper.models import load_whisper
from stages.train_student.data import TrainingData
from stages.train_student.loop import TrainingLoop
from stages.train_student.mixture import Mixture
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee


def step(tiny: Path, corpora: dict[str, Path], method: str, on: bool, **form) -> tuple[dict, dict, int, int]:
    """Gradients and losses of a step with all its randomness; the calls of a layer; bytes kept for the backward pass."""
    settings = TrainSettings(max_steps=2, gate_budget=0.2, dtype="fp32", gradient_checkpointing=on, **form)
    whisper = load_whisper(str(tiny), 1)
    torch.manual_seed(0)
    trainee = Trainee(whisper, method, list(corpora), settings)
    for name, parameter in trainee.parameters.items():  # where they begin, gates and adapters pass no gradient on
        if "gate.outer" in name or "lora_B" in name or name.endswith(".left"):
            torch.nn.init.normal_(parameter, std=0.5)
    parts = [
        TrainingData(ShardReader(folder, "utterances"), None, trainee.whisper, code, settings)
        for code, folder in corpora.items()
    ]
    run = TrainingLoop(trainee, Mixture(parts), settings, torch.float32, tiny, dict, print)
    calls: list[int] = []
    trainee.whisper.model.model.encoder.layers[1].self_attn.register_forward_hook(lambda *_: calls.append(1))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    batch = next(iter(run.data.batches(6, 0, 0)))
    trainee.model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, parts_of_loss = run._loss(batch, len(batch.targets), 0.3)
    forward = sum(kept.values())
    loss.backward()
    return {n: p.grad for n, p in trainee.parameters.items() if p.grad is not None}, parts_of_loss, len(calls), forward


HARD = dict(gate_training="hard")


@pytest.mark.parametrize(
    ("method", "form"),
    [
        ("full", {}),
        ("lora", {}),
        ("clsr", {}),
        ("clsr", dict(expert_rank=3, gates="none")),
        ("clsr", dict(gate_training="hard")),
    ],
)
@pytest.mark.parametrize("languages", [["cs"], ["cs", "gl"]], ids="+".join)
def test_the_gradients_are_the_same(method, form, languages, tiny_whisper, tmp_path):
    """With dropout, gate noise and skipped layers, whose draws come again; a layer that is computed again keeps its route."""
    corpora = {
        code: make_utterance_shards(tmp_path / code, [3], first=20 * number) for number, code in enumerate(languages)
    }
    expected, losses, once, much = step(tiny_whisper, corpora, method, False, **form)
    found, same, twice, little = step(tiny_whisper, corpora, method, True, **form)
    assert (once, twice) == (1, 2)
    assert little < 0.7 * much
    assert same == pytest.approx(losses, rel=1e-6)
    assert ("gate_mean" in losses) == (method == "clsr" and "gates" not in form)
    assert found.keys() == expected.keys()
    assert sum(gradient.abs().sum() for gradient in expected.values()) > 1
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-6, msg=name)
