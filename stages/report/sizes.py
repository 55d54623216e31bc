"""How much the experts are used by the amount of training data, where a language was trained with several amounts."""

import re
from dataclasses import dataclass
from statistics import fmean

from stages.report.comparison import Comparison
from stages.report.figures import SIDES, Figure, size_figure
from stages.report.results import system_order_key, system_title
from stages.report.runs import Runs
from stages.report.tables import Table
from stages.shared.whisper.languages import code_of, language_name


@dataclass(frozen=True)
class Use:
    """The share of tokens that take the expert, mean over the layers."""

    language: str  # its code
    system: str
    utterances: int  # trained on
    shares: dict[str, float]  # by side


@dataclass(frozen=True)
class SizesSection:
    corpus: str
    figures: list[Figure]
    table: Table


def sizes_sections(comparisons: list[Comparison], runs: Runs) -> list[SizesSection]:
    """Makes a section for each test corpus on which a language has gates of several amounts of training data."""
    corpora = dict.fromkeys(comparison.corpus for comparison in comparisons)
    found = {corpus: _several([c for c in comparisons if c.corpus == corpus], runs) for corpus in corpora}
    return [_section(corpus, uses) for corpus, uses in found.items() if uses]


def _several(comparisons: list[Comparison], runs: Runs) -> list[Use]:
    """Returns the gate use of each language and system that was trained with more than one amount, by amount."""
    uses = [
        Use(
            code_of(comparison.language), system, run.training_utterances, {s: fmean(line.gates[s]) for s in line.gates}
        )
        for comparison in comparisons
        for line in comparison.lines
        for system in [line.result.metrics.system]
        if line.gates and (run := runs.get((comparison.language, system))) and len(run.data) == 1
    ]
    amounts: dict[tuple[str, str], set[int]] = {}
    for use in uses:
        amounts.setdefault((use.language, use.system), set()).add(use.utterances)
    chosen = [use for use in uses if len(amounts[use.language, use.system]) > 1]
    return sorted(chosen, key=lambda use: (use.language, system_order_key(use.system), use.utterances))


def _section(corpus: str, uses: list[Use]) -> SizesSection:
    rows = [
        [
            language_name(use.language),
            system_title(use.system),
            f"{use.utterances:,}",
            *(f"{100 * use.shares[side]:.0f}" if side in use.shares else "-" for side in SIDES),
        ]
        for use in uses
    ]
    name = "gates-by-size-" + re.sub(r"[^\w.-]+", "-", corpus)
    figures = [_figure(f"{name}-{side}", [use for use in uses if side in use.shares], side) for side in SIDES]
    columns = ["Language", "System", "Training utterances", "Encoder %", "Decoder %"]
    return SizesSection(corpus, [figure for figure in figures if figure], Table(columns, rows, text=2))


def _figure(name: str, uses: list[Use], side: str) -> Figure | None:
    points = [
        {
            "language": language_name(use.language),
            "system": system_title(use.system),
            "utterances": use.utterances,
            "share": 100 * use.shares[side],
        }
        for use in uses
    ]
    return size_figure(name, points, f"Tokens routed to the expert, {side} (%)") if points else None
