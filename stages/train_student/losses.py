"""The losses. With chunked_loss.py, which computes them from the decoder's output, this is all of the objective.

All functions return sums over the N real target positions of a batch. The caller divides once, by the target positions
of the optimizer step. It does so also where tokens have weights: divided by the sum of the weights, a doubtful token
would count as much as a certain one wherever all tokens of a step are doubtful, and a token's part would depend on its
neighbours.
"""

# Shapes: N target positions, M kept tokens of the teacher at all N together, V vocabulary; of gates B rows, T positions.

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch

from stages.train_student.settings import TrainSettings

Divergence = Literal["js", "kl"]
Tail = Literal["bucket", "spread", "renormalise"]
Loss = TypeVar("Loss", float, torch.Tensor)


@dataclass(frozen=True)
class Objective:
    """What is minimised: w_ce L_CE + w_kd L_KD + w_gate L_gate."""

    label_smoothing: float = 0.0
    ce_weight: float = 1.0
    kd_weight: float = 0.0
    divergence: Divergence = "js"
    tail: Tail = "bucket"
    gate_weight: float = 0.0
    gate_budget: float = 0.5
    gate_budget_start: float | None = None

    @classmethod
    def of(cls, settings: TrainSettings) -> "Objective":
        return cls(
            label_smoothing=settings.label_smoothing,
            ce_weight=settings.ce_weight,
            kd_weight=settings.kd_weight,
            divergence=settings.kd_divergence,
            tail=settings.kd_tail,
            gate_weight=settings.gate_weight,
            gate_budget=settings.gate_budget,
            gate_budget_start=settings.gate_budget_start,
        )

    def of_tokens(self, cross_entropy: Loss, divergence: Loss) -> Loss:
        """Returns w_ce L_CE + w_kd L_KD."""
        return self.ce_weight * cross_entropy + self.kd_weight * divergence

    def total(self, cross_entropy: float, divergence: float, gate: float) -> float:
        """Returns w_ce L_CE + w_kd L_KD + w_gate L_gate."""
        return self.of_tokens(cross_entropy, divergence) + self.gate_weight * gate

    def budget(self, share: float) -> float:
        """Returns the gate budget after `share` of the steps: it moves linearly from its start, if it has one."""
        if self.gate_budget_start is None:
            return self.gate_budget
        return self.gate_budget_start + share * (self.gate_budget - self.gate_budget_start)

    def gate_loss(self, mean: torch.Tensor, share: float) -> torch.Tensor:
        """Returns L_gate = |mean gate - budget|. share: of the steps, done so far."""
        return (mean - self.budget(share)).abs()

    def weighted_gate(self, loss: torch.Tensor, share: float) -> torch.Tensor:
        """Returns w_gate L_gate of a batch that makes up `share` of its optimizer step."""
        return share * self.gate_weight * loss


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's distribution at N positions: M kept tokens in all, and at each position the mass of all others."""

    positions: torch.Tensor  # (M,) int64: the position of each kept token, ascending
    ids: torch.Tensor  # (M,) int64
    log_probs: torch.Tensor  # (M,) float32
    tail_log_probs: torch.Tensor  # (N,) float32
    weights: torch.Tensor | None = None  # (N,) of the targets' cross-entropy; None: 1

    def to(self, device: torch.device) -> "TeacherTargets":
        given = {name: tensor.to(device) for name, tensor in vars(self).items() if tensor is not None}
        return TeacherTargets(**given)


class Bins(NamedTuple):
    """Log-probabilities of the kept tokens, and of all other tokens together."""

    kept_M: torch.Tensor
    tail_N: torch.Tensor


def teacher_bins(teacher: TeacherTargets, tail: Tail = "bucket") -> Bins:
    """Returns the teacher's bins, scaled to sum to one: stored values are rounded. `renormalise` drops the tail first."""
    tail_N = torch.full_like(teacher.tail_log_probs, -torch.inf) if tail == "renormalise" else teacher.tail_log_probs
    total_N = tail_N.exp().index_add(0, teacher.positions, teacher.log_probs.exp()).log()
    return Bins(teacher.log_probs - total_N[teacher.positions], tail_N - total_N)


def jensen_shannon_sum(teacher: Bins, student: Bins) -> torch.Tensor:
    """Returns the sum over positions of JS(p, q) = (KL(p|m) + KL(q|m)) / 2 with m = (p + q) / 2, in nats (paper, equation 5).

    Bins merge tokens, so that the value never exceeds the one over the full vocabulary.
    """
    total = student.tail_N.new_zeros(())
    for log_p, log_q in zip(teacher, student, strict=True):
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        p = log_p.exp()
        total = total + 0.5 * (torch.xlogy(p, p) - p * log_m + log_q.exp() * (log_q - log_m)).sum()
    return total


def forward_kl_sum(teacher: Bins, student: Bins) -> torch.Tensor:
    """Returns the sum over positions of KL(p|q) in nats; p is the teacher."""
    terms = [
        (torch.xlogy(log_p.exp(), log_p.exp()) - log_p.exp() * log_q).sum()
        for log_p, log_q in zip(teacher, student, strict=True)
    ]
    return terms[0] + terms[1]


def spread_kl_sum(teacher: Bins, kept: TeacherTargets, student: Bins, tail_V: torch.Tensor) -> torch.Tensor:
    """Returns the sum over positions of KL(p|q) over the full vocabulary.

    The teacher's tail mass is spread over the tokens that it did not keep, in proportion to `tail_V`.
    tail_V: the mean of the teacher's tails, summing to one. student.tail_N: log q @ tail_V over all tokens; the kept
    tokens' part is subtracted here.
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
    """Returns the distillation loss, summed over positions. tail_V: the cache's mean tail; only `spread` needs it."""
    bins = teacher_bins(teacher, tail)
    if tail == "spread":
        assert tail_V is not None and name == "kl"
        return spread_kl_sum(bins, teacher, student, tail_V)
    return DIVERGENCES[name](bins, student)


DIVERGENCES = {"js": jensen_shannon_sum, "kl": forward_kl_sum}


def gate_sum(
    gates: dict[str, list[torch.Tensor]], encoder_BT: torch.Tensor, decoder_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the sum of the gates over all layers and real positions, and their number. Masks (B, T) are true at real ones."""
    masks = {"encoder": encoder_BT, "decoder": decoder_BT}
    # a layer without an expert records that no token took one: it has no gate
    gated = {layer: calls for layer, calls in gates.items() if calls[0].is_floating_point()}
    parts = [(gate_BT, masks[layer.split(".")[0]]) for layer, calls in gated.items() for gate_BT in calls]
    total = torch.stack([(gate_BT * mask_BT).sum() for gate_BT, mask_BT in parts]).sum()
    return total, torch.stack([mask_BT.sum() for _, mask_BT in parts]).sum()
