"""Work ahead in threads: the order, the errors, and the cores that each thread computes on."""

from collections.abc import Iterator
from threading import Thread

import pytest
import torch

from stages.shared.prefetch import map_batches, prefetch

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def counts(items: int, seen: set[int]) -> Iterator[int]:
    for number in range(items):
        seen.add(torch.get_num_threads())
        yield number


def test_items_are_made_on_one_core_and_nobody_else_is_held_to_it(two_threads):
    made: set[int] = set()
    numbers = prefetch(counts(5, made))
    assert next(numbers) == 0
    assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)
    assert list(numbers) == [1, 2, 3, 4]
    assert made == {1}


def test_batches_share_the_cores_that_prefetch_left_alone(two_threads):
    made: set[int] = set()
    mapped = list(map_batches(lambda number: (number, torch.get_num_threads()), prefetch(counts(6, made)), CPU))
    assert mapped == [(number, 1) for number in range(6)]
    assert made == {1}
    assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)


def test_an_error_comes_where_its_item_would():
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("the third")

    numbers = prefetch(items())
    assert [next(numbers), next(numbers)] == [1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(numbers)
