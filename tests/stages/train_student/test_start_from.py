"""A student that begins as an expert or an adapter of another language."""

from pathlib import Path

import pytest
import torch
from makers import make_teacher_shards, make_tiny_whisper, make_utterance_shards, run
from safetensors.torch import load_file
from training import train_one

from cache.errors import PipelineError
from cache.files import read_json, sha256_file
from stages.shared.student.adapters import WEIGHTS as ADAPTER
from stages.shared.student.experts import WEIGHTS as EXPERTS
from stages.shared.whisper.models import load_whisper
from stages.train_student.settings import TrainSettings

CPU = torch.device("cpu")
FILES = {"clsr": EXPERTS, "clsr-kd": EXPERTS, "lora": ADAPTER, "lora-kd": ADAPTER}


def train(tiny: Path, method: str, utterances: Path, out: Path, teacher: Path | None = None, **changes) -> dict:
    settings = TrainSettings(
        **{"max_steps": 2, "batch_size": 4, "accumulate": 1, "max_validation": 1, "dtype": "fp32", "lora_rank": 4}
        | changes
    )
    return train_one(load_whisper(str(tiny), 1), method, "cs", utterances, teacher, out, settings, CPU)


LOW_RANK = dict(expert_rank=3, gates="layer")


@pytest.mark.parametrize(
    ("first", "second", "form"),
    [
        ("clsr", "clsr", {}),
        ("lora", "lora", {}),
        ("clsr", "clsr-kd", {}),
        ("lora", "lora-kd", {}),
        ("clsr", "clsr-kd", LOW_RANK),
        ("clsr", "clsr", dict(gates="none")),
    ],
)
def test_it_begins_as_what_was_trained_before(first, second, form, tiny_whisper, utterances, tmp_path):
    """With a rate of nearly nothing the student is what it began as, which is far from fresh."""
    teacher = None
    if second.endswith("-kd"):
        teacher = make_teacher_shards(tmp_path / "shards", utterances / "train", load_whisper(str(tiny_whisper), 1))
    train(tiny_whisper, first, utterances, tmp_path / "first", learning_rate=0.05, **form)
    still = dict(learning_rate=1e-12, **form)
    begun = train(
        tiny_whisper, second, utterances, tmp_path / "begun", teacher, start_from=str(tmp_path / "first"), **still
    )
    train(tiny_whisper, second, utterances, tmp_path / "fresh", teacher, **still)
    before, after, fresh = (load_file(tmp_path / name / FILES[first]) for name in ("first", "begun", "fresh"))
    assert before.keys() == after.keys() == fresh.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name].float(), tensor.float(), atol=1e-6, rtol=1e-3)
    assert any((fresh[name].float() - tensor.float()).abs().max() > 0.01 for name, tensor in before.items())
    assert begun["settings"]["start_weights"] == sha256_file(tmp_path / "first" / FILES[first])


def test_other_weights_at_the_same_place_are_another_run(tiny_whisper, utterances, tmp_path):
    start = dict(start_from=str(tmp_path / "first"))
    train(tiny_whisper, "lora", utterances, tmp_path / "first")
    train(tiny_whisper, "lora", utterances, tmp_path / "run", **start)
    again = train(tiny_whisper, "lora", utterances, tmp_path / "run", **start)
    assert again == read_json(tmp_path / "run/training.json")
    train(tiny_whisper, "lora", utterances, tmp_path / "other", seed=4)
    (tmp_path / "other" / ADAPTER).replace(tmp_path / "first" / ADAPTER)
    with pytest.raises(PipelineError, match="start_weights"):
        train(tiny_whisper, "lora", utterances, tmp_path / "run", **start)


def test_what_cannot_be_begun_from(tiny_whisper, utterances, tmp_path):
    train(tiny_whisper, "lora", utterances, tmp_path / "lora")
    train(tiny_whisper, "clsr", utterances, tmp_path / "clsr")
    other = make_tiny_whisper(tmp_path / "other", seed=3)
    for base, method, start, text in (
        (tiny_whisper, "clsr", "lora", "no experts.json in it, which method clsr can begin from"),
        (tiny_whisper, "lora", "clsr", "no lora.json in it, which method lora can begin from"),
        (tiny_whisper, "full", "clsr", "method full trains a whole model.*by `student`"),
        (tiny_whisper, "lora", "nowhere", "no lora.json in it"),
        (other, "clsr", "clsr", "expected the same base model"),
        (other, "lora", "lora", "expected the same base model"),
    ):
        with pytest.raises(PipelineError, match=text):
            train(base, method, utterances, tmp_path / "run", start_from=str(tmp_path / start))
        assert not (tmp_path / "run").exists()
    for form, text in (
        (dict(expert_rank=3), "the expert there is at full rank, train.expert_rank is 3"),
        (dict(gates="none"), "has gates 'token', train.gates is 'none'"),
        (dict(expert_rank=33), "rank is 33, expected 1 to 32"),
    ):
        with pytest.raises(PipelineError, match=text):
            train(tiny_whisper, "clsr", utterances, tmp_path / "run", start_from=str(tmp_path / "clsr"), **form)
        assert not (tmp_path / "run").exists()
    with pytest.raises(PipelineError, match="has shape"):
        train(tiny_whisper, "lora", utterances, tmp_path / "rank", start_from=str(tmp_path / "lora"), lora_rank=3)


def test_an_expert_of_low_rank_begins_one_of_full_rank(tiny_whisper, utterances, tmp_path):
    train(tiny_whisper, "clsr", utterances, tmp_path / "first", learning_rate=0.05, expert_rank=3)
    start = dict(start_from=str(tmp_path / "first"), learning_rate=1e-12)
    train(tiny_whisper, "clsr", utterances, tmp_path / "full", **start)
    with pytest.raises(PipelineError, match="is of rank 3, train.expert_rank is 4: they must agree"):
        train(tiny_whisper, "clsr", utterances, tmp_path / "other", expert_rank=4, **start)
    factors, matrices = (load_file(tmp_path / name / EXPERTS) for name in ("first", "full"))
    base = load_whisper(str(tiny_whisper), 1).model.model.encoder.layers[1].fc2.weight
    name = "encoder.layers.1.expert.fc2.weight"
    left, right = (factors[f"{name}.{part}"].float() for part in ("left", "right"))
    torch.testing.assert_close(matrices[name].float(), base + left @ right, atol=1e-6, rtol=1e-3)


def test_from_the_command_line(tiny_whisper, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for language in ("cs", "sk"):
        for split in ("train", "validation"):
            make_utterance_shards(Path(f"data/utterances/{language}/{split}"), [4], split)
    Path("params.yaml").write_text(
        f"student: {tiny_whisper}\naudio_window_s: 1\ndevice: cpu\n"
        "train: {batch_size: 4, accumulate: 1, max_steps: 1, max_validation: 1, dtype: fp32, lora_rank: 4}\n"
    )
    assert run(monkeypatch, "train-student", "--lang", "cs", "--method", "lora") == 0
    arguments = ["train-student", "--lang", "sk", "--method", "lora", "--start-from", "models/cs/lora"]
    assert run(monkeypatch, *arguments) == 0
    assert read_json(Path("models/sk/lora/training.json"))["settings"]["start_from"] == "models/cs/lora"
