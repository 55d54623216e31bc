"""Says in one line of plain words what the numbers show."""

from stages.report.difference import Difference, difference
from stages.report.lead import Lead
from stages.report.results import Result, is_baseline
from stages.shared.methods import METHODS, without_teacher

# The verdict is about the first of them that was measured, best or not: a taught one, where there is one.
LAST_FIRST = list(reversed(METHODS))
STUDENTS = sorted(LAST_FIRST, key=lambda name: not METHODS[name].needs_teacher)


def verdict(results: dict[str, Result], versus_base: dict[str, Difference], lead: Lead, resamples: int) -> str:
    """Returns the verdict. Keys of `results` and `versus_base` are systems.

    A student is held against the best of the base and the further baselines: in a short window a base is worse than it is.
    """
    base = results.get("base")
    student = next((results[system] for system in STUDENTS if system in results), None)
    if base is None or student is None:
        return _not_yet(results, lead)
    best = min((r for name, r in results.items() if is_baseline(name)), key=lambda r: lead.of(r.metrics))
    change = versus_base[student.metrics.system] if best is base else difference(student, best, lead, resamples)
    parts = [_against_base(student.name, best.name, change, lead)]
    untaught = without_teacher(METHODS[student.metrics.system])
    if untaught and (plain := results.get(untaught.name)):
        parts.append(_against_plain(plain.name, difference(student, plain, lead, resamples)))
    parts += _better_rival(student, results, lead)
    return "; ".join(parts) + "."


def _not_yet(results: dict[str, Result], lead: Lead) -> str:
    missing = "no student" if "base" in results else "no base model"
    measured = ", ".join(f"{result.name} {100 * lead.of(result.metrics):.1f} %" for result in results.values())
    return f"Nothing to compare yet: there is {missing} among the results. {lead.name}: {measured}."


def _against_base(student: str, base: str, change: Difference, lead: Lead) -> str:
    size = f"{100 * abs(change.value):.1f} points of {lead.name}"
    where = "below" if change.value <= 0 else "above"
    if change.includes_zero:
        return f"No clear difference between {student} and {base}: {student} is {size} {where} ({_span(change)})"
    return f"{student} is {'worse: ' if change.value > 0 else ''}{size} {where} {base} ({_span(change)})"


def _against_plain(plain: str, change: Difference) -> str:
    size = f"{100 * abs(change.value):.1f} points"
    if change.includes_zero:
        return (
            f"not clearly different from {plain} ({size} {'lower' if change.value <= 0 else 'higher'}, {_span(change)})"
        )
    return f"{'better' if change.value <= 0 else 'worse'} than {plain} by {size} ({_span(change)})"


def _span(change: Difference) -> str:
    """Formats the interval with the sign of `abs(value)`: that of a gain is in points gained."""
    if change.interval is None:
        return "no interval, see the notes"
    sign = -1 if change.value <= 0 else 1
    low, high = sorted(100 * sign * bound + 0.0 for bound in change.interval)
    return f"95 % interval {low:.1f} to {high:.1f}" + (", which includes zero" if change.includes_zero else "")


def _better_rival(student: Result, results: dict[str, Result], lead: Lead) -> list[str]:
    """Names the best of the methods that train other weights, where it did better: a reader need not find it in the table."""
    trains = METHODS[student.metrics.system].trains
    rivals = [results[name] for name, method in METHODS.items() if method.trains != trains and name in results]
    best = min(rivals, key=lambda result: lead.of(result.metrics), default=student)
    lowest, own = lead.of(best.metrics), lead.of(student.metrics)
    return [f"{best.name} does better, {100 * lowest:.1f} % against {100 * own:.1f} %"] if lowest < own else []
