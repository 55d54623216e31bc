"""Value and gradient of each way to treat the teacher's tail, against the loss over the full vocabulary, on real shards.

    python tests/bench/tail_choices.py --teacher models/cs/teacher --utterances data/utterances/cs/train

Gradients are with respect to the student's logits; the student is --model. bias: (value - exact) / exact, summed over all
positions. cosine: between all positions' gradients as one vector. length: of the gradient, as a share of the exact one's.
"""

from functools import partial

import numpy as np
import torch
from common import arguments, begin
from torch.nn import functional as F

from cache.distributions import stored_log_probs
from stages.shared.audio import decode_flac
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import Whisper, load_whisper
from stages.shared.whisper.targets import decoder_inputs, prompt_ids, target_ids, target_positions
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.shard import ShardScorer
from stages.train_student.chunked_loss import logits_to_gradient_
from stages.train_student.losses import Objective, TeacherTargets

LANGUAGE = "cs"
LOSSES = [("js", "bucket"), ("js", "renormalise"), ("kl", "bucket"), ("kl", "spread"), ("kl", "renormalise")]
KEPT = {"top_k 8": (8, 1.0), "top_k 32": (32, 1.0), "top_k 64": (64, 1.0), "top_p 0.95, min_k 8, top_k 64": (64, 0.95)}


def main() -> None:
    args = arguments(__doc__, teacher=("openai/whisper-base", "teacher"), compared=(96, "utterances that are compared"))
    student, shards = begin(args)
    teacher = load_whisper(args.teacher, args.window)
    rows = [row for shard in shards for row in shard]
    part = rows[:: max(1, len(rows) // args.compared)][: args.compared]
    logits = [_logits(whisper, part) for whisper in (teacher, student)]
    print(f"{len(part)} utterances, {len(logits[0])} positions; the mean tail is that of {len(rows)} utterances\n")
    print("| kept | loss | tail | bias | cosine | length |\n| --- | --- | --- | --- | --- | --- |")
    for name, (top_k, top_p) in KEPT.items():
        cached, tail_V = _cached(teacher, part, rows, top_k, top_p)
        for loss, tail in LOSSES:
            value, gradient = _sparse(loss, tail, cached, tail_V, logits[1])
            exact, wanted = _with_gradient(partial(_dense, loss, logits[0]), logits[1])
            cosine = F.cosine_similarity(gradient.flatten().double(), wanted.flatten().double(), dim=0)
            length = gradient.norm() / wanted.norm()
            print(f"| {name} | {loss} | {tail} | {value / exact - 1:+.4f} | {cosine:.4f} | {length:.3f} |", flush=True)


@torch.inference_mode()
def _logits(whisper: Whisper, rows: list[dict]) -> torch.Tensor:
    """(N, V) float32 at the targets of all rows."""
    log_mel, prompt = LogMel(whisper.model.config.num_mel_bins, whisper.audio_window_s), prompt_ids(whisper, LANGUAGE)
    parts = []
    for row in rows:
        targets = [target_ids(whisper.tokenizer, row["text"], LANGUAGE)]
        inputs = decoder_inputs([prompt], targets, 50257)
        hidden = whisper.model.model(log_mel([decode_flac(row["audio"])]), decoder_input_ids=inputs).last_hidden_state
        parts.append(F.linear(hidden[target_positions([prompt], targets)], whisper.model.proj_out.weight))
    return torch.cat(parts)


def _cached(
    teacher: Whisper, part: list[dict], rows: list[dict], top_k: int, top_p: float
) -> tuple[TeacherTargets, torch.Tensor]:
    """The stored distributions of `part`, and the mean tail of all `rows`."""
    settings = TeacherCacheSettings(top_k=top_k, top_p=top_p, dtype="fp32")
    job = ScoringJob(teacher, LANGUAGE, settings, torch.device("cpu"))
    (shard,) = ShardScorer(job).run([(0, rows)], lambda *_: None)
    of = {record["id"]: record for record in shard.records}
    records = [of[row["id"]] for row in part]
    counts, ids, codes, tails = (
        np.concatenate([record[name] for record in records])
        for name in ("top_counts", "top_ids", "top_probs", "tail_log_probs")
    )
    arrays = (
        np.repeat(np.arange(len(counts)), counts),
        ids.astype(np.int64),
        stored_log_probs(codes, settings.bits),
        tails,
    )
    return TeacherTargets(*map(torch.from_numpy, arrays)), torch.from_numpy(shard.tail_V / shard.tail_V.sum())


def _sparse(
    loss: str, tail: str, teacher: TeacherTargets, tail_V: torch.Tensor, logits_NV: torch.Tensor
) -> tuple[float, torch.Tensor]:
    objective = Objective(ce_weight=0, kd_weight=1, divergence=loss, tail=tail)
    gradient_NV, targets_N = logits_NV.clone(), torch.zeros(len(logits_NV), dtype=torch.int64)
    spread_V = tail_V.float() if tail == "spread" else None
    _, value = logits_to_gradient_(gradient_NV, targets_N, objective, teacher, spread_V)
    return value.item(), gradient_NV


def _dense(loss: str, teacher_NV: torch.Tensor, log_q_NV: torch.Tensor) -> torch.Tensor:
    log_p_NV = teacher_NV.log_softmax(-1)
    if loss == "kl":
        return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum()
    log_m_NV = torch.logaddexp(log_p_NV, log_q_NV) - np.log(2)
    return 0.5 * (log_p_NV.exp() * (log_p_NV - log_m_NV) + log_q_NV.exp() * (log_q_NV - log_m_NV)).sum()


def _with_gradient(loss, logits_NV: torch.Tensor) -> tuple[float, torch.Tensor]:
    logits_NV = logits_NV.clone().requires_grad_()
    value = loss(logits_NV.log_softmax(-1))
    value.backward()
    return value.item(), logits_NV.grad


if __name__ == "__main__":
    main()
