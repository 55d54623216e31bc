"""The order in which samples are read: a pure function of the shards' sizes, a seed and the epoch."""

import numpy as np

SHARDS_AT_ONCE = 4


def epoch_order(rows: list[int], seed: int, epoch: int, shards_at_once: int = SHARDS_AT_ONCE) -> list[tuple[int, int]]:
    """Every (shard, row) once, shuffled: the shards among each other, then the rows of `shards_at_once` shards together.

    A reader therefore never needs more than `shards_at_once` shards in memory, and can begin anywhere in the list.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    shards = random.permutation(len(rows))
    order: list[tuple[int, int]] = []
    for start in range(0, len(shards), shards_at_once):
        window = [(int(shard), row) for shard in shards[start : start + shards_at_once] for row in range(rows[shard])]
        order += [window[position] for position in random.permutation(len(window))]
    return order
