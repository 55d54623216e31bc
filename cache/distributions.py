"""Stores a teacher's distribution: a few tokens per position with rounded probabilities, and the mass of the rest.

A probability p is stored as the whole number nearest to p^(1/4) * (2^bits - 1), at least 1. Six scales were tried on
real distributions: p, p^(1/2), p^(1/3), p^(1/4), log p and float16. This one lost least at equal bits.
"""

from typing import Any

import numpy as np

from cache.errors import PipelineError

# Shapes: N target positions of a record, M its kept tokens

POWER = 4
SUM_TOLERANCE = 1e-4  # error of float32 sums over a vocabulary, in addition to the rounding of the codes


def levels(bits: int) -> int:
    """Returns the highest code of `bits` bits."""
    return 2**bits - 1


def quantise(probs: np.ndarray, bits: int) -> np.ndarray:
    """Turns probabilities into uint8 codes of the same shape."""
    codes = np.rint(np.asarray(probs, np.float64) ** (1 / POWER) * levels(bits))
    return np.clip(codes, 1, levels(bits)).astype(np.uint8)


def stored_log_probs(codes: np.ndarray, bits: int) -> np.ndarray:
    """Turns codes into natural log-probabilities, float32 of the same shape."""
    table = np.full(256, -np.inf, np.float32)
    table[1:] = POWER * (np.log(np.arange(1, 256)) - np.log(levels(bits)))
    return table[codes]


def check_distributions(record: dict[str, Any], provenance: dict[str, Any], where: str) -> None:
    """Raises PipelineError where the arrays of a teacher record contradict each other or the cache's provenance."""
    counts, ids, codes = record["top_counts"], record["top_ids"], record["top_probs"]
    positions = len(record["targets"])
    vocab_size = bounded(provenance, "vocab_size", 1, 1 << 16, where)
    bits = bounded(provenance, "bits", 1, 8, where)
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


def bounded(provenance: dict[str, Any], name: str, least: int, most: int, where: str) -> int:
    """Returns the setting `name` of a manifest. Raises PipelineError where it is not a whole number from `least` to `most`."""
    value = provenance.get(name)
    if type(value) is not int or not least <= value <= most:
        raise PipelineError(f"{where}: the setting {name} is {value!r}, expected a number from {least} to {most}")
    return value


def mass_faults(record: dict[str, Any], bits: int, top_k: int) -> list[str]:
    """Lists what no distribution can have, and at how many positions. `check_distributions` must have passed the record."""
    counts, codes = record["top_counts"].astype(np.int64), record["top_probs"].astype(np.int64)
    position_M = np.repeat(np.arange(len(counts)), counts)
    following = position_M[1:] == position_M[:-1]
    keys_M = np.sort(position_M << 16 | record["top_ids"])
    least_M, most_M = _range_of(codes, bits)
    tail_N = np.exp(record["tail_log_probs"], dtype=np.float64)
    least_N, most_N = (np.bincount(position_M, mass, len(counts)) + tail_N for mass in (least_M, most_M))
    found = {
        "no kept token": np.flatnonzero(counts == 0),
        f"more kept tokens than top_k, {top_k}": np.flatnonzero(counts > top_k),
        "probabilities that rise, expected the most likely first": position_M[1:][following & (np.diff(codes) > 0)],
        "a token that is kept twice": keys_M[1:][np.diff(keys_M) == 0] >> 16,
        "probabilities that sum to less than 1": np.flatnonzero(most_N < 1 - SUM_TOLERANCE),
        "probabilities that sum to more than 1": np.flatnonzero(least_N > 1 + SUM_TOLERANCE),
    }
    return [
        f"{text}, at {len(np.unique(where))} of {len(counts)} positions, the first at {where[0]}"
        for text, where in found.items()
        if len(where)
    ]


def _range_of(codes: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least and the greatest probability that is rounded to each code. Code 1 also stands for all smaller ones."""
    least = np.where(codes > 1, (codes - 0.5) / levels(bits), 0.0)
    return least**POWER, np.minimum((codes + 0.5) / levels(bits), 1.0) ** POWER


def entropies(record: dict[str, Any], bits: int) -> np.ndarray:
    """Returns each position's entropy, (N,) in nats, over its kept tokens and the mass of the rest, scaled to sum to one."""
    counts = record["top_counts"]
    position_M = np.repeat(np.arange(len(counts)), counts)
    log_M = stored_log_probs(record["top_probs"], bits).astype(np.float64)
    log_N = record["tail_log_probs"].astype(np.float64)
    p_M, p_N = np.exp(log_M), np.exp(log_N)
    total_N = np.bincount(position_M, p_M, len(counts)) + p_N
    rest_N = p_N * np.where(p_N > 0, log_N, 0.0)
    total_N = np.maximum(total_N, np.finfo(np.float64).tiny)  # a damaged record may hold no mass at all
    return np.log(total_N) - (np.bincount(position_M, p_M * log_M, len(counts)) + rest_N) / total_N


def _highest(ids: np.ndarray) -> int:
    return int(ids.max()) if len(ids) else -1
