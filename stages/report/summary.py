"""The comparison as plain text for a terminal, at most 100 columns wide."""

import textwrap
from typing import Any

from cache.errors import PipelineError
from cache.files import read_json
from cache.storage import AnyPath
from stages.report.lead import CHARACTERS, WORDS, Lead
from stages.report.tables import percent, points, span
from stages.shared.whisper.languages import NAMED, language_name

NAME_WIDTH = 28  # leaves room for the longest intervals
LEADS = {lead.rate: lead for lead in (WORDS, CHARACTERS)}


def format_summary(report: AnyPath | dict[str, Any]) -> str:
    """Formats the comparison. report: the report's folder, its comparison.json, or the content of that file.

    Raises PipelineError where it is not a comparison.
    """
    if isinstance(report, dict):
        return _format(report)
    path = report / "comparison.json" if report.is_dir() else report
    try:
        return _format(read_json(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path}: not a comparison ({error!r}); `pipeline report` makes it") from None


def _format(numbers: dict[str, Any]) -> str:
    blocks = [
        _block(language, corpus, comparison)
        for language, corpora in numbers["languages"].items()
        for corpus, comparison in corpora.items()
    ]
    return "\n\n".join(blocks)


def _block(language: str, corpus: str, comparison: dict[str, Any]) -> str:
    lead = LEADS[comparison["rate"]]
    beside = f"{lead.beside_name} %" if lead is WORDS else f"{lead.operations} %"
    heads = ["system", f"{lead.name} %", "95 % interval", beside, "vs base (95 %)", f"basic {lead.name}", lead.lengths]
    rows = [heads, *(_row(numbers, lead) for numbers in comparison["systems"].values())]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    heading = f"{language_title(language)}: {corpus}, {comparison['split']}"
    return "\n".join([heading, lines[0], "-" * len(lines[0]), *lines[1:], *textwrap.wrap(comparison["verdict"], 100)])


def _row(numbers: dict[str, Any], lead: Lead) -> list[str]:
    return [
        textwrap.shorten(numbers["name"], NAME_WIDTH, placeholder="..."),
        percent(numbers[lead.rate]),
        span(_pair(numbers, lead.rate)),
        percent(numbers[lead.beside]),
        points(numbers[f"{lead.rate}_minus_base"], _pair(numbers, f"{lead.rate}_minus_base")),
        percent(numbers[f"basic_{lead.rate}"]),
        f"{numbers[lead.lengths]:,}",
    ]


def _pair(numbers: dict[str, Any], name: str) -> tuple[float, float] | None:
    low, high = numbers[f"{name}_low"], numbers[f"{name}_high"]
    return None if low is None or high is None else (low, high)


def language_title(code: str) -> str:
    """code: also with a name, ca-x-3k."""
    language, _, own = code.partition(NAMED)
    name = language_name(language)
    title = language if name == language else f"{name} ({language})"
    return f"{title}, {own}" if own else title
