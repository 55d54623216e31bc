"""Numbers as readers see them: the same cells in HTML, in Markdown and in the terminal."""

from dataclasses import dataclass
from statistics import fmean

from stages.report.comparison import Comparison, Line
from stages.report.verdict import STUDENTS

NONE = "-"


@dataclass(frozen=True)
class Table:
    """The first `text` columns hold words, the others numbers."""

    columns: list[str]
    rows: list[list[str]]
    text: int = 1


def percent(fraction: float | None) -> str:
    return NONE if fraction is None else f"{100 * fraction:.1f}"


def span(interval: tuple[float, float] | None) -> str:
    return NONE if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def points(value: float | None, interval: tuple[float, float] | None) -> str:
    """A difference of fractions in percentage points, with its interval: '-12.3 (-15.2 to -9.1)'."""
    if value is None:
        return NONE
    bounds = "" if interval is None else f" ({_signed(interval[0])} to {_signed(interval[1])})"
    return _signed(value) + bounds


def _signed(fraction: float) -> str:
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"  # + 0.0: no '-0.0'


def systems_table(comparison: Comparison) -> Table:
    columns = ["System", "WER %", "95 % interval", "CER %", "vs base, points (95 %)", "Sub / del / ins"]
    columns += ["Words (utterances)", "Real-time factor", "Experts %, enc / dec"]
    return Table(columns, [_system_row(line) for line in comparison.lines])


def _system_row(line: Line) -> list[str]:
    metrics, change = line.result.metrics, line.versus_base
    return [
        line.result.name,
        percent(metrics.wer),
        span(line.wer_interval),
        percent(metrics.cer),
        points(change.value, change.interval) if change else NONE,
        f"{metrics.substitutions:,} / {metrics.deletions:,} / {metrics.insertions:,}",
        f"{metrics.words:,} ({metrics.utterances:,})",
        NONE if line.real_time_factor is None else f"{line.real_time_factor:.2f}",
        " / ".join(f"{100 * fmean(shares):.0f}" for shares in line.gates.values()) or NONE,
    ]


def setup_table(comparison: Comparison) -> Table:
    """What was measured in what way, and the WER before normalisation."""
    rows = [
        [
            line.result.name,
            m.model,
            m.dtype,
            m.normaliser,
            f"{m.audio_window_s:g}",
            percent(m.raw_wer),
            percent(m.raw_cer),
        ]
        for line in comparison.lines
        for m in [line.result.metrics]
    ]
    return Table(
        ["System", "Model", "Precision", "Normaliser", "Audio window s", "Raw WER %", "Raw CER %"], rows, text=4
    )


def gates_table(comparison: Comparison) -> Table | None:
    rows = [
        [f"{line.result.name}, {side}", *(f"{100 * share:.0f}" for share in shares)]
        for line in comparison.lines
        for side, shares in line.gates.items()
    ]
    if not rows:
        return None
    width = max(map(len, rows))
    columns = ["Share of tokens % in layer", *map(str, range(width - 1))]
    return Table(columns, [row + [NONE] * (width - len(row)) for row in rows])


def overview_table(comparisons: list[Comparison], names: dict[str, str]) -> Table:
    """One row for each language and corpus: base, the student the verdict is about, teacher. `names` of languages."""
    columns = [
        "Language",
        "Corpus",
        "Student",
        "Student WER %",
        "Base WER %",
        "vs base, points (95 %)",
        "Teacher WER %",
    ]
    rows = []
    for comparison in comparisons:
        student, base, teacher = comparison.line(*STUDENTS), comparison.line("base"), comparison.line("teacher")
        change = student.versus_base if student else None
        rows.append([
            names[comparison.language],
            comparison.corpus,
            student.result.name if student else NONE,
            *(percent(line.result.metrics.wer if line else None) for line in (student, base)),
            points(change.value, change.interval) if change else NONE,
            percent(teacher.result.metrics.wer if teacher else None),
        ])  # fmt: skip
    return Table(columns, rows, text=3)


def loop_notes(comparison: Comparison) -> list[str]:
    counts = [
        f"{line.result.metrics.loops:,} of {line.result.name}" for line in comparison.lines if line.result.metrics.loops
    ]
    return [f"Hypotheses that ended in a loop, and were cut at it: {', '.join(counts)}."] if counts else []


def unscored_notes(comparison: Comparison) -> list[str]:
    """Systems that left out the same utterances share a note."""
    systems: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for line in comparison.lines:
        left_out = tuple((utterance.id, utterance.reason) for utterance in line.result.metrics.unscored)
        systems.setdefault(left_out, []).append(line.result.name)
    return [_unscored_note(names, left_out) for left_out, names in systems.items() if left_out]


def _unscored_note(names: list[str], left_out: tuple[tuple[str, str], ...], shown: int = 20) -> str:
    listed = "; ".join(f"{id} ({reason})" for id, reason in left_out[:shown])
    more = f"; and {len(left_out) - shown:,} more" if len(left_out) > shown else ""
    count = "1 utterance" if len(left_out) == 1 else f"{len(left_out):,} utterances"
    return f"{count} not scored for {', '.join(names)}: {listed}{more}."
