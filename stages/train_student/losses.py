"""Losses over the N real target positions of a batch, as sums: whoever calls divides once, by all positions of a step."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Divergence = Literal["js", "kl"]
Tail = Literal["bucket", "spread", "renormalise"]


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher at N positions: M kept tokens in all, and at each position the mass of all others."""

    positions: torch.Tensor  # (M,) int64: which of the N, ascending
    ids: torch.Tensor  # (M,) int64
    log_probs: torch.Tensor  # (M,) float32
    tail_log_probs: torch.Tensor  # (N,) float32

    def to(self, device: torch.device) -> "TeacherTargets":
        return TeacherTargets(*(tensor.to(device) for tensor in vars(self).values()))


class Bins(NamedTuple):
    """Log-probabilities of the kept tokens, and of all others together."""

    kept_M: torch.Tensor
    tail_N: torch.Tensor


def teacher_bins(teacher: TeacherTargets, tail: Tail = "bucket") -> Bins:
    """Scaled to sum to one, which rounding leaves them a little off; `renormalise`: over the kept tokens alone."""
    tail_N = torch.full_like(teacher.tail_log_probs, -torch.inf) if tail == "renormalise" else teacher.tail_log_probs
    total_N = tail_N.exp().index_add(0, teacher.positions, teacher.log_probs.exp()).log()
    return Bins(teacher.log_probs - total_N[teacher.positions], tail_N - total_N)


def jensen_shannon_sum(teacher: Bins, student: Bins) -> torch.Tensor:
    """Sum over positions of JS(p, q) = (KL(p|m) + KL(q|m)) / 2 with m = (p + q) / 2, in nats (paper, equation 5).

    Bins merge tokens, so the value never exceeds that over the full vocabulary.
    """
    total = student.tail_N.new_zeros(())
    for log_p, log_q in zip(teacher, student, strict=True):
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        p = log_p.exp()
        total = total + 0.5 * (torch.xlogy(p, p) - p * log_m + log_q.exp() * (log_q - log_m)).sum()
    return total


def forward_kl_sum(teacher: Bins, student: Bins) -> torch.Tensor:
    """Sum over positions of KL(p|q), p the teacher, in nats."""
    terms = [
        (torch.xlogy(log_p.exp(), log_p.exp()) - log_p.exp() * log_q).sum()
        for log_p, log_q in zip(teacher, student, strict=True)
    ]
    return terms[0] + terms[1]


def spread_kl_sum(teacher: Bins, kept: TeacherTargets, student: Bins, tail_V: torch.Tensor) -> torch.Tensor:
    """Sum over positions of KL(p|q) over the full vocabulary, p's tail mass laid over `tail_V` outside the kept tokens.

    tail_V: what the teacher's tail is on average, summing to one. student.tail_N: log q @ tail_V, over all tokens: from
    that one product the kept tokens' share is taken.
    """
    weight_M, student_M = tail_V[kept.ids], student.kept_M

    def outside(over_all: torch.Tensor, of_kept_M: torch.Tensor) -> torch.Tensor:
        return over_all.expand(len(student.tail_N)).index_add(0, kept.positions, -of_kept_M)

    mass_N = outside(tail_V.sum(), weight_M).clamp_min(1e-9)
    log_weight_N = outside(torch.xlogy(tail_V, tail_V).sum(), torch.xlogy(weight_M, weight_M)) / mass_N
    log_q_N = outside(student.tail_N, weight_M * student_M) / mass_N
    tail_N, kept_M = teacher.tail_N.exp(), teacher.kept_M.exp()
    kept_sum = (torch.xlogy(kept_M, kept_M) - kept_M * student_M).sum()
    return kept_sum + (torch.xlogy(tail_N, tail_N) + tail_N * (log_weight_N - mass_N.log() - log_q_N)).sum()


def divergence_sum(
    name: Divergence, tail: Tail, teacher: TeacherTargets, student: Bins, tail_V: torch.Tensor | None
) -> torch.Tensor:
    """The distillation loss, summed over positions; tail_V (the cache's mean tail) for `spread` alone."""
    bins = teacher_bins(teacher, tail)
    if tail == "spread":
        assert tail_V is not None and name == "kl"
        return spread_kl_sum(bins, teacher, student, tail_V)
    return DIVERGENCES[name](bins, student)


DIVERGENCES = {"js": jensen_shannon_sum, "kl": forward_kl_sum}


def gate_sum(
    gates: dict[str, list[torch.Tensor]], encoder_BT: torch.Tensor, decoder_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gates' sum over all layers and real positions, and their number; the masks (B, T) are true where one is real."""
    masks = {"encoder": encoder_BT, "decoder": decoder_BT}
    parts = [(gate_BT, masks[layer.split(".")[0]]) for layer, calls in gates.items() for gate_BT in calls]
    total = torch.stack([(gate_BT * mask_BT).sum() for gate_BT, mask_BT in parts]).sum()
    return total, torch.stack([mask_BT.sum() for _, mask_BT in parts]).sum()
