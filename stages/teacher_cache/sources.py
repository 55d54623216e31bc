"""Decides for each utterance whether its targets are the transcript or the teacher's own words."""

from dataclasses import dataclass
from typing import Any

from cache.records import TEACHER, TRANSCRIPT
from cache.shards import ShardReader
from stages.shared.subset import choose_groups
from stages.shared.whisper.targets import reason_against_transcript
from stages.teacher_cache.job import ScoringJob


@dataclass(frozen=True)
class TargetSources:
    """targets: the setting. groups: those whose transcripts are used; None: all."""

    targets: str
    groups: frozenset[str] | None = None

    def of(self, utterance: dict[str, Any]) -> str:
        """Returns TRANSCRIPT or TEACHER."""
        if self.targets != "mixed":
            return TRANSCRIPT if self.targets == "reference" else TEACHER
        used = self.groups is None or utterance["group"] in self.groups
        return TRANSCRIPT if utterance["text"] and used else TEACHER


def target_sources(job: ScoringJob, utterances: ShardReader) -> TargetSources:
    """Chooses the groups whose transcripts are used, by `transcribed_fraction`.

    It chooses as `train.train_fraction` does for a student without a teacher, among the transcripts that the student can
    be trained on: at equal fractions both have the same transcripts.
    """
    settings = job.settings
    if settings.transcribed_fraction == 1:
        return TargetSources(settings.targets)
    groups = [
        row["group"]
        for row in utterances.records(only=("id", "text", "seconds", "group"))
        if not reason_against_transcript(job.student_form, job.student_room, row)
    ]
    return TargetSources(settings.targets, frozenset(choose_groups(groups, settings.transcribed_fraction)))
