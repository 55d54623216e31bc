"""The teacher's distribution at every target position, teacher-forced on the targets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cache.distributions import quantise
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.vocabulary import TokenMap
from stages.whisper.models import Whisper
from stages.whisper.targets import decoder_inputs, target_positions

BLOCK = 128  # tokens of the vocabulary whose maximum stands for them while the most likely are searched
_CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 29}  # of logits at a time: what stays in the processor's cache


@contextmanager
def fast_products(dtype: torch.dtype) -> Iterator[None]:
    """While `dtype` is bfloat16, float32 products round their factors to it; their sums and results stay float32."""
    backends: tuple[Any, ...] = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        if dtype == torch.bfloat16:
            for backend, precision in zip(backends, ("bf16", "tf32"), strict=True):
                backend.fp32_precision = precision
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


class Scorer:
    """One teacher. tail_V: sum over all positions scored of the distribution outside the tokens kept there."""

    def __init__(
        self, teacher: Whisper, prompt: list[int], tokens: TokenMap, settings: TeacherCacheSettings, dtype: torch.dtype
    ):
        self.model, self.end, self.prompt = teacher.model, teacher.tokenizer.eos_token_id, prompt
        self.settings, self.tokens, self.dtype = settings, tokens, dtype
        self.weight_VD = self.model.proj_out.weight.float()
        self.absent = torch.from_numpy(np.flatnonzero(tokens.to_student < 0)).to(self.model.device)
        self.tail_V = torch.zeros(len(self.weight_VD), dtype=torch.float64, device=self.model.device)

    @torch.inference_mode()
    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Log-mel (B, mels, frames) -> (B, S, D)."""
        with self._autocast():
            return self.model.model.encoder(features.to(self.model.device)).last_hidden_state

    @torch.inference_mode()
    def score(self, encoded_BSD: torch.Tensor, targets: list[list[int]]) -> list[dict[str, object]]:
        """For each clip the distribution fields of a teacher record; targets: the teacher's ids, each (T,).

        The decoder runs in `dtype`; logits are float32, since bf16 logits tie every third pair of neighbours.
        """
        inputs = decoder_inputs(self.prompt, targets, self.end).to(self.model.device)
        with self._autocast():
            hidden_BTD = self.model.model.decoder(
                inputs, encoder_hidden_states=encoded_BSD, use_cache=False
            ).last_hidden_state
        rows, columns = target_positions(self.prompt, targets)
        hidden_ND = hidden_BTD[rows.to(hidden_BTD.device), columns.to(hidden_BTD.device)].float()
        targets_N = torch.tensor([token for ids in targets for token in ids], device=hidden_ND.device)
        size = max(1, _CHUNK_BYTES.get(hidden_ND.device.type, 1 << 28) // (4 * len(self.weight_VD)))
        with fast_products(self.dtype):
            chunks = [self._chunk(*pair) for pair in zip(hidden_ND.split(size), targets_N.split(size), strict=True)]
        return self._records([torch.cat(parts).cpu().numpy() for parts in zip(*chunks, strict=True)], targets)

    def take_tail(self) -> np.ndarray:
        """What has been summed in `tail_V` since the last call, float32 by the student's ids, and begins anew."""
        tail_V = np.zeros(self.tokens.vocabulary_size, np.float32)
        known = self.tokens.to_student >= 0
        tail_V[self.tokens.to_student[known]] = self.tail_V.cpu().numpy()[known]
        self.tail_V.zero_()
        return tail_V

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _chunk(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(counts (N,), ids (N, K), probs (N, K), tail log probs (N,), the targets' log probs (N,)), N positions."""
        logits_NV = F.linear(hidden_ND, self.weight_VD)
        logits_NV[:, self.absent] = -torch.inf
        target_N = logits_NV.gather(-1, targets_N[:, None]).squeeze(-1)
        top_NK, ids_NK = most_likely(logits_NV, self.settings.top_k)
        # One pass of exponentials, without the top tokens: their own sum is added. The mass of the rest is summed as
        # such, since one minus the sum of rounded probabilities would be noise where it is small.
        highest_N1 = top_NK[:, :1]
        rest_NV = logits_NV.scatter_(-1, ids_NK, -torch.inf).sub_(highest_N1).exp_()
        top_NK = (top_NK - highest_N1).exp_()
        rest_N = rest_NV.sum(-1)
        total_N = rest_N + top_NK.sum(-1)
        probs_NK = top_NK / total_N[:, None]
        counts_N = (probs_NK.cumsum(-1) < self.settings.top_p).sum(-1) + 1
        counts_N.clamp_(self.settings.fewest, self.settings.top_k)
        dropped_NK = torch.arange(probs_NK.shape[1], device=counts_N.device) >= counts_N[:, None]
        dropped_probs_NK = probs_NK * dropped_NK
        tail_N = rest_N / total_N + dropped_probs_NK.sum(-1)
        self.tail_V += (1 / total_N) @ rest_NV
        self.tail_V.index_add_(0, ids_NK.flatten(), dropped_probs_NK.flatten().double())
        return counts_N, ids_NK, probs_NK, tail_N.log(), target_N - highest_N1[:, 0] - total_N.log()

    def _records(self, arrays: list[np.ndarray], targets: list[list[int]]) -> list[dict[str, object]]:
        counts_N, ids_NK, probs_NK, tail_N, target_N = arrays
        kept_NK = np.arange(ids_NK.shape[1]) < counts_N[:, None]
        to_student = self.tokens.to_student
        records, start = [], 0
        for ids in targets:
            clip = slice(start, start + len(ids))
            kept_TK = kept_NK[clip]
            records.append({
                "targets": to_student[ids].astype(np.uint16),
                "top_counts": counts_N[clip].astype(np.uint16),
                "top_ids": to_student[ids_NK[clip][kept_TK]].astype(np.uint16),
                "top_probs": quantise(probs_NK[clip][kept_TK], self.settings.bits),
                "tail_log_probs": tail_N[clip].astype(np.float32),
                "mean_log_prob": float(target_N[clip].mean(dtype=np.float64)),
            })  # fmt: skip
            start += len(ids)
        return records


def most_likely(logits_NV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `torch.topk` over the last dimension, values in falling order and ids (N, K); some times faster on a CPU.

    The k highest of all lie in the k blocks whose own maxima are highest, so that only those are searched.
    """
    vocab_size = logits_NV.shape[1]
    whole = vocab_size - vocab_size % BLOCK
    if whole // BLOCK <= 2 * k:
        return logits_NV.topk(k, dim=-1)
    blocks_NCB = logits_NV[:, :whole].unflatten(-1, (-1, BLOCK))
    chosen_NK = blocks_NCB.amax(-1).topk(k, dim=-1).indices
    candidates_NKB = blocks_NCB.gather(1, chosen_NK[:, :, None].expand(-1, -1, BLOCK))
    ids_NKB = chosen_NK[:, :, None] * BLOCK + torch.arange(BLOCK, device=logits_NV.device)
    rest = torch.arange(whole, vocab_size, device=logits_NV.device).expand(len(logits_NV), -1)
    values_NC = torch.cat([candidates_NKB.flatten(1), logits_NV[:, whole:]], -1)
    top = values_NC.topk(k, dim=-1)
    return top.values, torch.cat([ids_NKB.flatten(1), rest], -1).gather(-1, top.indices)
