"""The losses against dense references in numpy, float64, and against torch's own; padding and accumulation change nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make_utterance
from torch.nn import functional as F

from cache.distributions import quantise, stored_log_probs
from cache.shards import ShardReader, ShardWriter
from stages.shared.whisper.models import load_whisper
from stages.train_student.chunked_loss import projection_loss
from stages.train_student.data import TrainingData
from stages.train_student.loop import TrainingLoop
from stages.train_student.losses import Bins, Objective, TeacherTargets, forward_kl_sum, gate_sum, jensen_shannon_sum
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee

# References: probabilities in float64 over the whole vocabulary


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def dense_kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * (np.log(p) - np.log(q))).sum())


def dense_js(p: np.ndarray, q: np.ndarray) -> float:
    middle = (p + q) / 2
    return (dense_kl(p, middle) + dense_kl(q, middle)) / 2


DENSE = {"js": dense_js, "kl": dense_kl}


def dense_torch(name: str, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """As above, in float64 torch: for its gradient."""
    kl = lambda a, b: (a * (a.log() - b.log())).sum()  # noqa: E731
    return kl(p, q) if name == "kl" else (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def kept_tokens(p: np.ndarray, counts: int | list[int]) -> np.ndarray:
    """(N, V), true at the most likely tokens of each position, as many as `counts` says."""
    ranks = np.argsort(np.argsort(-p, axis=-1, kind="stable"), axis=-1, kind="stable")
    return ranks < np.reshape(counts, (-1, 1))


def cached(teacher_logits: np.ndarray, counts: int | list[int], exact: bool = True) -> TeacherTargets:
    """What the teacher cache keeps of these logits (N, V), from their float64 softmax; rounded to 8 bits unless `exact`."""
    p = softmax(teacher_logits)
    kept = kept_tokens(p, counts)
    positions, ids = np.nonzero(kept)
    stored = np.log(p[kept]).astype(np.float32) if exact else stored_log_probs(quantise(p[kept], 8), 8)
    with np.errstate(divide="ignore"):
        tail = np.log(np.where(kept, 0, p).sum(-1)).astype(np.float32)
    return TeacherTargets(*map(torch.from_numpy, (positions, ids, stored, tail)))


def divergence_sum(
    name: str, tail: str, teacher: TeacherTargets, logits: torch.Tensor, tail_V: torch.Tensor | None
) -> torch.Tensor:
    """The divergence alone, through a projection that changes nothing."""
    objective = Objective(ce_weight=0, kd_weight=1, divergence=name, tail=tail)
    targets = torch.zeros(len(logits), dtype=torch.int64)
    return projection_loss(logits, torch.eye(logits.shape[1]), targets, objective, teacher, tail_V).total


def sparse(name: str, teacher: TeacherTargets, student_logits: torch.Tensor) -> torch.Tensor:
    return divergence_sum(name, "bucket", teacher, student_logits, None)


def random_logits(seed: int, positions: int = 5, vocabulary: int = 12, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (positions, vocabulary)).astype(np.float32)


# Cross-entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_is_that_of_torch(smoothing):
    logits = torch.from_numpy(random_logits(0, 7, 31, 4.0)).requires_grad_()
    targets = torch.tensor([0, 30, 5, 5, 2, 9, 17])
    expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    (wanted,) = torch.autograd.grad(expected, logits)
    found = projection_loss(logits, torch.eye(31), targets, Objective(smoothing)).total
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], wanted)


# Divergences


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("scale", [0.1, 2.0, 8.0])
def test_with_all_tokens_but_one_it_is_the_dense_divergence(name, scale):
    """K = V - 1: the rest is one token, so that nothing is merged."""
    teacher, student = random_logits(1, scale=scale), random_logits(2, scale=scale)
    logits = torch.from_numpy(student).requires_grad_()
    found = sparse(name, cached(teacher, 11), logits)
    assert found.item() == pytest.approx(DENSE[name](softmax(teacher), softmax(student)), rel=1e-5, abs=1e-5)
    exact = torch.from_numpy(student).double().requires_grad_()
    expected = dense_torch(name, torch.from_numpy(softmax(teacher)), exact.softmax(-1))
    (wanted,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], wanted.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", DENSE)
def test_merged_bins_by_hand(name):
    """Four tokens, top 2: the third bin is the sum of the other two tokens, for teacher and student."""
    p, q = np.array([[0.5, 0.3, 0.15, 0.05]]), np.array([[0.1, 0.2, 0.3, 0.4]])
    merged_p, merged_q = np.array([[0.5, 0.3, 0.2]]), np.array([[0.1, 0.2, 0.7]])
    found = sparse(name, cached(np.log(p), 2), torch.from_numpy(np.log(q)).float())
    assert found.item() == pytest.approx(DENSE[name](merged_p, merged_q), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 11), st.floats(0.05, 8), st.floats(0.05, 8))
def test_merging_tokens_never_adds_divergence(seed, top_k, teacher_scale, student_scale):
    teacher, student = random_logits(seed, scale=teacher_scale), random_logits(seed + 1, scale=student_scale)
    for name, dense in DENSE.items():
        found = sparse(name, cached(teacher, top_k), torch.from_numpy(student)).item()
        assert -1e-4 <= found <= dense(softmax(teacher), softmax(student)) * (1 + 1e-4) + 1e-4


def bins(log_probs: torch.Tensor) -> Bins:
    """All tokens but the last one kept: the rest is that one."""
    return Bins(log_probs[:, :-1].flatten(), log_probs[:, -1])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 30))
def test_jensen_shannon_is_symmetric_bounded_and_zero_where_equal(seed, scale):
    logits = torch.from_numpy(random_logits(seed, 4, 9, scale)), torch.from_numpy(random_logits(seed + 1, 4, 9, scale))
    p, q = (bins(tensor.log_softmax(-1)) for tensor in logits)
    there, back = jensen_shannon_sum(p, q).item(), jensen_shannon_sum(q, p).item()
    assert there == pytest.approx(back, abs=1e-5)
    assert 0 <= there + 1e-5 <= 4 * np.log(2) + 2e-5
    assert jensen_shannon_sum(p, p).item() == pytest.approx(0, abs=1e-6)
    assert forward_kl_sum(p, p).item() == pytest.approx(0, abs=1e-6)


def test_jensen_shannon_of_disjoint_distributions_is_ln_2():
    far = torch.tensor([[0.0, -80.0]])
    there, back = (bins(logits.log_softmax(-1)) for logits in (far, far.flip(-1)))
    assert jensen_shannon_sum(there, back).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("tail_log_prob", [-100.0, -30.0, -1e-7, -1e-3])
@pytest.mark.parametrize("student_scale", [0.0, 60.0])
def test_a_tail_of_almost_nothing_or_almost_everything(name, tail_log_prob, student_scale):
    """Finite loss and gradient, whatever the student thinks."""
    rest = np.log(-np.expm1(tail_log_prob)) - np.log(2) if tail_log_prob > -1 else -np.log(2)
    tail = torch.tensor([tail_log_prob], dtype=torch.float32)
    teacher = TeacherTargets(torch.tensor([0, 0]), torch.tensor([3, 1]), torch.full((2,), float(rest)), tail)
    logits = (student_scale * torch.tensor([[1.0, -1.0, 0.5, 0.0, 2.0]])).requires_grad_()
    loss = sparse(name, teacher, logits)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.item() >= -1e-6
    assert torch.isfinite(logits.grad).all()


def test_a_student_that_equals_its_teacher_has_no_loss_in_spite_of_8_bits():
    logits = random_logits(5, 6, 40, 3.0)
    for name in DENSE:
        found = sparse(name, cached(logits, 8, exact=False), torch.from_numpy(logits)).item() / len(logits)
        assert found == pytest.approx(0, abs=1e-4)


# What stands for the teacher's tail, with as many tokens kept at each position as it takes

COUNTS = [1, 11, 3, 7, 5]  # of 12


def merged(dense: torch.Tensor, kept: np.ndarray) -> torch.Tensor:
    """One position's kept tokens, and the sum of all others, (kept + 1,)."""
    chosen = torch.from_numpy(kept)
    return torch.cat([dense[chosen], dense[~chosen].sum()[None]])


