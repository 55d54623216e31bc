"""Chooses a part of a split in whole groups. It depends on the groups' names and sizes alone, so that any two choices agree."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from cache.errors import PipelineError
from cache.shards import ShardReader


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


@dataclass(frozen=True)
class Fold:
    """Part `number` (from 1) of `count` parts of a split, in whole groups."""

    number: int
    count: int

    def __post_init__(self) -> None:
        assert 1 <= self.number <= self.count

    def groups(self, utterances: ShardReader) -> set[str]:
        """Returns the groups of this part. Raises PipelineError where there are fewer groups than parts."""
        folds = assign_folds(groups_of(utterances), self.count)
        if len(folds) < self.count:
            raise PipelineError(
                f"{utterances.folder}: {len(folds)} groups, expected at least one for each of {self.count} folds: "
                "lower teacher.adapt.folds"
            )
        return {group for group, fold in folds.items() if fold == self.number}


def groups_of(utterances: ShardReader) -> list[str]:
    """Returns the group of each utterance."""
    return [row["group"] for row in utterances.records(only=("group",))]


def assign_folds(groups: Iterable[str], count: int) -> dict[str, int]:
    """Maps each group to the number of its fold, 1 to `count`. groups: the group of each utterance.

    Each group, in the order in which `choose_groups` takes them, goes to the fold that has the fewest utterances so far.
    So folds differ by no more than the largest group, and within any chosen fraction, too.
    """
    sizes = Counter(groups)
    filled = dict.fromkeys(range(1, count + 1), 0)
    folds = {}
    for group in by_hash(sizes):
        folds[group] = min(filled, key=lambda fold: filled[fold])
        filled[folds[group]] += sizes[group]
    return folds
