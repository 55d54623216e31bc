"""Finds the utterances that changed most between the base model and a student, for the better and for the worse."""

from dataclasses import dataclass
from typing import Any

from stages.report.comparison import Comparison, Line
from stages.report.lead import Lead
from stages.report.results import is_baseline

PER_SIDE = 5
LONGEST = 300  # characters shown: a model in a loop writes thousands


@dataclass(frozen=True)
class Example:
    id: str
    length: int
    reference: str
    base: str
    base_errors: int
    student: str
    student_errors: int


@dataclass(frozen=True)
class Examples:
    base: str
    student: str
    lead: Lead
    better: list[Example]
    worse: list[Example]
    changed: tuple[int, int, int]  # number of utterances with fewer, equal, more errors than the base


def examples(comparison: Comparison) -> Examples | None:
    """Returns examples of the student with the lowest rate. None: there is no student, or there are no utterances to show."""
    base, student = comparison.line("base"), _best_student(comparison)
    if not base or not student or not base.result.rows or not student.result.rows:
        return None
    by_id = {row["id"]: row for row in student.result.rows}
    pairs = [_example(row, by_id[row["id"]], comparison.lead) for row in base.result.rows if row["id"] in by_id]
    pairs.sort(key=lambda pair: (pair.student_errors - pair.base_errors, pair.id))
    better = [pair for pair in pairs if pair.student_errors < pair.base_errors]
    worse = [pair for pair in reversed(pairs) if pair.student_errors > pair.base_errors]
    changed = (len(better), len(pairs) - len(better) - len(worse), len(worse))
    names = base.result.name, student.result.name
    return Examples(*names, comparison.lead, better[:PER_SIDE], worse[:PER_SIDE], changed)


def _best_student(comparison: Comparison) -> Line | None:
    untrained = [line for line in comparison.lines if is_baseline(line.result.metrics.system)]
    trained = [line for line in comparison.lines if line not in untrained and line.result.metrics.system != "teacher"]
    return min(trained, key=lambda line: comparison.lead.of(line.result.metrics), default=None)


def _example(base: dict[str, Any], student: dict[str, Any], lead: Lead) -> Example:
    return Example(
        id=base["id"],
        length=base[lead.lengths],
        reference=_shortened(base["reference"]),
        base=_shortened(base["hypothesis"]),
        base_errors=base[lead.errors],
        student=_shortened(student["hypothesis"]),
        student_errors=student[lead.errors],
    )


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters in all)"
