"""Weights of the teacher's own words: by hand, in the loss against autograd, and on one process or two."""

from pathlib import Path

import numpy as np
import pytest
import torch
from makers import make_teacher_shards
from test_chunked_loss import CHOICES, counts_of, mean_tail, problem, rows, teacher_of
from test_processes import curve, together, train
from torch.nn import functional as F

from cache.distributions import quantise
from cache.errors import PipelineError
from cache.shards import ShardReader
from stages.shared.whisper.models import load_whisper
from stages.train_student.chunked_loss import projection_loss
from stages.train_student.data import TrainingData
from stages.train_student.losses import Bins, Objective, divergence_sum
from stages.train_student.processes import SINGLE_PROCESS
from stages.train_student.settings import TrainSettings
from stages.train_student.token_weights import weigh_tokens

BITS = 8


def record(source: str = "teacher") -> dict:
    """The target is the likeliest token, the second one, one that was not kept under a small tail, and under a large one."""
    probs = [[0.9, 0.05], [0.5, 0.3], [0.6, 0.38], [0.3, 0.1], [1.0]]
    tails = [0.05, 0.2, 0.02, 0.6, 0.0]
    with np.errstate(divide="ignore"):
        log_tails = np.log(np.array(tails, np.float32))
    return {
        "target_source": source,
        "targets": [7, 9, 50, 50, 7],  # as a loaded row has them
        "top_counts": np.array([2, 2, 2, 2, 1], np.uint16),
        "top_ids": np.array([7, 9] * 4 + [7], np.uint16),
        "top_probs": quantise(np.concatenate(probs), BITS),
        "tail_log_probs": log_tails,
    }


def test_probability_of_the_target_or_its_upper_bound():
    """Not kept: less than the tail, and less than the least that was kept."""
    weights = weigh_tokens(record(), BITS, "probability")
    np.testing.assert_allclose(weights, [0.9, 0.3, 0.02, 0.1, 1.0], rtol=0.02)
    assert weights.dtype == np.float32


def test_entropy_is_one_over_the_effective_number_of_tokens():
    """exp(-H) of the kept tokens and the rest as one: 1 where all mass is on one, 1/n where n share it."""
    weights = weigh_tokens(record(), BITS, "entropy")
    by_hand = [[0.9, 0.05, 0.05], [0.5, 0.3, 0.2], [0.6, 0.38, 0.02], [0.3, 0.1, 0.6], [1.0]]
    np.testing.assert_allclose(weights, [np.prod(np.power(p, p)) for p in by_hand], rtol=0.02)
    even = {**record(), "top_probs": quantise(np.array([0.25, 0.25] * 4 + [0.5]), BITS)}
    even["tail_log_probs"] = np.log(np.array([0.5, 0.5, 0.5, 0.5, 0.5], np.float32))
    np.testing.assert_allclose(weigh_tokens(even, BITS, "entropy"), [2**-1.5] * 4 + [0.5], rtol=0.02)


@pytest.mark.parametrize("by", ["none", "probability", "entropy"])
def test_a_transcripts_tokens_weigh_one(by):
    assert weigh_tokens(record("transcript"), BITS, by).tolist() == [1.0] * 5
    assert (weigh_tokens(record(), BITS, by).tolist() == [1.0] * 5) == (by == "none")


