"""Chooses a part of a split in whole groups. It depends on the groups' names and sizes alone, so that any two choices agree."""

import hashlib
from collections import Counter
from collections.abc import Iterable


def choose_groups(groups: Iterable[str], fraction: float) -> set[str]:
    """Chooses whole groups until they hold `fraction` of the utterances. groups: the group of each utterance."""
    sizes = Counter(groups)
    wanted, chosen, taken = fraction * sizes.total(), set(), 0
    for group in by_hash(sizes):
        if taken < wanted:
            chosen.add(group)
            taken += sizes[group]
    return chosen


def by_hash(groups: Iterable[str]) -> list[str]:
    """Returns the groups in an order that depends on their names alone."""
    return sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
