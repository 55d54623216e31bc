"""The order of samples is a pure function of the shards' sizes, the seed and the epoch."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cache.order import epoch_order, samples

ROWS = st.lists(st.integers(0, 9), max_size=14)
SEEDS = st.integers(0, 2**40)


def everything(rows: list[int]) -> list[tuple[int, int]]:
    return [(shard, row) for shard, count in enumerate(rows) for row in range(count)]


@settings(max_examples=100, deadline=None)
@given(ROWS, SEEDS, st.integers(0, 10_000), st.integers(1, 6))
def test_every_row_comes_once(rows, seed, epoch, shards_at_once):
    order = epoch_order(rows, seed, epoch, shards_at_once)
    assert sorted(order) == everything(rows)
    assert order == epoch_order(list(rows), seed, epoch, shards_at_once)


@settings(max_examples=100, deadline=None)
@given(ROWS, SEEDS, st.integers(0, 100), st.integers(1, 6))
def test_a_reader_needs_only_a_window_of_shards(rows, seed, epoch, shards_at_once):
    """Between a shard's first row and its last no more than `shards_at_once` shards are begun and not ended."""
    order = epoch_order(rows, seed, epoch, shards_at_once)
    last = {shard: place for place, (shard, _) in enumerate(order)}
    open_shards: set[int] = set()
    for place, (shard, _) in enumerate(order):
        open_shards.add(shard)
        assert len(open_shards) <= shards_at_once
        if last[shard] == place:
            open_shards.remove(shard)


def test_golden_order():
    """Pinned: a run that is resumed on another machine, or with another version of numpy, must read the same rows."""
    expected = [(3, 1), (0, 0), (0, 2), (3, 0), (0, 1), (1, 0), (2, 0), (1, 1)]
    assert epoch_order([3, 2, 1, 2], seed=7, epoch=1, shards_at_once=2) == expected


def test_epochs_and_seeds_give_different_orders():
    orders = [tuple(epoch_order([8, 8, 8], seed, epoch)) for seed in range(6) for epoch in range(6)]
    assert len(set(orders)) == 36


def test_shards_and_rows_are_both_shuffled():
    """Each position of the list can hold each row: one third of the epochs begin in each of three shards."""
    first = [epoch_order([4, 4, 4], 0, epoch, 1)[0] for epoch in range(600)]
    counts = [sum(shard == wanted for shard, _ in first) for wanted in range(3)]
    assert min(counts) > 150
    assert {row for _, row in first} == {0, 1, 2, 3}
    assert any(rows != sorted(rows) for rows in ([r for _, r in epoch_order([9], 0, epoch)] for epoch in range(3)))


# Readers


@settings(max_examples=100, deadline=None)
@given(ROWS, SEEDS, st.data())
def test_readers_together_read_each_sample_once_however_often_their_number_changes(rows, seed, data):
    """An epoch in parts: each read by another number of readers, from where the part before ended."""
    seen: list[tuple[int, int]] = []
    while len(seen) < sum(rows):
        world = data.draw(st.integers(1, 5))
        stop = data.draw(st.integers(len(seen) + 1, sum(rows)))
        readers = [
            list(
                samples(
                    lambda shard: [(shard, row) for row in range(rows[shard])], rows, seed, 3, len(seen), rank, world
                )
            )
            for rank in range(world)
        ]
        rest = sum(rows) - len(seen)
        assert sorted(map(len, readers)) == sorted(len(range(rank, rest, world)) for rank in range(world))
        merged = [readers[place % world][place // world] for place in range(rest)]
        seen += merged[: stop - len(seen)]
    assert seen == epoch_order(rows, seed, 3)


def test_a_reader_holds_few_shards_and_loads_each_once():
    rows, loads = [3] * 40, []

    def load(shard: int) -> list[int]:
        loads.append(shard)
        return [shard] * 3

    assert sorted(samples(load, rows, 0, 0)) == sorted([shard for shard in range(40) for _ in range(3)])
    assert sorted(loads) == list(range(40))
