"""The teacher's distribution at every target position, teacher-forced on the transcript."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from transformers import WhisperForConditionalGeneration

from stages.whisper.targets import target_positions


@dataclass(frozen=True)
class Batch:
    """Clips of one forward pass: B clips, T = the most targets of any, P = prompt length."""

    rows: list[int]  # of the shard
    features: torch.Tensor  # (B, mels, frames)
    decoder_input_ids: torch.Tensor  # (B, P+T-1)
    targets: list[list[int]]  # each (T_i,)


@torch.inference_mode()
def score(
    model: WhisperForConditionalGeneration, batch: Batch, prompt: list[int], top_k: int, dtype: torch.dtype
) -> list[dict[str, np.ndarray]]:
    """For each clip `top_ids` (T*K,), `top_log_probs` (T*K,) and `tail_log_probs` (T,).

    The decoder runs in `dtype`; logits and softmax are float32, since bf16 logits tie every third pair of neighbours.
    """
    device = model.device
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        inputs = batch.features.to(device), batch.decoder_input_ids.to(device)
        hidden_BTD = model.model(inputs[0], decoder_input_ids=inputs[1], use_cache=False).last_hidden_state
    rows, columns = target_positions(prompt, batch.targets)
    logits_NV = F.linear(hidden_BTD[rows, columns].float(), model.proj_out.weight.float())
    total_N = logits_NV.logsumexp(-1)
    top_NK = logits_NV.topk(top_k, dim=-1)
    # the mass outside the top k, summed as such: one minus the rounded rest would be noise where it is small
    tail_N = logits_NV.scatter_(-1, top_NK.indices, -torch.inf).logsumexp(-1) - total_N
    values: dict[str, np.ndarray] = {
        "top_ids": top_NK.indices.cpu().numpy().astype(np.uint16),
        "top_log_probs": (top_NK.values - total_N[:, None]).cpu().numpy().astype(np.float16),
        "tail_log_probs": tail_N.cpu().numpy().astype(np.float32),
    }
    ends = np.cumsum([len(ids) for ids in batch.targets])
    parts = {name: np.split(array, ends[:-1]) for name, array in values.items()}
    return [{name: parts[name][clip].reshape(-1) for name in parts} for clip in range(len(batch.targets))]
