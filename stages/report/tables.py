"""Formats numbers for readers: HTML, Markdown and the terminal show the same cells."""

from dataclasses import dataclass
from statistics import fmean

from stages.report.comparison import Comparison, Line
from stages.report.lead import Lead
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
    """Formats a difference of fractions in percentage points, with its interval: '-12.3 (-15.2 to -9.1)'."""
    if value is None:
        return NONE
    bounds = "" if interval is None else f" ({_signed(interval[0])} to {_signed(interval[1])})"
    return _signed(value) + bounds


def _signed(fraction: float) -> str:
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"  # + 0.0: no '-0.0'


def systems_table(comparison: Comparison) -> Table:
    lead = comparison.lead
    columns = ["System", f"{lead.name} %", "95 % interval", f"{lead.beside_name} %", "vs base, points (95 %)"]
    columns += [f"Sub / del / ins of {lead.operations}", f"{lead.lengths.capitalize()} (utterances)"]
    columns += [f"Basic {lead.name} %", "Real-time factor", "Experts %, enc / dec"]
    return Table(columns, [_system_row(line, lead) for line in comparison.lines])


def _system_row(line: Line, lead: Lead) -> list[str]:
    metrics, change = line.result.metrics, line.versus_base
    return [
        line.result.name,
        percent(lead.of(metrics)),
        span(line.interval),
        percent(getattr(metrics, lead.beside)),
        points(change.value, change.interval) if change else NONE,
        f"{metrics.substitutions:,} / {metrics.deletions:,} / {metrics.insertions:,}",
        f"{getattr(metrics, lead.lengths):,} ({metrics.utterances:,})",
        percent(getattr(metrics, f"basic_{lead.rate}")),
        NONE if line.real_time_factor is None else f"{line.real_time_factor:.2f}",
        " / ".join(f"{100 * fmean(shares):.0f}" for shares in line.gates.values()) or NONE,
    ]


def setup_table(comparison: Comparison) -> Table:
    """Tells how each system was measured, and its rates by Whisper's basic normaliser and without any."""
    rows = [
        [
            line.result.name,
            m.model,
            m.dtype,
            m.normaliser,
            f"{m.audio_window_s:g}",
            *(percent(rate) for rate in (m.basic_wer, m.basic_cer, m.raw_wer, m.raw_cer)),
        ]
        for line in comparison.lines
        for m in [line.result.metrics]
    ]
    columns = ["System", "Model", "Precision", "Normaliser", "Audio window s"]
    return Table([*columns, "Basic WER %", "Basic CER %", "Raw WER %", "Raw CER %"], rows, text=4)


def published_table(comparison: Comparison) -> Table | None:
    """Compares with the paper's tables. None: nothing was measured that can be compared."""
    rows = [
        [
            line.result.name,
            paper.trained_on or NONE,
            percent(measured),
            percent(paper.wer),
            points(measured - paper.wer, None),
        ]
        for line in comparison.lines
        if (paper := line.published) and (measured := line.result.metrics.basic_wer) is not None
    ]
    columns = ["System", "Trained on", "Measured basic WER %", "Published WER %", "Measured less published, points"]
    return Table(columns, rows, text=2) if rows else None


def published_notes(comparison: Comparison) -> list[str]:
    return [
        f"{line.result.name} is not quite the paper's: {', '.join(line.published.differs)}."
        for line in comparison.lines
        if line.published and line.published.differs
    ]


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
    """Makes one row for each language and corpus: the base, the student that the verdict is about, the teacher.

    names: of the languages, by code.
    """
    columns = [
        "Language",
        "Corpus",
        "Rate",
        "Student",
        "Student %",
        "Base %",
        "vs base, points (95 %)",
        "Teacher %",
    ]
    rows = []
    for comparison in comparisons:
        student, base, teacher = comparison.line(*STUDENTS), comparison.line("base"), comparison.line("teacher")
        change = student.versus_base if student else None
        rows.append([
            names[comparison.language],
            comparison.corpus,
            comparison.lead.name,
            student.result.name if student else NONE,
            *(percent(comparison.lead.of(line.result.metrics) if line else None) for line in (student, base)),
            points(change.value, change.interval) if change else NONE,
            percent(comparison.lead.of(teacher.result.metrics) if teacher else None),
        ])  # fmt: skip
    return Table(columns, rows, text=4)


def ending_notes(comparison: Comparison) -> list[str]:
    """Counts hypotheses that did not end by themselves. Each kind of which there are any has a note."""
    measured = [line.result.metrics for line in comparison.lines]
    kinds = {
        "ended in a loop, and were cut at it": [m.loops if m.cut_loops else 0 for m in measured],
        "ended in a loop, and were not cut (evaluate.cut_loops is false)": [
            0 if m.cut_loops else m.loops for m in measured
        ],
        "stopped at the token limit before their end": [m.unended for m in measured],
    }
    names = [line.result.name for line in comparison.lines]
    return [
        f"Hypotheses that {what}: {', '.join(f'{n:,} of {name}' for n, name in zip(counts, names, strict=True) if n)}."
        for what, counts in kinds.items()
        if any(counts)
    ]


def unscored_notes(comparison: Comparison) -> list[str]:
    """Lists utterances that were not scored. Systems that left out the same ones share a note."""
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