def safe_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Tokens that p gives nothing add nothing."""
    return torch.where(p > 0, p * (torch.where(p > 0, p, 1).log() - q.log()), 0).sum()


def safe_torch(name: str, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    middle = (p + q) / 2
    return safe_kl(p, q) if name == "kl" else (safe_kl(p, middle) + safe_kl(q, middle)) / 2


def assert_is(expected: torch.Tensor, exact: torch.Tensor, found: torch.Tensor, logits: torch.Tensor) -> None:
    """Value and gradient; expected, exact: in float64."""
    assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    (wanted,), (gradient,) = torch.autograd.grad(expected, exact), torch.autograd.grad(found, logits)
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(gradient, wanted.float(), atol=1e-5, rtol=1e-4)


def student_of(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float32 and in float64."""
    student = torch.from_numpy(random_logits(seed))
    return student.clone().requires_grad_(), student.double().requires_grad_()


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("counts", [COUNTS, [0, 2, 0, 11, 1]])
def test_bucket_merges_at_each_position_what_is_not_kept_there(name, counts):
    teacher, (logits, exact) = random_logits(1), student_of(2)
    p, q = torch.from_numpy(softmax(teacher)), exact.softmax(-1)
    kept = kept_tokens(softmax(teacher), counts)
    expected = sum(dense_torch(name, merged(p[n], kept[n]), merged(q[n], kept[n])) for n in range(5))
    found = divergence_sum(name, "bucket", cached(teacher, counts), logits, None)
    assert_is(expected, exact, found, logits)


