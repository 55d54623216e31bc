"""Work ahead in a thread: reading, decoding and log-mel overlap the model."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, up to `depth` of them made ahead; an error arrives where its item would."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as worker:
        ahead: deque[Any] = deque(worker.submit(next, iterator, _END) for _ in range(depth))
        try:
            while (item := ahead.popleft().result()) is not _END:
                ahead.append(worker.submit(next, iterator, _END))
                yield item
        finally:
            for future in ahead:
                future.cancel()
