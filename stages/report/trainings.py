"""Tells how the systems of a language were trained: on what, how long, and by which settings that are not the paper's.

trained: the trainings by system. names: of the systems for readers, by system.
"""

from collections.abc import Mapping

from stages.report.published import changes
from stages.report.tables import NONE, Table, percent
from stages.shared.facts import Training
from stages.shared.methods import METHODS, without_teacher

COLUMNS = ["System", "Other settings than the paper's", "Transcripts", "Words of the teacher", "Steps (best)"]


def trainings_table(trained: Mapping[str, Training], names: Mapping[str, str]) -> Table | None:
    """Makes one row for each system that was trained. None: there is none."""
    rows = [_row(names[system], run) for system, run in trained.items()]
    return Table([*COLUMNS, "Best validation WER %"], rows, text=2) if rows else None


def training_notes(trained: Mapping[str, Training], names: Mapping[str, str]) -> list[str]:
    """Names the systems whose counts are of several languages, and twins with and without a teacher that differ in more."""
    together = [
        f"{names[system]} was trained on {', '.join(run.data)} together: its counts are of all of them."
        for system, run in trained.items()
        if len(run.data) > 1
    ]
    twins = [(one, other.name) for one in trained if one in METHODS and (other := without_teacher(METHODS[one]))]
    return together + [
        f"{names[one]} was trained on {_transcripts(trained[one]):,} transcripts, {names[other]} on "
        f"{_transcripts(trained[other]):,}: the difference between them is not the teacher's alone."
        for one, other in twins
        if other in trained and _transcripts(trained[one]) != _transcripts(trained[other])
    ]


def _transcripts(run: Training) -> int:
    return run.training_utterances - run.teacher_targets


def _row(name: str, run: Training) -> list[str]:
    return [
        name,
        ", ".join(changes(run)) or NONE,
        f"{_transcripts(run):,}",
        f"{run.teacher_targets:,}",
        f"{run.steps:,} ({run.best_step:,})",
        percent(run.best_validation_wer),
    ]