@pytest.mark.parametrize("name", DENSE)
def test_renormalise_leaves_the_teacher_nothing_but_the_kept_tokens(name):
    """The student is still asked for all of its mass: over the whole vocabulary."""
    teacher, (logits, exact) = random_logits(1), student_of(2)
    p = np.where(kept_tokens(softmax(teacher), COUNTS), softmax(teacher), 0)
    expected = safe_torch(name, torch.from_numpy(p / p.sum(-1, keepdims=True)), exact.softmax(-1))
    found = divergence_sum(name, "renormalise", cached(teacher, COUNTS), logits, None)
    assert_is(expected, exact, found, logits)


MEAN_TAILS = {
    "random": softmax(random_logits(8, 1))[0],
    "flat": np.full(12, 1 / 12),
    "nothing at some tokens": np.array([0, 0.5, 0, 0.125, 0, 0.25, 0, 0.0625, 0, 0.03125, 0.03125, 0]),
}


@pytest.mark.parametrize("mean_tail", MEAN_TAILS)
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_spread_lays_the_tail_over_the_mean_tail(mean_tail, scale):
    """The dense forward KL of the teacher's kept tokens and, outside them, its tail's mass in the mean tail's shape."""
    teacher, (logits, exact) = random_logits(1, scale=scale), student_of(2)
    tail_V = MEAN_TAILS[mean_tail]
    kept = kept_tokens(softmax(teacher), COUNTS)
    # with 11 of 12 kept, one token is left: it takes the whole tail, if the mean tail has anything for it
    outside = np.where(kept, 0, tail_V)
    if not outside[1].any():
        tail_V = np.where(kept[1], tail_V, 0.01)
        outside = np.where(kept, 0, tail_V)
    rest = np.where(kept, 0, softmax(teacher)).sum(-1, keepdims=True)
    p = np.where(kept, softmax(teacher), rest * outside / outside.sum(-1, keepdims=True))
    np.testing.assert_allclose(p.sum(-1), 1)
    expected = safe_torch("kl", torch.from_numpy(p), exact.softmax(-1))
    tail = torch.from_numpy(tail_V.astype(np.float32))
    found = divergence_sum("kl", "spread", cached(teacher, COUNTS), logits, tail)
    assert_is(expected, exact, found, logits)


