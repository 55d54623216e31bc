"""Computes the losses of the output projection a chunk of positions at a time: the logits of all N never exist at once.

Each chunk's logits are overwritten with their gradient, which is multiplied by the projection matrix at once. Only the
gradient of the decoder's output, (N, D), is kept. Liger-Kernel's fused linear cross-entropy does the same (arXiv
2410.10989, section 3.2); here the gradient of the distillation loss is part of the same pass.
"""

# Shapes: N target positions, D width of the decoder, V vocabulary, M kept tokens of the teacher at all N together.

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from stages.train_student.losses import Bins, Objective, TeacherTargets, divergence_sum

CHUNK_BYTES = 32 << 20  # of logits
LOG_ZERO = -1e4  # stands for the logarithm of no probability at all


class LossSums(NamedTuple):
    """Sums over N positions. Only `total` has a gradient."""

    total: torch.Tensor
    cross_entropy: torch.Tensor
    divergence: torch.Tensor  # zero without a teacher


def projection_loss(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    objective: Objective,
    teacher: TeacherTargets | None = None,
    tail_V: torch.Tensor | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> LossSums:
    """Returns the losses of softmax(hidden_ND @ weight_VD.T), as sums.

    tail_V: the mean of the teacher's tails; only `spread` needs it. chunk_bytes: the most bytes of logits at a time.
    Under autocast the matrix products are in its type. The softmax, its gradient and all sums are in float32 or wider.
    """
    extra = targets_N, objective, teacher, tail_V, chunk_bytes
    return LossSums(*_ProjectionLoss.apply(hidden_ND, weight_VD, *extra))


class _ProjectionLoss(torch.autograd.Function):
    """Computes the gradient in the forward pass, together with the value."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_N: torch.Tensor,
        objective: Objective,
        teacher: TeacherTargets | None,
        tail_V: torch.Tensor | None,
        chunk_bytes: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        exact = torch.promote_types(dtype, torch.float32)
        hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        of_hidden = torch.empty_like(hidden_ND)
        of_weight = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        sums = hidden.new_zeros(2, dtype=exact)
        spread_V = tail_V.to(exact) if tail_V is not None and teacher and objective.tail == "spread" else None

        def add(start: int, stop: int, part: TeacherTargets | None) -> None:
            logits = (hidden[start:stop] @ weight.T).to(exact)
            sums.add_(torch.stack(logits_to_gradient_(logits, targets_N[start:stop], objective, part, spread_V)))
            gradient = logits.to(dtype)
            of_hidden[start:stop] = gradient @ weight
            if of_weight is not None:
                _add_product_(of_weight, gradient.T, hidden[start:stop])

        with torch.autocast(device, enabled=False):
            for chunk in _chunks(len(hidden), chunk_bytes // (len(weight) * exact.itemsize), teacher):
                add(*chunk)
        ctx.save_for_backward(of_hidden, of_weight)
        cross_entropy, divergence = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return objective.of_tokens(cross_entropy, divergence), cross_entropy, divergence

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_total: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = (saved if saved is None else of_total.to(saved.dtype) * saved for saved in ctx.saved_tensors)
        return *gradients, None, None, None, None, None


def _chunks(count: int, most: int, teacher: TeacherTargets | None) -> Iterator[tuple[int, int, TeacherTargets | None]]:
    """Yields (start, stop, the teacher's part) of chunks of nearly equal size, `most` positions or fewer."""
    number = max(1, -(-count // max(1, most)))
    edges = [count * chunk // number for chunk in range(number + 1)]
    if teacher is not None:
        kept = torch.searchsorted(teacher.positions.contiguous(), teacher.positions.new_tensor(edges)).tolist()
    for chunk, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        if teacher is None:
            yield start, stop, None
        else:
            of = slice(kept[chunk], kept[chunk + 1])
            rest_N = teacher.tail_log_probs[start:stop]
            weights_N = None if teacher.weights is None else teacher.weights[start:stop]
            kept_M = teacher.positions[of] - start, teacher.ids[of], teacher.log_probs[of]
            yield start, stop, TeacherTargets(*kept_M, rest_N, weights_N)


def _add_product_(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:  # addmm_ needs equal types; chunks are summed in float32 whatever the type of their product
        total += left @ right


@torch.no_grad()
def logits_to_gradient_(
    logits_NV: torch.Tensor,
    targets_N: torch.Tensor,
    objective: Objective,
    teacher: TeacherTargets | None = None,
    spread_V: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the sums of cross-entropy and divergence. Overwrites the logits with the gradient of their weighted sum.

    The cross-entropy of each position counts by `teacher.weights`, if there are any.
    With q the softmax, the gradient of token j is q_j times a factor of its position. Only the target and the teacher's
    kept tokens differ from that.
    """
    kd_weight, smoothing = objective.kd_weight, objective.label_smoothing
    targets_N1, kept = targets_N.unsqueeze(1), (targets_N[:0], targets_N[:0])
    if teacher is not None:
        kept = teacher.positions, teacher.ids
    target_N = logits_NV.gather(1, targets_N1).squeeze(1)
    weights_N = torch.ones_like(target_N)
    if teacher is not None and teacher.weights is not None:
        weights_N = teacher.weights.to(target_N)
    ce_N = objective.ce_weight * weights_N
    mean_N = logits_NV.mean(1) if smoothing else target_N
    spread_N = None if spread_V is None else logits_NV @ spread_V
    softmax = _exp_of_others_(logits_NV, kept)

    cross_entropy = (weights_N * (softmax.log_total_N - (1 - smoothing) * target_N - smoothing * mean_N)).sum()
    of_kept_M, of_others_N = ce_N[kept[0]] * softmax.bins.kept_M.exp(), ce_N * softmax.bins.tail_N.exp()
    divergence = torch.zeros_like(cross_entropy)
    if teacher is not None:
        divergence, kd, along_N = _distil(objective, teacher, softmax, spread_N, spread_V)
        of_kept_M, of_others_N = of_kept_M + kd_weight * kd.kept_M, of_others_N + kd_weight * kd.tail_N

    logits_NV.mul_((of_others_N / softmax.others_N).unsqueeze(1)).index_put_(kept, of_kept_M)
    if smoothing:
        logits_NV.sub_((ce_N * smoothing / logits_NV.shape[1]).unsqueeze(1))
    logits_NV.scatter_add_(1, targets_N1, (-ce_N * (1 - smoothing)).unsqueeze(1))
    if teacher is not None and spread_V is not None:
        logits_NV.addr_(kd_weight * along_N, spread_V)
    return cross_entropy, divergence


class _Softmax(NamedTuple):
    bins: Bins  # log-probabilities of the kept tokens, and of all others together
    log_total_N: torch.Tensor  # log of the softmax's denominator
    others_N: torch.Tensor  # sum of what has overwritten the logits; 1 where that is nothing


def _exp_of_others_(logits_NV: torch.Tensor, kept: tuple[torch.Tensor, torch.Tensor]) -> _Softmax:
    """Overwrites the logits with exp(logit - the greatest logit of a token not kept), and with 0 at kept tokens.

    The sum over the other tokens is thus exact, however small it is.
    """
    rows_M, kept_M = kept[0], logits_NV[kept]
    logits_NV.index_put_(kept, logits_NV.new_tensor(-torch.inf))
    greatest_N = logits_NV.amax(1).clamp_min(torch.finfo(logits_NV.dtype).min)  # -inf where all are kept
    sum_N = logits_NV.sub_(greatest_N.unsqueeze(1)).exp_().sum(1)
    top_N = greatest_N.scatter_reduce(0, rows_M, kept_M, "amax")
    total_N = (sum_N * (greatest_N - top_N).exp()).index_add(0, rows_M, (kept_M - top_N[rows_M]).exp())
    log_total_N = top_N + total_N.log()
    rest_N = (greatest_N + sum_N.log() - log_total_N).clamp_min(LOG_ZERO)
    return _Softmax(Bins(kept_M - log_total_N[rows_M], rest_N), log_total_N, sum_N.clamp_min(1))


def _distil(
    objective: Objective,
    teacher: TeacherTargets,
    softmax: _Softmax,
    spread_N: torch.Tensor | None,
    spread_V: torch.Tensor | None,
) -> tuple[torch.Tensor, Bins, torch.Tensor]:
    """Returns the divergence and its gradient: at the kept tokens, of all other tokens together, and along `spread_V`.

    f_i is its derivative in log q_i at a kept token, f that in log q_rest, and F the sum of them all. The gradient is
    f_i - q_i F at a kept token, and f - q_rest F for the other tokens together, in proportion to q. Where the tail is
    spread, f is the derivative in log q @ spread_V, and is distributed over all tokens in proportion to spread_V.
    """
    student = softmax.bins
    total: float | torch.Tensor = 1.0
    known = student
    if spread_N is not None and spread_V is not None:
        total = spread_V.sum()
        known = Bins(student.kept_M, spread_N - total * softmax.log_total_N)
    with torch.enable_grad():
        known = Bins(*(log_prob.detach().requires_grad_() for log_prob in known))
        value = divergence_sum(objective.divergence, objective.tail, teacher, known, spread_V)
        in_kept_M, in_rest_N = torch.autograd.grad(value, known)
    all_N = (total * in_rest_N).index_add(0, teacher.positions, in_kept_M)
    kept_M = in_kept_M - student.kept_M.exp() * all_N[teacher.positions]
    others_N = (0 if spread_N is not None else in_rest_N) - student.tail_N.exp() * all_N
    return value.detach(), Bins(kept_M, others_N), in_rest_N
