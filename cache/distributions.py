"""How a teacher's distribution is kept: per position a few tokens with rounded probabilities, and the mass of the rest.

A probability p is stored as the whole number nearest to p^(1/4) * (2^bits - 1), at least 1. Of six scales tried on real
distributions (p, p^(1/2), p^(1/3), p^(1/4), log p and float16) this one lost least at equal bits.
"""

from typing import Any

import numpy as np

from cache.errors import PipelineError

POWER = 4


def levels(bits: int) -> int:
    """The highest code."""
    return 2**bits - 1


def quantise(probs: np.ndarray, bits: int) -> np.ndarray:
    """Probabilities -> uint8 codes of the same shape."""
    codes = np.rint(np.asarray(probs, np.float64) ** (1 / POWER) * levels(bits))
    return np.clip(codes, 1, levels(bits)).astype(np.uint8)


def stored_log_probs(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes -> float32 natural logarithms of the probabilities that they stand for."""
    table = np.full(256, -np.inf, np.float32)
    table[1:] = POWER * (np.log(np.arange(1, 256)) - np.log(levels(bits)))
    return table[codes]


def check_distributions(record: dict[str, Any], settings: dict[str, Any], where: str) -> None:
    """Raises PipelineError where the arrays of a teacher record contradict each other or the cache's settings."""
    counts, ids, codes = record["top_counts"], record["top_ids"], record["top_probs"]
    positions, vocab_size, bits = len(record["targets"]), settings["vocab_size"], settings["bits"]
    found = {
        f"{len(counts)} top_counts for {positions} targets": len(counts) != positions,
        f"{len(record['tail_log_probs'])} tail_log_probs for {positions} targets": len(record["tail_log_probs"])
        != positions,
        f"{len(ids)} top_ids, top_counts sum to {int(counts.sum(dtype=np.int64))}": len(ids)
        != counts.sum(dtype=np.int64),
        f"{len(codes)} top_probs for {len(ids)} top_ids": len(codes) != len(ids),
        f"a token id of {vocab_size} or more": max(_highest(ids), _highest(record["targets"])) >= vocab_size,
        f"a top_probs outside 1-{levels(bits)}": bool(len(codes))
        and not 1 <= codes.min() <= codes.max() <= levels(bits),
        "a tail_log_probs above 0 or not a number": not np.all(record["tail_log_probs"] <= 1e-3),
    }
    if wrong := [text for text, is_so in found.items() if is_so]:
        raise PipelineError(f"{where}: {'; '.join(wrong)}: the shard is damaged, or not one of this cache")


def _highest(ids: np.ndarray) -> int:
    return int(ids.max()) if len(ids) else -1