@pytest.mark.parametrize(("divergence", "tail"), CHOICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("most", [1, 3, 7])
def test_value_and_gradients_are_autograds(divergence, tail, smoothing, most):
    """The divergence has no weights."""
    hidden, weight, targets = problem()
    objective, tail_V = Objective(smoothing, 0.7, 2.0, divergence, tail), mean_tail()
    teacher = teacher_of(counts_of(tail))
    weights_N = torch.tensor([1.0, 0.0, 0.25, 0.9, 1.0, 0.01, 0.5])
    weighted = type(teacher)(**{**vars(teacher), "weights": weights_N})
    found = projection_loss(hidden, weight, targets, objective, weighted, tail_V, rows(most))
    log_probs = F.linear(hidden, weight).log_softmax(-1)
    ce_N = F.cross_entropy(log_probs, targets, reduction="none", label_smoothing=smoothing)
    kept = teacher.positions, teacher.ids
    rest = log_probs.index_put(kept, log_probs.new_tensor(-torch.inf)).logsumexp(-1)
    student = Bins(log_probs[kept], log_probs @ tail_V if tail == "spread" else rest)
    kd = divergence_sum(divergence, tail, teacher, student, tail_V)
    expected = 0.7 * (weights_N * ce_N).sum() + 2 * kd
    torch.testing.assert_close(found.total, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.cross_entropy, (weights_N * ce_N).sum(), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.divergence, kd, rtol=1e-7, atol=1e-7)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    for one, other in zip(torch.autograd.grad(found.total, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def test_weights_of_one_change_no_bit():
    hidden, weight, targets = problem(3, torch.float32)
    teacher = teacher_of(counts_of("bucket"), dtype=torch.float32)
    ones = type(teacher)(**{**vars(teacher), "weights": torch.ones(7)})
    results = []
    for one in (teacher, ones):
        found = projection_loss(hidden, weight, targets, Objective(0.1, 1.0, 2.0), one)
        results.append([found.total, *torch.autograd.grad(found.total, (hidden, weight))])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


# In a run


@pytest.fixture
def mixed(utterances: Path, tiny_whisper: Path, tmp_path: Path) -> Path:
    """Every other record is of the teacher's words, of which it is unsure (its target is never among the kept)."""

    def source(number: int) -> dict:
        return {"target_source": ("teacher", "transcript")[number % 2], "compression_ratio": 1.0}

    student = load_whisper(str(tiny_whisper), 1)
    return make_teacher_shards(tmp_path / "teacher", utterances / "train", student, source, "mixed")


def test_a_batch_has_the_weights_of_its_rows(mixed, utterances, tiny_whisper):
    shards = ShardReader(utterances / "train", "utterances"), ShardReader(mixed, "teacher")
    student = load_whisper(str(tiny_whisper), 1)
    data = TrainingData(*shards, student, "cs", TrainSettings(token_weights="probability"))
    scored = {row["id"]: row for shard in range(2) for row in shards[1].read(shard)}
    seen = set()
    for batch in data.batches(4, 0, 0):
        assert len(batch.teacher.weights) == len(batch.targets)
        for number, name in enumerate(batch.ids):
            found = batch.teacher.weights[batch.positions[0] == number]
            source = scored[name]["target_source"]
            expected = torch.full_like(found, 1.0 if source == "transcript" else 0.05)
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
            seen.add(source)
    assert seen == {"teacher", "transcript"}
    plain = TrainingData(*shards, student, "cs", TrainSettings())
    assert all(batch.teacher.weights is None for batch in plain.batches(4, 0, 0))


@pytest.mark.parametrize("by", ["probability", "entropy"])
def test_two_processes_take_the_steps_of_one(by, mixed, utterances, tiny_whisper, tmp_path):
    """Sums are divided by the number of target positions of the step, whoever has the doubtful ones."""
    changes = {"token_weights": by, "epochs": 1, "lora_dropout": 0}
    together(lambda p: train(tiny_whisper, "lora-kd", utterances, tmp_path / "two", mixed, p, **changes))
    changes["batch_size"] = 4
    together(lambda p: train(tiny_whisper, "lora-kd", utterances, tmp_path / "one", mixed, p, **changes), count=1)
    changes["token_weights"] = "none"
    together(lambda p: train(tiny_whisper, "lora-kd", utterances, tmp_path / "none", mixed, p, **changes), count=1)
    one, two, none = ([row for row in curve(tmp_path / name) if "ce" in row] for name in ("one", "two", "none"))
    for first, second in zip(one, two, strict=True):
        assert first["ce"] == pytest.approx(second["ce"], rel=1e-5)
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    assert one[0]["ce"] < 0.9 * none[0]["ce"]
    assert one[0]["kd"] == pytest.approx(none[0]["kd"], rel=1e-5)


def test_weights_that_would_weigh_nothing_are_refused(utterances, tiny_whisper, tmp_path):
    """All targets are transcripts."""
    student = load_whisper(str(tiny_whisper), 1)
    teacher = make_teacher_shards(tmp_path / "teacher", utterances / "train", student)
    with pytest.raises(PipelineError, match="token_weights is 'entropy', but all targets are transcripts"):
        train(tiny_whisper, "lora-kd", utterances, tmp_path / "run", teacher, SINGLE_PROCESS, token_weights="entropy")
    assert not list((tmp_path / "run").glob("*.json"))
