"""Mixes the training data of several languages: every batch is drawn from all of them."""

# Shapes: V vocabulary.

from collections import Counter
from collections.abc import Iterator

import torch

from stages.train_student.batches import Batch, EpochPart, Row, read_batches
from stages.train_student.data import TrainingData


class Mixture:
    """Shuffles over all utterances of all `parts`, as if their shards lay in one folder."""

    def __init__(self, parts: list[TrainingData]):
        self.parts = parts
        self.shards = [(part, shard) for part in parts for shard in range(len(part.kept))]
        self.left_out = [{"language": part.language, **row} for part in parts for row in part.left_out]
        self.not_chosen = sum(part.not_chosen for part in parts)
        self.target_sources = sum((part.target_sources for part in parts), Counter[str]())
        self.tail_V = _mean_tail(parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def batches(
        self, batch_size: int, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch | None]:
        """Yields the batches of an epoch: see `read_batches`."""
        rows = [len(part.kept[shard]) for part, shard in self.shards]
        return read_batches(
            self._load, rows, self.parts[0].collate, batch_size, EpochPart(seed, epoch, start, rank, world)
        )

    def _load(self, number: int) -> list[Row]:
        part, shard = self.shards[number]
        return part.load(shard)


def _mean_tail(parts: list[TrainingData]) -> torch.Tensor | None:
    """Returns (V,): the mean of the caches' tails, weighted by utterances."""
    tails = [len(part) * part.tail_V for part in parts if part.tail_V is not None]
    return torch.stack(tails).sum(0) / sum(map(len, parts)) if tails else None
