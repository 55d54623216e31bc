"""Losses and gradients through the projection in chunks, against autograd over dense log-probabilities in float64."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from stages.train_student.chunked_loss import projection_loss
from stages.train_student.losses import Bins, Objective, TeacherTargets, divergence_sum

N, D, V = 7, 6, 23
COUNTS = [4, 0, 22, 1, 0, 9, 5]
CHOICES = [("js", "bucket"), ("js", "renormalise"), ("kl", "bucket"), ("kl", "renormalise"), ("kl", "spread")]


def counts_of(tail: str) -> list[int]:
    """Kept tokens at each position; nothing cannot be renormalised."""
    return [4, 2, 22, 1, 1, 9, 5] if tail == "renormalise" else COUNTS


def dense(hidden, weight, targets, objective: Objective, teacher=None, tail_V=None) -> list[torch.Tensor]:
    """Total, cross-entropy and divergence by autograd over all log-probabilities at once."""
    log_probs = F.linear(hidden, weight).log_softmax(-1)
    ce = F.cross_entropy(log_probs, targets, reduction="sum", label_smoothing=objective.label_smoothing)
    if teacher is None:
        return [objective.ce_weight * ce, ce, ce.new_zeros(())]
    kept = teacher.positions, teacher.ids
    if objective.tail == "spread":
        rest = log_probs @ tail_V
    else:
        rest = log_probs.index_put(kept, log_probs.new_tensor(-torch.inf)).logsumexp(-1)
    kd = divergence_sum(objective.divergence, objective.tail, teacher, Bins(log_probs[kept], rest), tail_V)
    return [objective.ce_weight * ce + objective.kd_weight * kd, ce, kd]


def problem(seed: int = 0, dtype: torch.dtype = torch.float64, positions: int = N, scale: float = 1.5) -> list:
    """hidden, weight, targets: logits of a few units; the last two targets are the same."""
    torch.manual_seed(seed)
    hidden, weight = torch.randn(positions, D, dtype=dtype), scale * torch.randn(V, D, dtype=dtype)
    return [hidden.requires_grad_(), weight.requires_grad_(), torch.tensor([0, 22, 5, 9, 1, 3, 3])[:positions]]


def teacher_of(counts: list[int], seed: int = 1, dtype: torch.dtype = torch.float64) -> TeacherTargets:
    """Kept tokens in no order within a position."""
    torch.manual_seed(seed)
    probs = (2 * torch.randn(len(counts), V, dtype=torch.float64)).softmax(-1)
    order = probs.argsort(-1, descending=True)
    ids = [order[n, :count][torch.randperm(count)] for n, count in enumerate(counts)]
    positions = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    rest = torch.stack([1 - probs[n, chosen].sum() for n, chosen in enumerate(ids)]).clamp_min(0)
    rest = torch.where(torch.tensor(counts) == V, 0, rest)
    ids = torch.cat(ids)
    return TeacherTargets(positions, ids, probs[positions, ids].log().to(dtype), rest.log().to(dtype))


def mean_tail(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randn(V, dtype=dtype).softmax(-1)


def rows(count: int, dtype: torch.dtype = torch.float64) -> int:
    """Bytes of so many positions' logits."""
    return count * V * dtype.itemsize


