"""Finds the utterances that changed most between the base model and a student, for the better and for the worse."""

from dataclasses import dataclass
from typing import Any

from stages.report.comparison import Comparison, Line
from stages.report.lead import Lead
from stages.report.marks import Mark, marks
from stages.report.recordings import Recordings
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
    base_marks: list[Mark]
    student: str
    student_errors: int
    student_marks: list[Mark]
    audio: str  # relative to the page; "" where it is not beside it


@dataclass(frozen=True)
class Examples:
    base: str
    student: str
    lead: Lead
    better: list[Example]
    worse: list[Example]
    changed: tuple[int, int, int]  # number of utterances with fewer, equal, more errors than the base


def examples(comparison: Comparison, recordings: Recordings) -> Examples | None:
    """Returns examples of the student with the lowest rate. None: there is no student, or there are no utterances to show."""
    base, student = comparison.line("base"), _best_student(comparison)
    if not base or not student or not base.result.rows or not student.result.rows:
        return None
    by_id = {row["id"]: row for row in student.result.rows}
    errors = comparison.lead.errors
    pairs = [(row, by_id[row["id"]]) for row in base.result.rows if row["id"] in by_id]
    pairs.sort(key=lambda pair: (pair[1][errors] - pair[0][errors], pair[0]["id"]))
    better = [pair for pair in pairs if pair[1][errors] < pair[0][errors]]
    worse = [pair for pair in reversed(pairs) if pair[1][errors] > pair[0][errors]]
    changed = (len(better), len(pairs) - len(better) - len(worse), len(worse))
    return Examples(
        base=base.result.name,
        student=student.result.name,
        lead=comparison.lead,
        better=[_example(a, b, comparison, recordings) for a, b in better[:PER_SIDE]],
        worse=[_example(a, b, comparison, recordings) for a, b in worse[:PER_SIDE]],
        changed=changed,
    )


def compared(comparison: Comparison) -> tuple[Line, Line]:
    """Returns the two systems that the explorer compares at first: the base and the best student, where there are such."""
    scored, (base, student) = comparison.scored, (comparison.line("base"), _best_student(comparison))
    return base if base in scored else scored[0], student if student in scored else scored[-1]


def _best_student(comparison: Comparison) -> Line | None:
    untrained = [line for line in comparison.lines if is_baseline(line.result.metrics.system)]
    trained = [line for line in comparison.lines if line not in untrained and line.result.metrics.system != "teacher"]
    return min(trained, key=lambda line: comparison.lead.of(line.result.metrics), default=None)


def _example(base: dict[str, Any], student: dict[str, Any], comparison: Comparison, recordings: Recordings) -> Example:
    lead, file = comparison.lead, recordings.files.get(base["id"])
    return Example(
        id=base["id"],
        length=base[lead.lengths],
        reference=_shortened(base["reference"]),
        base=_shortened(base["hypothesis"]),
        base_errors=base[lead.errors],
        base_marks=marks(base["reference"], base["hypothesis"], comparison.language),
        student=_shortened(student["hypothesis"]),
        student_errors=student[lead.errors],
        student_marks=marks(student["reference"], student["hypothesis"], comparison.language),
        audio=f"audio/{comparison.name}/{file}" if file else "",
    )


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters in all)"
