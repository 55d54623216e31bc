"""Work ahead in threads: reading, decoding and log-mel overlap the model, and batches each other."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_END = object()
MOST_WORKERS = 8  # each holds a batch in memory


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, up to `depth` of them made ahead; an error arrives where its item would.

    They are made on one core: a small tensor that waits for its share of cores which the model keeps busy takes longer.
    """
    iterator, cores = iter(items), torch.get_num_threads()
    with ThreadPoolExecutor(1) as worker:
        worker.submit(_use_one_core).result()
        torch.set_num_threads(cores)  # for the threads to come: they begin with what was set last
        ahead: deque[Any] = deque(worker.submit(next, iterator, _END) for _ in range(depth))
        try:
            while (item := ahead.popleft().result()) is not _END:
                ahead.append(worker.submit(next, iterator, _END))
                yield item
        finally:
            for future in ahead:
                future.cancel()


def _use_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # from its first use on a thread's number is its own


def map_batches(function: Callable[[T], R], items: Iterable[T], device: torch.device) -> Iterator[R]:
    """`function` of each item, in order. On a CPU several at once, each on its own cores.

    A result then does not depend on how many cores shared the sums behind it (up to MOST_WORKERS cores).
    Raises what `function` raises, where its result would come.
    """
    cores = torch.get_num_threads()
    workers = min(cores, MOST_WORKERS) if device.type == "cpu" else 1
    threads = max(1, cores // workers) if device.type == "cpu" else cores
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        running: deque[Any] = deque()
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
            torch.set_num_threads(cores)  # a pool's threads set it for those that come after them, too
