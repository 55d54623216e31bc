"""Losses over the N real target positions of a batch, as sums: whoever calls divides once, by all positions of a step."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher at N positions: its K most likely tokens and the mass of all others."""

    top_ids: torch.Tensor  # (N, K) int64
    top_log_probs: torch.Tensor  # (N, K) float32
    tail_log_probs: torch.Tensor  # (N,) float32


def cross_entropy_sum(log_probs_NV: torch.Tensor, targets_N: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """As torch's cross entropy with label smoothing, from log-probabilities, so that the softmax is computed once."""
    likelihood_N = log_probs_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)
    if not label_smoothing:
        return -likelihood_N.sum()
    return -((1 - label_smoothing) * likelihood_N + label_smoothing * log_probs_NV.mean(-1)).sum()


def student_bins(log_probs_NV: torch.Tensor, top_ids_NK: torch.Tensor) -> torch.Tensor:
    """(N, K+1): the student's log-probabilities of the teacher's K tokens, and of all others together."""
    top_NK = log_probs_NV.gather(-1, top_ids_NK)
    tail_N = log_probs_NV.scatter(-1, top_ids_NK, -torch.inf).logsumexp(-1)
    return torch.cat([top_NK, tail_N.unsqueeze(-1)], -1)


def teacher_bins(teacher: TeacherTargets) -> torch.Tensor:
    """(N, K+1): the stored log-probabilities, normalised, since rounding leaves their sum a little off one."""
    return torch.cat([teacher.top_log_probs, teacher.tail_log_probs.unsqueeze(-1)], -1).log_softmax(-1)


def jensen_shannon_sum(teacher_bins_NK: torch.Tensor, student_bins_NK: torch.Tensor) -> torch.Tensor:
    """Sum over positions of JS(p, q) = (KL(p|m) + KL(q|m)) / 2 with m = (p + q) / 2, in nats (paper, equation 5).

    Bins merge tokens, so the value never exceeds that over the full vocabulary.
    """
    log_p, log_q = teacher_bins_NK, student_bins_NK
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum()


def forward_kl_sum(teacher_bins_NK: torch.Tensor, student_bins_NK: torch.Tensor) -> torch.Tensor:
    """Sum over positions of KL(p|q), p the teacher, in nats."""
    return (teacher_bins_NK.exp() * (teacher_bins_NK - student_bins_NK)).sum()


DIVERGENCES = {"js": jensen_shannon_sum, "kl": forward_kl_sum}


def gate_mean(gates: dict[str, list[torch.Tensor]], encoder_BT: torch.Tensor, decoder_BT: torch.Tensor) -> torch.Tensor:
    """Mean gate over all layers and real positions; the masks (B, T) are true where a position is real."""
    masks = {"encoder": encoder_BT, "decoder": decoder_BT}
    parts = [(gate_BT, masks[layer.split(".")[0]]) for layer, calls in gates.items() for gate_BT in calls]
    total = torch.stack([(gate_BT * mask_BT).sum() for gate_BT, mask_BT in parts]).sum()
    return total / sum(mask_BT.sum() for _, mask_BT in parts)