@pytest.mark.parametrize(("divergence", "tail"), CHOICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("most", [1, 3, N])
def test_value_and_gradients_are_autograds(divergence, tail, smoothing, most):
    hidden, weight, targets = problem()
    objective = Objective(smoothing, 0.7, 2.0, divergence, tail)
    given = hidden, weight, targets, objective, teacher_of(counts_of(tail)), mean_tail()
    found, expected = projection_loss(*given, chunk_bytes=rows(most)), dense(*given)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        assert one.requires_grad == (one is found.total)
    wanted = torch.autograd.grad(3 * expected[0], (hidden, weight))
    for one, other in zip(torch.autograd.grad(3 * found.total, (hidden, weight)), wanted, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("divergence", "tail"), CHOICES)
@pytest.mark.parametrize("frozen", [True, False])
def test_gradcheck(divergence, tail, frozen):
    hidden, weight, targets = problem(2)
    weight.requires_grad_(not frozen)
    teacher, tail_V, objective = teacher_of(counts_of(tail)), mean_tail(), Objective(0.1, 1.0, 2.0, divergence, tail)

    def total(*inputs):
        return projection_loss(*inputs, targets, objective, teacher, tail_V, rows(3)).total

    assert torch.autograd.gradcheck(total, (hidden, weight))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_a_teacher_it_is_cross_entropy_alone(smoothing):
    hidden, weight, targets = problem(3)
    found = projection_loss(hidden, weight, targets, Objective(smoothing, kd_weight=2.0), chunk_bytes=rows(2))
    expected = dense(hidden, weight, targets, Objective(smoothing))
    torch.testing.assert_close(list(found), expected)
    wanted = torch.autograd.grad(expected[0], (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(found.total, (hidden, weight)), wanted)


@pytest.mark.parametrize("divergence", ["js", "kl"])
def test_with_every_token_kept_it_is_the_divergence_over_the_vocabulary(divergence):
    """Beside positions that keep fewer: where nothing is left there is no other bin."""
    hidden, weight, targets = problem(4)
    objective = Objective(0, 0, 1.0, divergence)
    full = teacher_of([V] * N)
    p = torch.zeros(N, V, dtype=torch.float64).index_put((full.positions, full.ids), full.log_probs.exp())
    log_q = F.linear(hidden, weight).log_softmax(-1)
    middle = p if divergence == "kl" else (p + log_q.exp()) / 2
    expected = (p * (p.log() - (log_q if divergence == "kl" else middle.log()))).sum()
    if divergence == "js":
        expected = (expected + (log_q.exp() * (log_q - middle.log())).sum()) / 2
    found = projection_loss(hidden, weight, targets, objective, full)
    torch.testing.assert_close(found.total, expected, rtol=1e-9, atol=1e-9)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(found.total, (hidden, weight)), wanted, rtol=1e-8, atol=1e-8)
    for counts in ([V, 3, V, 0, 1, 2, V], [V - 1] * N):  # merging tokens never adds to it
        merged = projection_loss(hidden, weight, targets, objective, teacher_of(counts)).divergence
        assert 0 < merged <= found.divergence * (1 + 1e-12)


@pytest.mark.parametrize(("divergence", "tail"), CHOICES)
def test_float32_in_one_chunk_or_many(divergence, tail):
    hidden, weight, targets = (t.detach() if t.requires_grad else t for t in problem(6, torch.float32))
    teacher, tail_V = teacher_of(counts_of(tail), dtype=torch.float32), mean_tail(torch.float32)
    objective, results = Objective(0.1, 1.0, 2.0, divergence, tail), []
    for most in (N, 2, 1):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        found = projection_loss(*leaves, targets, objective, teacher, tail_V, rows(most, torch.float32))
        results.append([found.total, *torch.autograd.grad(found.total, leaves)])
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * other.abs().max().item())
    exact = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    expected = dense(*exact, targets, objective, teacher, tail_V.double())[0]
    for one, other in zip(results[0], [expected, *torch.autograd.grad(expected, exact)], strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("divergence", ["js", "kl"])
@pytest.mark.parametrize("distance", [20.0, 60.0, 200.0])
def test_a_students_tail_of_almost_nothing(divergence, distance):
    """In float32 e^-200 is zero and 1 - sum(q) noise from e^-17 on; the value and its gradient stay those of float64."""
    logits = torch.zeros(1, 12)
    logits[0, 4:] = torch.linspace(-distance, -distance - 2, 8)
    probs = torch.tensor([0.4, 0.2, 0.1, 0.1])
    teacher = TeacherTargets(torch.zeros(4, dtype=torch.int64), torch.arange(4), probs.log(), torch.tensor([0.2]).log())
    objective, target = Objective(0, 0, 1.0, divergence), torch.tensor([0])
    single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found = projection_loss(single, torch.eye(12), target, objective, teacher)
    expected = dense(double, torch.eye(12).double(), target, objective, teacher)[0]
    torch.testing.assert_close(found.total.double(), expected, rtol=1e-6, atol=1e-7)
    found.total.backward()
    (wanted,) = torch.autograd.grad(expected, double)
    torch.testing.assert_close(single.grad.double(), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("taught", [True, False])
def test_what_is_not_finite_gives_a_loss_that_is_not(value, taught):
    """Even in one hidden value of a position whose teacher keeps nothing."""
    for place in range(N):
        hidden, weight, targets = problem(7, torch.float32)
        with torch.no_grad():
            hidden[place, 3] = value
        teacher = teacher_of(COUNTS, dtype=torch.float32) if taught else None
        sums = projection_loss(hidden, weight, targets, Objective(0.1, 1.0, 2.0), teacher, None, rows(2, torch.float32))
        assert not torch.isfinite(sums.total)


def test_no_positions():
    hidden, weight, targets = problem(positions=0)
    none, nothing = targets[:0], torch.empty(0)
    teacher = TeacherTargets(none, none, nothing, nothing)
    found = projection_loss(hidden, weight, none, Objective(0.1, 1.0, 2.0), teacher)
    of_hidden, of_weight = torch.autograd.grad(found.total, (hidden, weight))
    assert [value.item() for value in found] == [0, 0, 0]
    assert of_hidden.shape == (0, D)
    assert not of_weight.any()


@pytest.mark.parametrize("frozen", [True, False])
def test_autocast_multiplies_in_its_type_and_sums_in_float32(frozen):
    """As the projection alone under autocast, and everything behind it in float32."""
    hidden, weight, targets = problem(8, torch.float32)
    hidden = hidden.detach().bfloat16().requires_grad_()
    weight.requires_grad_(not frozen)
    leaves = (hidden,) if frozen else (hidden, weight)
    teacher, objective = teacher_of(COUNTS, dtype=torch.float32), Objective(0.1, 1.0, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.linear(hidden, weight)
        found = projection_loss(hidden, weight, targets, objective, teacher, chunk_bytes=rows(2, torch.float32))
    assert logits.dtype == torch.bfloat16
    expected = dense(logits.float(), torch.eye(V), targets, objective, teacher)[0]
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, expected, rtol=1e-6, atol=1e-6)
    wanted = torch.autograd.grad(expected, leaves)
    for one, other in zip(torch.autograd.grad(found.total, leaves), wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.float(), other.float(), rtol=2e-2, atol=2e-2)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gave."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return result


@pytest.mark.parametrize(("divergence", "tail"), CHOICES)
def test_nothing_is_larger_than_a_chunk_of_logits(divergence, tail):
    hidden, weight, targets = torch.randn(300, D, requires_grad=True), torch.randn(V, D), torch.randint(0, V, (300,))
    teacher = teacher_of([2] * 300, dtype=torch.float32)
    objective, tail_V = Objective(0.1, 1.0, 2.0, divergence, tail), mean_tail(torch.float32)
    with Largest() as largest:
        projection_loss(hidden, weight, targets, objective, teacher, tail_V, rows(100, torch.float32)).total.backward()
    assert largest.elements == 100 * V
    assert largest.elements > max(hidden.numel(), weight.numel())


def test_chunks_are_even_and_no_larger_than_asked_for():
    """Seven positions, three at most: 2, 2, 3, each with its own kept tokens (any other cut fails against `dense`)."""
    sizes = []

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.mm.default and result.shape[1] == V:
                sizes.append(result.shape[0])
            return result

    hidden, weight, targets = problem()
    with Shapes():
        projection_loss(hidden, weight, targets, Objective(), teacher_of(COUNTS), chunk_bytes=rows(3))
    assert sorted(sizes) == [2, 2, 3]
