"""Weighs the tokens of the teacher's own words by how sure the teacher is of them. A transcript's tokens weigh 1.

The weights are of the cross-entropy alone: the distillation loss already holds the teacher's doubt. They follow from what
the cache holds: at each position the probabilities of the kept tokens, and one mass for all others.
"""

# Shapes: T target positions of a record, M its kept tokens at all T together.

from typing import Any, Literal

import numpy as np

from cache.distributions import entropies, stored_log_probs
from cache.records import TEACHER

TokenWeights = Literal["none", "probability", "entropy"]


def weigh_tokens(record: dict[str, Any], bits: int, by: TokenWeights) -> np.ndarray:
    """Returns the weight of each target token, (T,) float32 within 0 to 1."""
    if by == "none" or record["target_source"] != TEACHER:
        return np.ones(len(record["targets"]), np.float32)
    weights_T = target_probabilities(record, bits) if by == "probability" else np.exp(-entropies(record, bits))
    return np.clip(weights_T, 0, 1).astype(np.float32)


def target_probabilities(record: dict[str, Any], bits: int) -> np.ndarray:
    """Returns the teacher's probability of each target, (T,).

    A target that was not kept gets the upper bound: it is at most as likely as the least likely kept token, and as all
    that were not kept together.
    """
    counts_T = record["top_counts"].astype(np.int64)
    position_M = np.repeat(np.arange(len(counts_T)), counts_T)
    probs_M = np.exp(stored_log_probs(record["top_probs"], bits), dtype=np.float64)
    probs_T = np.exp(record["tail_log_probs"], dtype=np.float64)
    np.minimum.at(probs_T, position_M, probs_M)
    is_target_M = record["top_ids"] == np.asarray(record["targets"])[position_M]
    probs_T[position_M[is_target_M]] = probs_M[is_target_M]
    return probs_T
