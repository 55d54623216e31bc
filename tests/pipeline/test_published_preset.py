"""The published scripts' loss, by their own formula, from the settings of presets/published.yaml."""

from pathlib import Path

import pytest
import torch
from makers import make_teacher_shards
from ruamel.yaml import YAML
from sources import ROOT

from cache.shards import ShardReader
from pipeline.params import Params, load_params, method_settings
from stages.shared.whisper.models import load_whisper
from stages.train_student.data import TrainingData
from stages.train_student.loop import TrainingLoop
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee

PRESETS = ROOT / "presets"


def preset() -> Params:
    return load_params(PRESETS / "published.yaml", {})


def run_of(settings: TrainSettings, tiny: Path, utterances: Path, teacher: Path) -> TrainingLoop:
    readers = ShardReader(utterances / "train", "utterances"), ShardReader(teacher, "teacher")
    torch.manual_seed(0)
    trainee = Trainee(load_whisper(str(tiny), 1), "clsr-kd", "cs", settings)
    for name, parameter in trainee.parameters.items():
        if "gate.outer" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    data = TrainingData(*readers, trainee.whisper, "cs", settings)
    return TrainingLoop(trainee, data, settings, torch.float32, utterances, dict, print)


@pytest.fixture
def teacher(utterances: Path, tiny_whisper: Path, tmp_path: Path) -> Path:
    return make_teacher_shards(tmp_path / "teacher", utterances / "train", load_whisper(str(tiny_whisper), 1))


def loss_of(run: TrainingLoop) -> tuple[float, dict[str, float], dict[str, list[torch.Tensor]]]:
    """Of one batch, with its randomness; the gates of the same call."""
    batch = next(iter(run.data.batches(8, 0, 0)))
    gates: dict[str, list[torch.Tensor]] = {}
    mean = run._gate_mean

    def remember(recorded, batch):
        gates.update(recorded)
        return mean(recorded, batch)

    run._gate_mean = remember
    torch.manual_seed(1)
    run.trainee.model.train()
    loss, parts = run._loss(batch, len(batch.targets), 1.0)
    return loss.item(), parts, gates


def test_it_differs_from_the_paper_s_in_training_and_the_number_of_validation_utterances_alone():
    values = {name: YAML(typ="safe").load((PRESETS / f"{name}.yaml").read_text()) for name in ("paper", "published")}
    different = {name for name in values["paper"] if values["paper"][name] != values["published"][name]}
    assert different == {"train", "methods", "languages"}
    papers = load_params(PRESETS / "paper.yaml", {}).languages
    for own, paper in zip(preset().languages.values(), papers.values(), strict=True):
        assert (own.corpus.max_validation, paper.corpus.max_validation) == (500, 1000)
        assert own.corpus.model_copy(update={"max_validation": 1000}) == paper.corpus
    changed = {key for key, value in values["published"]["train"].items() if values["paper"]["train"].get(key) != value}
    assert changed == {"ce_weight", "gate_weight", "kd_weight", "gate_positions", "seed", "max_validation"}


def test_the_loss_is_the_scripts_formula(teacher, tiny_whisper, utterances):
    """0.5 ((CE + |mean g - b|) / 1.41^2 + KD / 1^2), the mean over all positions of all layers, padding too."""
    settings = preset().train
    loss, parts, gates = loss_of(run_of(settings, tiny_whisper, utterances, teacher))
    gate = torch.cat([call.flatten() for calls in gates.values() for call in calls]).mean() - 0.5
    assert abs(gate) > 1e-3
    assert parts["gate"] == pytest.approx(abs(gate.item()), rel=1e-4)
    expected = 0.5 * ((parts["ce"] + abs(gate.item())) / 1.41**2 + parts["kd"])
    assert loss == pytest.approx(expected, rel=1e-4)
    recipe = (settings.label_smoothing, settings.weight_decay, settings.betas, settings.warmup, settings.max_grad_norm)
    assert recipe == (0.1, 0.0, (0.9, 0.98), 0.1, 1.0)


def test_without_a_teacher_the_loss_is_not_scaled():
    params = preset()
    clsr = method_settings(params, "clsr", {})
    assert (clsr.ce_weight, clsr.gate_weight, clsr.gate_positions) == (1.0, 1.0, "all")
    lora = method_settings(params, "lora", {})
    assert (lora.betas, lora.lora_rank, lora.lora_alpha, lora.lora_dropout) == ((0.9, 0.999), 64, 64, 0.05)


@pytest.mark.parametrize("change", [{"ce_weight": 0.5}, {"gate_positions": "all"}, {"gate_dropout": 0.5}])
def test_each_setting_changes_the_loss(change, teacher, tiny_whisper, utterances):
    one, other = (
        loss_of(run_of(TrainSettings(gate_budget=0.2, **each), tiny_whisper, utterances, teacher))[0]
        for each in ({}, change)
    )
    assert abs(one - other) > 1e-5
    again = loss_of(run_of(TrainSettings(gate_budget=0.2), tiny_whisper, utterances, teacher))[0]
    assert again == one


def test_the_curve_s_loss_is_the_weighted_sum(teacher, tiny_whisper, utterances):
    settings = TrainSettings(gate_budget=0.2, ce_weight=0.3, kd_weight=0.7, gate_weight=5, accumulate=1, max_steps=2)
    run = run_of(settings, tiny_whisper, utterances, teacher)
    batch = next(iter(run.data.batches(8, 0, 0)))
    losses = run._step([batch], 0)
    assert losses["loss"] == pytest.approx(0.3 * losses["ce"] + 0.7 * losses["kd"] + 5 * losses["gate"], rel=1e-9)
