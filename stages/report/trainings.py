"""Tells how the systems of a language were trained: on what, how long, and by which settings that are not the paper's."""

from stages.report.published import changes
from stages.report.runs import Runs
from stages.report.tables import NONE, Table, percent
from stages.shared.facts import Training
from stages.shared.methods import METHODS, without_teacher

COLUMNS = ["System", "Other settings than the paper's", "Transcripts", "Words of the teacher", "Steps (best)"]


def trainings_table(names: dict[str, str], language: str, runs: Runs) -> Table | None:
    """Makes one row for each system that was trained. None: there is none.

    names: of the systems for readers, by system. language: the language's folder among the models.
    """
    found = {name: run for system, name in names.items() if (run := runs.get((language, system)))}
    rows = [_row(name, run) for name, run in found.items()]
    return Table([*COLUMNS, "Best validation WER %"], rows, text=2) if rows else None


def training_notes(names: dict[str, str], language: str, runs: Runs) -> list[str]:
    """Names the systems whose counts are of several languages, and twins with and without a teacher that differ in more.

    See `trainings_table` for the arguments.
    """
    found = {system: run for system in names if (run := runs.get((language, system)))}
    together = [
        f"{names[system]} was trained on {', '.join(run.data)} together: its counts are of all of them."
        for system, run in found.items()
        if len(run.data) > 1
    ]
    twins = [(one, other.name) for one in found if one in METHODS and (other := without_teacher(METHODS[one]))]
    return together + [
        f"{names[one]} was trained on {_transcripts(found[one]):,} transcripts, {names[other]} on "
        f"{_transcripts(found[other]):,}: the difference between them is not the teacher's alone."
        for one, other in twins
        if other in found and _transcripts(found[one]) != _transcripts(found[other])
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
