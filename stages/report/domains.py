"""A language's test corpora side by side: that of the training data, and others."""

from dataclasses import dataclass
from statistics import fmean

from stages.report.comparison import Comparison, Line
from stages.report.figures import SIDES, Figure, domain_figure
from stages.report.results import system_order_key
from stages.report.tables import NONE, Table, percent, points, span


@dataclass(frozen=True)
class Domains:
    note: str
    rates: Table
    gates: list[Figure]  # by layer, a line for each system and corpus


def domains(comparisons: list[Comparison]) -> Domains | None:
    """comparisons: of one language. None: there is one corpus only."""
    comparisons = [comparison for comparison in comparisons if not comparison.is_validation]
    if len(comparisons) < 2:
        return None
    own = [c.corpus for c in comparisons if not c.further]
    others = [c.corpus for c in comparisons if c.further]
    parts = [
        f"In domain: {', '.join(own)}, the corpus of the training data." if own else "",
        f"Out of domain: {', '.join(others)}.",
    ]
    note = " ".join([*filter(None, parts), "Each difference is from the base on the same corpus."])
    return Domains(note, _rates(comparisons), _figures(comparisons))


def _rates(comparisons: list[Comparison]) -> Table:
    """Makes a row for each system; of each corpus its rates, and the difference from the base."""
    lead = comparisons[0].lead
    names = {line.result.metrics.system: line.result.name for c in comparisons for line in c.lines}
    columns = ["System"]
    for comparison in comparisons:
        columns += [f"{comparison.corpus}: {lead.name} % (95 %)", f"{lead.beside_name} %", "vs base, points (95 %)"]
    rows = [
        [names[system], *(cell for c in comparisons for cell in _cells(c.line(system), c))]
        for system in sorted(names, key=system_order_key)
    ]
    return Table(columns, rows)


def _cells(line: Line | None, comparison: Comparison) -> list[str]:
    if line is None:
        return [NONE] * 3
    metrics, lead, change = line.result.metrics, comparison.lead, line.versus_base
    bounds = f" ({span(line.interval)})" if line.interval else ""
    return [
        percent(lead.of(metrics)) + bounds,
        percent(getattr(metrics, lead.beside)),
        points(change.value, change.interval) if change else NONE,
    ]


def _figures(comparisons: list[Comparison]) -> list[Figure]:
    figures = []
    for side in SIDES:
        uses = [
            {"system": line.result.name, "corpus": c.corpus, "layer": str(layer), "share": 100 * share}
            for c in comparisons
            for line in c.lines
            for layer, share in enumerate(line.gates.get(side, []))
        ]
        if len({use["corpus"] for use in uses}) > 1:
            title = f"Tokens routed to the expert, {side} (%)"
            systems = {
                line.result.name: line.result.metrics.system for c in comparisons for line in c.lines if line.gates
            }
            figures.append(domain_figure(f"{comparisons[0].language}-domains-gates-{side}", uses, systems, title))
    return figures


def gate_use(comparisons: list[Comparison], names: dict[str, str]) -> Table | None:
    """Makes a row for each language, system and corpus with gates. names: of the languages. None: there are fewer than two."""
    rows = [
        [
            names[comparison.language],
            line.result.name,
            comparison.corpus,
            *(f"{100 * fmean(line.gates[side]):.0f}" if side in line.gates else NONE for side in SIDES),
        ]
        for comparison in comparisons
        for line in comparison.lines
        if line.gates
    ]
    several = len({(row[0], row[2]) for row in rows}) > 1
    return Table(["Language", "System", "Corpus", "Encoder %", "Decoder %"], rows, text=3) if several else None
