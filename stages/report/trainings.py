"""Tells how the systems of a language were trained: on what, how long, and by which settings that are not the paper's."""

from stages.report.published import changes
from stages.report.runs import Runs
from stages.report.tables import NONE, Table, percent
from stages.shared.facts import Training

COLUMNS = ["System", "Other settings than the paper's", "Transcripts", "Words of the teacher", "Steps (best)"]


def trainings_table(names: dict[str, str], language: str, runs: Runs) -> Table | None:
    """Makes one row for each system that was trained. None: there is none.

    names: of the systems for readers, by system. language: the language's folder among the models.
    """
    found = {name: run for system, name in names.items() if (run := runs.get((language, system)))}
    rows = [_row(name, run) for name, run in found.items()]
    return Table([*COLUMNS, "Best validation WER %"], rows, text=2) if rows else None


def together_notes(names: dict[str, str], language: str, runs: Runs) -> list[str]:
    """Names the systems whose counts are of several languages."""
    found = [(name, run) for system, name in names.items() if (run := runs.get((language, system)))]
    return [
        f"{name} was trained on {', '.join(run.data)} together: its counts are of all of them."
        for name, run in found
        if len(run.data) > 1
    ]


def _row(name: str, run: Training) -> list[str]:
    return [
        name,
        ", ".join(changes(run)) or NONE,
        f"{run.training_utterances - run.teacher_targets:,}",
        f"{run.teacher_targets:,}",
        f"{run.steps:,} ({run.best_step:,})",
        percent(run.best_validation_wer),
    ]