@pytest.mark.parametrize(
    ("name", "tail"), [("js", "bucket"), ("kl", "bucket"), ("kl", "spread"), ("js", "renormalise")]
)
def test_a_teacher_without_any_tail(name, tail):
    """So sure that the rest is nothing in float32: as if only the kept tokens were there."""
    teacher, (logits, exact) = random_logits(1), student_of(2)
    p = np.where(kept_tokens(softmax(teacher), 4), softmax(teacher), 0)
    p /= p.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        targets = cached(np.log(p), 4)
    assert (targets.tail_log_probs == -torch.inf).all()
    expected = safe_torch(name, torch.from_numpy(p), exact.softmax(-1))
    found = divergence_sum(name, tail, targets, logits, torch.full((12,), 1 / 12))
    assert_is(expected, exact, found, logits)


def test_spread_goes_with_kl_alone():
    assert TrainSettings(kd_tail="spread", kd_divergence="kl").kd_tail == "spread"
    with pytest.raises(ValueError, match="kd_tail 'spread' goes with kd_divergence 'kl' alone"):
        TrainSettings(kd_tail="spread", kd_divergence="js")


# Gates


def test_gate_sum_counts_real_positions_once_for_each_layer():
    random = np.random.default_rng(0)
    lengths = {"encoder": [3, 6], "decoder": [4, 2]}
    widths = {"encoder": 6, "decoder": 4}
    names = ["encoder.layers.0", "encoder.layers.1", "decoder.layers.0"]
    gates = {name: random.random((2, widths[name[:7]])).astype(np.float32) for name in names}
    values = [
        gates[name][clip, position]
        for name in names
        for clip in range(2)
        for position in range(lengths[name[:7]][clip])
    ]
    masks = {side: torch.arange(width) < torch.tensor(lengths[side])[:, None] for side, width in widths.items()}
    found, count = gate_sum(
        {name: [torch.from_numpy(gate)] for name, gate in gates.items()}, masks["encoder"], masks["decoder"]
    )
    assert found.item() == pytest.approx(sum(values), rel=1e-6)
    assert count.item() == len(values)


# Batches of the tiny Whisper


@pytest.fixture
def corpus(tmp_path: Path) -> ShardReader:
    """One short clip and three longer ones, with transcripts of different lengths."""
    records = [make_utterance(6, 0.4), make_utterance(0, 0.9), make_utterance(3, 0.7), make_utterance(1, 0.8)]
    writer = ShardWriter(tmp_path / "train", "utterances", {"language": "cs", "split": "train"})
    writer.write(0, records, seconds=2.8)
    writer.finish(corpus="made", language="cs", split="train", seconds=2.8, left_out={})
    return ShardReader(tmp_path / "train", "utterances")


QUIET = dict(gate_noise=0, skip_gate=0, expert_dropout=0, gate_weight=0)


def run_of(corpus: ShardReader, tiny: Path, method: str, **changes) -> TrainingLoop:
    """A run whose gates are not at zero and whose layers drop nothing."""
    chosen = TrainSettings(**{**QUIET, "max_steps": 1, "dtype": "fp32", **changes})
    torch.manual_seed(3)
    base = load_whisper(str(tiny), 1)
    trainee = Trainee(base, method, "cs", chosen)
    for name, parameter in trainee.parameters.items():
        if "gate.outer" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    for module in trainee.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    data = TrainingData(corpus, None, base, "cs", chosen)
    return TrainingLoop(trainee, data, chosen, torch.float32, corpus.folder, dict, print)


