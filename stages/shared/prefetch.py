"""Works ahead in threads: reading, decoding and log-mel overlap with the model, and batches with each other."""

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
    """Yields the same items in the same order, with up to `depth` of them made ahead. An error is raised in its item's place.

    Items are made on one core: with more, small tensors wait for cores that the model keeps busy, which takes longer.
    """
    iterator, cores = iter(items), torch.get_num_threads()
    with ThreadPoolExecutor(1) as worker:
        worker.submit(_use_one_core).result()
        torch.set_num_threads(cores)  # new threads begin with the number that was set last
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
    torch.get_num_threads()  # from its first use on the number belongs to this thread alone


def map_batches(function: Callable[[T], R], items: Iterable[T], device: torch.device) -> Iterator[R]:
    """Yields `function(item)` for each item, in order. On a CPU several run at once, each on its own cores.

    Therefore a result does not depend on how many cores shared its sums (up to MOST_WORKERS cores).
    An error of `function` is raised in its result's place.
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
            torch.set_num_threads(cores)  # the pool's threads have also set it for later threads
