"""The order in which samples are read. It is a pure function of the shards' sizes, a seed and the epoch."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

T = TypeVar("T")

SHARDS_AT_ONCE = 4


def epoch_order(rows: list[int], seed: int, epoch: int, shards_at_once: int = SHARDS_AT_ONCE) -> list[tuple[int, int]]:
    """Returns every (shard, row) once, shuffled: first the shards, then the rows of each `shards_at_once` shards together.

    A reader therefore needs at most `shards_at_once` shards in memory, and can begin anywhere in the list.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    shards = random.permutation(len(rows))
    order: list[tuple[int, int]] = []
    for start in range(0, len(shards), shards_at_once):
        window = [(int(shard), row) for shard in shards[start : start + shards_at_once] for row in range(rows[shard])]
        order += [window[position] for position in random.permutation(len(window))]
    return order


def samples(
    load: Callable[[int], list[T]],
    rows: list[int],
    seed: int,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[T]:
    """Yields the epoch's samples from number `start` on; reader `rank` of `world` readers takes each `world`-th.

    load: returns a shard's samples, as many as `rows` says.
    start: counts the samples of all readers together. A run can therefore resume at any sample with another number of
    readers: together they read each sample of the epoch exactly once.
    """
    loaded: dict[int, list[T]] = {}
    for shard, row in epoch_order(rows, seed, epoch)[start + rank :: world]:
        if shard not in loaded:
            if len(loaded) >= 2 * SHARDS_AT_ONCE:
                del loaded[next(iter(loaded))]
            loaded[shard] = load(shard)
        yield loaded[shard][row]
