"""The difference between the rates of two systems, if the two can be compared."""

from dataclasses import dataclass

from stages.report.lead import Lead
from stages.report.results import Result, is_baseline
from stages.shared.layout import rows_path
from stages.shared.scoring import paired_interval


@dataclass(frozen=True)
class Difference:
    """A change of the leading rate, as a fraction: below zero is better. `reason` says why there is no interval."""

    value: float
    interval: tuple[float, float] | None
    reason: str = ""

    @property
    def includes_zero(self) -> bool:
        """False where there is no interval."""
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]


def difference(a: Result, b: Result, lead: Lead, resamples: int) -> Difference:
    """Returns the rate of `a` minus the rate of `b`."""
    if reason := not_comparable(a, b, lead):
        return Difference(lead.of(a.metrics) - lead.of(b.metrics), None, reason)
    assert a.rows and b.rows
    value, low, high = paired_interval(a.rows, b.rows, lead.rate, resamples)
    return Difference(value, (low, high))


def not_comparable(a: Result, b: Result, lead: Lead) -> str:
    """Returns why no paired interval can be computed, '' if it can."""
    windows = [] if has_own_window(a) or has_own_window(b) else [("audio window", *map(_window, (a, b)))]
    for what, found, other in (
        ("normaliser", a.metrics.normaliser, b.metrics.normaliser),
        ("split", a.metrics.split, b.metrics.split),
        *windows,
    ):
        if found != other:
            return f"the {what} is {found} for {a.name}, {other} for {b.name}"
    for result in (a, b):
        if not result.rows:
            return f"{rows_path(result.path).name} is not there"
    return _other_utterances(a, b, lead)


def has_own_window(result: Result) -> bool:
    """Whether the system is a further baseline: its window is another on purpose, and its name says which."""
    return is_baseline(result.metrics.system) and result.metrics.system != "base"


def _window(result: Result) -> str:
    return f"{result.metrics.audio_window_s:g} s"


def _other_utterances(a: Result, b: Result, lead: Lead) -> str:
    lengths, others = ({row["id"]: row[lead.lengths] for row in result.rows or []} for result in (a, b))
    if apart := len(lengths.keys() ^ others.keys()):
        return f"the test utterances differ, {apart} were scored for only one of {a.name} and {b.name}"
    changed = sum(count != others[key] for key, count in lengths.items())
    return f"the references of {changed} utterances differ between {a.name} and {b.name}" if changed else ""