def per_position(run: TrainingLoop, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (N, D) and losses (N,) of a batch's real target positions."""
    run.trainee.model.train()
    with torch.no_grad(), run.trainee.route() as routing:
        hidden = run.trainee.hidden(batch.features, batch.decoder_input_ids)[batch.positions]
        assert routing.gates or run.trainee.student is None
    logits = F.linear(hidden, run.trainee.whisper.model.proj_out.weight)
    return hidden, F.cross_entropy(logits, batch.targets, reduction="none", label_smoothing=0.1)


@pytest.mark.parametrize("method", ["clsr", "full"])
def test_a_clip_does_not_see_its_neighbours_or_its_padding(method, corpus, tiny_whisper):
    run = run_of(corpus, tiny_whisper, method)
    rows = run.data.load(0)
    alone, together = run.data.collate(rows[:1]), run.data.collate(rows)
    assert alone.decoder_input_ids.shape[1] < together.decoder_input_ids.shape[1]
    own = together.positions[0] == 0
    assert torch.equal(together.targets[own], alone.targets)
    assert alone.targets.tolist() == [*run.data.student.tokenizer.encode(" Ano.", add_special_tokens=False), 256]
    for found, expected in zip(per_position(run, together), per_position(run, alone), strict=True):
        torch.testing.assert_close(found[own], expected, atol=1e-5, rtol=1e-5)


def test_masks_hold_what_is_real(corpus, tiny_whisper):
    batch = (run := run_of(corpus, tiny_whisper, "clsr")).data.collate(run.data.load(0))
    assert batch.encoder_mask.sum(1).tolist() == [20, 45, 35, 40]  # 50 positions a second
    targets = [len(f" {row['text']}".encode()) + 1 for row in corpus.read(0)]
    assert batch.decoder_mask.sum(1).tolist() == [4 + count - 1 for count in targets]
    assert len(batch.targets) == sum(targets)
    # what position t reads is what position t-1 had to say
    inputs = batch.decoder_input_ids[1, : 4 + targets[1] - 1].tolist()
    assert inputs[4:] == batch.targets[batch.positions[0] == 1].tolist()[:-1]


def step_of(run: TrainingLoop, batches: list) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradients of one optimizer step, and its losses."""
    losses = run._step(batches, 0)
    return {name: parameter.grad.clone() for name, parameter in run.trainee.parameters.items()}, losses


@pytest.mark.parametrize("method", ["clsr", "full"])
@pytest.mark.parametrize("cut", [1, 2])
def test_accumulated_batches_have_the_gradient_of_one(method, cut, corpus, tiny_whisper):
    """Though their clips differ in number and length: losses are summed and divided once by all positions of the step."""
    together, accumulated = (run_of(corpus, tiny_whisper, method, max_grad_norm=1e9) for _ in range(2))
    rows = together.data.load(0)
    expected, losses = step_of(together, [together.data.collate(rows)])
    collate = accumulated.data.collate
    found, summed = step_of(accumulated, [collate(rows[:cut]), collate(rows[cut:])])
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-3, msg=name)
    assert summed["ce"] == pytest.approx(losses["ce"], rel=1e-5)


def test_the_step_divides_by_positions_and_adds_the_three_losses(corpus, tiny_whisper):
    """L = L_CE + w_gate |mean(g) - b|, each against its own formula."""
    run = run_of(corpus, tiny_whisper, "clsr", gate_weight=0.7, gate_budget=0.2, label_smoothing=0.1)
    batch = run.data.collate(run.data.load(0))
    run.trainee.model.train()
    loss, parts = run._loss(batch, len(batch.targets), 0.0)
    _, losses = per_position(run, batch)
    assert parts["ce"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert parts["gate"] == pytest.approx(abs(parts["gate_mean"] - 0.2), rel=1e-5)
    assert loss.item() == pytest.approx(parts["ce"] + 0.7 * parts["gate"], rel=1e-6)
    # only where there is audio, and only up to the last token that is read
    run.trainee.model.train()
    with torch.no_grad(), run.trainee.route() as routing:
        run.trainee.hidden(batch.features, batch.decoder_input_ids)
    real = {"encoder": [20, 45, 35, 40], "decoder": [4 + len(f" {row['text']}".encode()) for row in corpus.read(0)]}
    values = [
        gate[clip, :length]
        for name, (gate,) in routing.gates.items()
        for clip, length in enumerate(real[name.split(".")[0]])
    ]
    assert parts["gate_mean"] == pytest.approx(torch.cat(values).mean().item(), rel=1e-5)
