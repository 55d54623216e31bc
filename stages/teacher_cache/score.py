"""Computes the teacher's distribution at every target position, teacher-forced on the targets."""

import numpy as np
import torch
from torch.nn import functional as F

from cache.distributions import quantise
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.targets import decoder_inputs, target_positions
from stages.shared.whisper.timestamps import prompt_before
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.vocabulary import TokenMap

# Shapes: B clips, S encoder positions, T decoder positions, N target positions of all clips, D model width,
# V teacher's vocabulary, K top_k tokens

CHUNK_BYTES = 1 << 26  # size of the logits that are computed at a time


class Scorer:
    """One teacher on its device. Its methods may be called from several threads."""

    def __init__(
        self, teacher: Whisper, prompt: list[int], tokens: TokenMap, settings: TeacherCacheSettings, dtype: torch.dtype
    ):
        self.model, self.end, self.prompt = teacher.model, teacher.tokenizer.eos_token_id, prompt
        self.settings, self.tokens, self.dtype = settings, tokens, dtype
        self.weight_VD = self.model.model.decoder.embed_tokens.weight.float()  # tied to the output projection
        self.absent = torch.from_numpy(np.flatnonzero(tokens.to_student < 0)).to(self.model.device)

    @torch.inference_mode()
    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Turns log-mel features (B, mels, frames) into the encoder's output (B, S, D)."""
        with self._autocast():
            return self.model.model.encoder(features.to(self.model.device)).last_hidden_state

    @torch.inference_mode()
    def score(self, encoded_BSD: torch.Tensor, targets: list[list[int]]) -> tuple[list[dict[str, object]], np.ndarray]:
        """Returns the distribution fields of each clip's record, and the summed tail.

        The tail is the distribution outside the tokens kept at a position, summed over all positions: float64, by the
        student's ids. targets: for each clip its target tokens by the teacher's ids.
        The decoder runs in `dtype`. Logits are float32, since bf16 logits tie every third pair of neighbours.
        """
        prompts = [prompt_before(self.prompt, ids) for ids in targets]
        inputs = decoder_inputs(prompts, targets, self.end).to(self.model.device)
        with self._autocast():
            hidden_BTD = self.model.model.decoder(
                inputs, encoder_hidden_states=encoded_BSD, use_cache=False
            ).last_hidden_state
        rows, columns = target_positions(prompts, targets)
        hidden_ND = hidden_BTD[rows.to(hidden_BTD.device), columns.to(hidden_BTD.device)].float()
        targets_N = torch.tensor([token for ids in targets for token in ids], device=hidden_ND.device)
        size = max(1, CHUNK_BYTES // (4 * len(self.weight_VD)))
        tail_V = torch.zeros(len(self.weight_VD), dtype=torch.float64, device=hidden_ND.device)
        pairs = zip(hidden_ND.split(size), targets_N.split(size), strict=True)
        chunks = [self._chunk(*pair, tail_V) for pair in pairs]
        records = self._records([torch.cat(parts).cpu().numpy() for parts in zip(*chunks, strict=True)], targets)
        return records, self._by_student(tail_V.cpu().numpy())

    def _by_student(self, tail_V: np.ndarray) -> np.ndarray:
        known = self.tokens.to_student >= 0
        by_student = np.zeros(self.tokens.vocabulary_size)
        by_student[self.tokens.to_student[known]] = tail_V[known]
        return by_student

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _chunk(
        self, hidden_ND: torch.Tensor, targets_N: torch.Tensor, tail_V: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Returns counts (N,), ids (N, K), probs (N, K), tail log-probs (N,) and the targets' log-probs (N,).

        Adds to `tail_V` the probabilities outside the kept tokens, summed over the N positions.
        """
        logits_NV = F.linear(hidden_ND, self.weight_VD)
        logits_NV[:, self.absent] = -torch.inf
        target_N = logits_NV.gather(-1, targets_N[:, None]).squeeze(-1)
        top_NK, ids_NK = logits_NV.topk(self.settings.top_k, dim=-1)
        # One pass of exponentials over all but the top tokens, whose sum is added. The mass of the rest is a sum of its own:
        # where it is small, one minus the sum of the rounded top probabilities would be noise.
        highest_N1 = top_NK[:, :1]
        rest_NV = logits_NV.scatter_(-1, ids_NK, -torch.inf).sub_(highest_N1).exp_()
        top_NK = (top_NK - highest_N1).exp_()
        rest_N = rest_NV.sum(-1)
        total_N = rest_N + top_NK.sum(-1)
        probs_NK = top_NK / total_N[:, None]
        counts_N = (probs_NK.cumsum(-1) < self.settings.top_p).sum(-1) + 1
        counts_N.clamp_(self.settings.effective_min_k, self.settings.top_k)
        dropped_NK = torch.arange(probs_NK.shape[1], device=counts_N.device) >= counts_N[:, None]
        dropped_probs_NK = probs_NK * dropped_NK
        tail_N = rest_N / total_N + dropped_probs_NK.sum(-1)
        tail_V += (1 / total_N) @ rest_NV
        tail_V.index_add_(0, ids_NK.flatten(), dropped_probs_NK.flatten().double())
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
