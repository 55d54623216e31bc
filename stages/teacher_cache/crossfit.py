"""Scores each utterance by the teacher that was not trained on it: one teacher for each fold of the split."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.errors import PipelineError
from cache.resume import differences
from cache.shards import ShardReader
from stages.shared.subset import assign_folds, groups_of
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.shard import ReportProgress, ScoredShard, ShardScorer
from stages.teacher_cache.sources import target_sources

OF_EACH = ("teacher", "teacher_weights")  # what the provenance names of each teacher


@dataclass(frozen=True)
class CrossFit:
    """The job of several teachers. jobs: that of fold 1 first. Without folds there is one job."""

    jobs: tuple[ScoringJob, ...]

    @property
    def settings(self) -> TeacherCacheSettings:
        return self.jobs[0].settings

    def provenance(self, utterances: ShardReader) -> dict[str, Any]:
        """Returns that of the one job. Of several, `teacher` and `teacher_weights` are lists, by fold.

        Raises PipelineError where the teachers differ in anything else.
        """
        first, *others = (job.provenance(utterances) for job in self.jobs)
        if not others:
            return first
        for other in others:
            common = [{name: value for name, value in one.items() if name not in OF_EACH} for one in (first, other)]
            if differing := differences(*common):
                raise PipelineError(
                    f"{first['teacher']} and {other['teacher']}: the folds' teachers differ ({differing})"
                )
        return {**first, **{name: [one[name] for one in (first, *others)] for name in OF_EACH}}

    def place(self) -> None:
        """Moves the models to their device."""
        for job in self.jobs:
            job.teacher.model.to(job.device)

    def scorer(self, utterances: ShardReader) -> "ShardScorer | FoldScorer":
        sources = target_sources(self.jobs[0], utterances)
        scorers = [ShardScorer(job, sources) for job in self.jobs]
        return scorers[0] if len(scorers) == 1 else FoldScorer(scorers, utterances)


class FoldScorer:
    """Scores shards as a ShardScorer does, each utterance by the scorer of its fold."""

    def __init__(self, scorers: list[ShardScorer], utterances: ShardReader):
        self.scorers, self.folds = scorers, assign_folds(groups_of(utterances), len(scorers))

    def run(self, shards: Iterable[tuple[int, list[dict]]], report_progress: ReportProgress) -> Iterator[ScoredShard]:
        for index, utterances in shards:
            parts: list[ScoredShard] = []
            for fold, scorer in enumerate(self.scorers, 1):
                own = [row for row in utterances if self.folds[row["group"]] == fold]
                parts += scorer.run([(index, own)], report_progress) if own else []
            yield _joined(index, utterances, parts)


def _joined(index: int, utterances: list[dict], parts: list[ScoredShard]) -> ScoredShard:
    """Returns the shard of all parts, in the order of its utterances."""
    records = {record["id"]: record for part in parts for record in part.records}
    left_out = {row["id"]: row for part in parts for row in part.left_out}
    ids = [row["id"] for row in utterances]
    tail_V = np.stack([part.tail_V for part in parts]).sum(0)
    return ScoredShard(
        index,
        [records[name] for name in ids],
        [left_out[name] for name in ids if name in left_out],
        tail_V,
        min(part.batch_size for part in parts),
    )
