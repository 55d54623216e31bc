"""The options of experts in training: rank and gates, from the command line to the metrics."""

import json
from pathlib import Path

import pytest
from makers import make_utterance_shards, run_captured
from safetensors import safe_open
from safetensors.torch import load_file

TRAIN = ["train-student", "--lang", "cs", "--method", "clsr"]
SPLITS = {"train": 6, "validation": 2, "test": 2}


@pytest.fixture
def here(tiny_whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for split, rows in SPLITS.items():
        make_utterance_shards(Path(f"data/utterances/cs/{split}"), [rows], split)
    Path("params.yaml").write_text(
        f"student: {tiny_whisper}\naudio_window_s: 1\ndevice: cpu\n"
        "train: {batch_size: 4, accumulate: 1, max_steps: 3, max_validation: 1, dtype: fp32, log_every: 1}\n"
    )
    return tmp_path


def curve() -> list[dict]:
    rows = [json.loads(line) for line in Path("models/cs/clsr/curve.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_trained_at_low_rank_without_gates_it_is_evaluated_and_described(here, monkeypatch, capsys):
    flags = ["--set", "train.expert_rank=4", "--set", "train.gates=none", "--set", "train.learning_rate=0.05"]
    said = run_captured(monkeypatch, capsys, *flags, *TRAIN)
    assert said[0] == 0, said
    values = 4 * (2 * 4 * (32 + 64) + 32 + 64)
    assert json.loads(Path("models/cs/clsr/training.json").read_text())["parameters"] == values
    for row in curve():
        assert not {"gate", "gate_mean"} & row.keys()
        assert row["loss"] == row["ce"]
    stored = load_file("models/cs/clsr/experts.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == values
    assert all(tensor.any() for name, tensor in stored.items() if name.endswith(".left"))
    assert run_captured(monkeypatch, capsys, "evaluate", "--lang", "cs", "--system", "clsr")[0] == 0
    metrics = json.loads(Path("metrics/cs/clsr.json").read_text())
    assert set(metrics["gates"].values()) == {1.0}
    assert len(metrics["gates"]) == 4
    status, out, _ = run_captured(monkeypatch, capsys, "experts", "info", "models/cs/clsr")
    lines = out.splitlines()
    assert status == 0
    assert "  gates                none: the expert takes every token" in lines
    assert "  stored as            fp16, rank 4" in lines
    assert f"  parameters           {4 * (2 * 32 * 64 + 32 + 64):,}" in lines
    compress = ["experts", "compress", "models/cs/clsr", "--out", "small", "--precision", "int8", "--rank", "4"]
    status, _, said = run_captured(monkeypatch, capsys, *compress)
    assert status == 0
    kept = float(said.rpartition("; ")[2].split(" %")[0])
    assert kept > 99
    facts = json.loads(Path("small/experts.json").read_text())
    assert (facts["gates"], facts["rank"], facts["compressed_from"]) == (
        "none",
        4,
        {"precision": "fp16", "rank": 4},
    )


def test_the_checkpoint_is_as_small(here, monkeypatch, capsys):
    """Of three tensors of each trained one and its step: no frozen weight, no gate."""
    from stages.shared.layout import CHECKPOINT
    from stages.train_student import checkpoint

    kept: list[Path] = []
    write = checkpoint._write

    def keep(folder, *others):
        write(folder, *others)
        kept.append((folder / CHECKPOINT).rename(here / "kept.safetensors"))

    monkeypatch.setattr(checkpoint, "_write", keep)
    flags = ["--set", "train.expert_rank=4", "--set", "train.gates=none"]
    assert run_captured(monkeypatch, capsys, *flags, *TRAIN)[0] == 0
    with safe_open(kept[-1], "pt") as file:
        names = [name for name in file.keys() if name.startswith("weights/")]  # noqa: SIM118 (not a dict)
    endings = ("fc1.bias", "fc1.weight.left", "fc1.weight.right", "fc2.bias", "fc2.weight.left", "fc2.weight.right")
    assert len(names) == 4 * len(endings)
    assert all(name.endswith(endings) for name in names)


def test_a_gate_of_a_layer_is_trained(here, monkeypatch, capsys):
    flags = ["--set", "train.gates=layer", "--set", "train.learning_rate=0.05"]
    assert run_captured(monkeypatch, capsys, *flags, *TRAIN)[0] == 0
    assert all({"gate", "gate_mean"} <= row.keys() for row in curve())
    stored = load_file("models/cs/clsr/experts.safetensors")
    for name, tensor in stored.items():
        if ".gate." in name:
            part = name.partition(".gate.")[2]
            assert tensor.any() == (part != "inner.weight"), name
            assert part != "inner.bias" or (tensor == 1).all()
    assert run_captured(monkeypatch, capsys, "evaluate", "--lang", "cs", "--system", "clsr")[0] == 0
    assert set(json.loads(Path("metrics/cs/clsr.json").read_text())["gates"].values()) <= {0.0, 1.0}


def test_the_budget_is_reached_from_above(here, monkeypatch, capsys):
    """L_gate = |mean gate - budget|, and the budget of step n of 4 is 1 + n / 4 (0.2 - 1)."""
    flags = [f"train.{name}" for name in ("gate_budget_start=1", "gate_budget=0.2", "max_steps=4", "gate_start=0.7")]
    assert run_captured(monkeypatch, capsys, *(word for flag in flags for word in ("--set", flag)), *TRAIN)[0] == 0
    rows = curve()
    budgets = [1 + number / 4 * (0.2 - 1) for number in range(4)]
    assert [row["gate"] for row in rows] == pytest.approx(
        [abs(row["gate_mean"] - budget) for row, budget in zip(rows, budgets, strict=True)], abs=1e-6
    )
    assert rows[0]["gate_mean"] == pytest.approx(0.7, abs=0.02)


def test_the_gates_of_hard_training_are_decisions(here, monkeypatch, capsys):
    """Planted: gates that begin open and meet no noise at the first step are all 1; soft ones are 0.7."""
    for training, mean in (("hard", 1.0), ("soft", 0.7)):
        flags = [f"train.gate_training={training}", "train.gate_start=0.7", "train.max_steps=1"]
        words = [word for flag in flags for word in ("--set", flag)]
        assert run_captured(monkeypatch, capsys, *words, *TRAIN, "--restart")[0] == 0
        assert curve()[0]["gate_mean"] == pytest.approx(mean, abs=0.02 if mean < 1 else 1e-9)


def test_experts_in_the_decoder_alone(here, monkeypatch, capsys):
    """The mean gate is over the layers that have one; a student begins from an expert of the same layers only."""
    flags = ["--set", "train.expert_layers=decoder", "--set", "train.gate_start=0.9", "--set", "train.max_steps=1"]
    assert run_captured(monkeypatch, capsys, *flags, *TRAIN)[0] == 0
    assert curve()[0]["gate_mean"] == pytest.approx(0.9, abs=0.02)
    stored = load_file("models/cs/clsr/experts.safetensors")
    assert {name.split(".")[0] for name in stored} == {"decoder"}
    assert run_captured(monkeypatch, capsys, "evaluate", "--lang", "cs", "--system", "clsr")[0] == 0
    shares = json.loads(Path("metrics/cs/clsr.json").read_text())["gates"]
    assert {name.split(".")[0] for name, share in shares.items() if share} == {"decoder"}
    out = run_captured(monkeypatch, capsys, "experts", "info", "models/cs/clsr")[1]
    assert "  layers               decoder.layers.0, decoder.layers.1" in out.splitlines()
    small = ["experts", "compress", "models/cs/clsr", "--out", "small", "--precision", "int8", "--rank", "4"]
    assert run_captured(monkeypatch, capsys, *small)[0] == 0
    assert json.loads(Path("small/experts.json").read_text())["layers"] == ["decoder.layers.0", "decoder.layers.1"]
    begin = [*TRAIN, "--start-from", "small", "--restart"]
    assert run_captured(monkeypatch, capsys, *flags, *begin)[0] == 0
    status, _, said = run_captured(monkeypatch, capsys, *begin)
    assert status == 1
    assert "is for decoder.layers.0, decoder.layers.1, train.expert_layers is all: they must agree" in said


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("train.expert_rank=33", "rank is 33, expected 1 to 32"),
        ("train.expert_rank=0", "expert_rank"),
        ("train.gates=some", "gates"),
        ("train.gate_start=1", "gate_start"),
        ("train.expert_layers=[encoder.layers.7]", "'encoder.layers.7' is no layer: expected some of encoder.layers.0"),
        ("train.expert_layers=[]", "expert_layers is empty"),
        ("train.expert_layers=some", "expert_layers"),
        ("train.gate_budget_start=2", "gate_budget_start"),
    ],
)
def test_what_cannot_be_is_one_line(flag, text, here, monkeypatch, capsys):
    status, _, said = run_captured(monkeypatch, capsys, "--set", flag, *TRAIN)
    assert status != 0
    assert text in said.splitlines()[-1]
    assert not Path("models/cs/clsr/progress.json").exists()
