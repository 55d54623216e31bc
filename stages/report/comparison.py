"""Compares the systems that were measured on one corpus with the base model."""

import re
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from stages.report.difference import Difference, difference
from stages.report.lead import Lead, lead_of
from stages.report.published import Published, published
from stages.report.results import Result, system_order_key
from stages.report.runs import Runs
from stages.report.verdict import verdict
from stages.shared.layout import VALIDATION, rows_path
from stages.shared.scoring import interval


@dataclass(frozen=True)
class Line:
    result: Result
    interval: tuple[float, float] | None  # of the leading rate
    versus_base: Difference | None  # None for the base itself, or if it was not measured
    published: Published | None = None  # the paper's rate, if the two can be compared

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of decoding per second of audio."""
        metrics = self.result.metrics
        return metrics.seconds / metrics.audio_seconds if metrics.audio_seconds else None

    @property
    def gates(self) -> dict[str, list[float]]:
        """The share of tokens routed to the expert, by layer: {"encoder": [...], "decoder": [...]}; {} without gates."""
        sides: dict[str, list[tuple[int, float]]] = {}
        for layer, share in self.result.metrics.gates.items():
            side, _, number = layer.split(".")
            sides.setdefault(side, []).append((int(number), share))
        return {side: [share for _, share in sorted(sides[side])] for side in ("encoder", "decoder") if side in sides}


@dataclass(frozen=True)
class Comparison:
    language: str  # its entry in the parameters: a code, or one with a name, such as ca-x-3k
    corpus: str
    split: str
    lead: Lead
    lines: list[Line]
    verdict: str
    notes: list[str]

    def line(self, *systems: str) -> Line | None:
        """Returns the first of `systems` that was measured, else None."""
        by_system = {line.result.metrics.system: line for line in self.lines}
        return next((by_system[system] for system in systems if system in by_system), None)

    @property
    def name(self) -> str:
        """Names files of this comparison."""
        return re.sub(r"[^\w.-]+", "-", f"{self.language}-{self.corpus}")

    @property
    def heading(self) -> str:
        return f"{self.corpus}, {self.split}"

    @property
    def further(self) -> str:
        """Names the further test corpus, '' for that of the training data."""
        return self.lines[0].result.further

    @property
    def is_validation(self) -> bool:
        """Whether it is of the validation split, which is in the domain, and which weights were chosen by."""
        return self.further == VALIDATION

    @property
    def folder(self) -> str:
        """Names the folder of the split beside those of the language's other splits."""
        if self.is_validation:
            return VALIDATION
        return f"test@{self.further}" if self.further else "test"

    @property
    def scored(self) -> list[Line]:
        """The systems whose utterances are there."""
        return [line for line in self.lines if line.result.rows]

    def error_spread(self) -> dict[str, int]:
        """Returns by utterance the errors of the worst system less those of the best."""
        errors: dict[str, list[int]] = {}
        for line in self.scored:
            for row in line.result.rows or []:
                errors.setdefault(row["id"], []).append(row[self.lead.errors])
        return {id: max(counts) - min(counts) for id, counts in errors.items()}


def compare(results: list[Result], runs: Runs, resamples: int) -> list[Comparison]:
    """Returns a comparison for each language and corpus, in the order of `results`; its systems in the order of the table."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.entry, result.corpus), []).append(result)
    return [
        _compare(
            language,
            corpus,
            {r.metrics.system: r for r in sorted(group, key=lambda r: system_order_key(r.metrics.system))},
            runs,
            resamples,
        )
        for (language, corpus), group in groups.items()
    ]


def _compare(language: str, corpus: str, results: dict[str, Result], runs: Runs, resamples: int) -> Comparison:
    base = results.get("base")
    lead = lead_of(language)
    changes = {
        system: difference(result, base, lead, resamples)
        for system, result in results.items()
        if base and result is not base
    }
    lines = [
        Line(
            result,
            interval(result.rows, lead.rate, resamples) if result.rows else None,
            changes.get(system),
            published(result.metrics, runs.get((language, system))),
        )
        for system, result in results.items()
    ]
    splits = " / ".join(dict.fromkeys(result.metrics.split for result in results.values()))
    conclusion = verdict(results, changes, lead, resamples)
    return Comparison(language, corpus, splits, lead, lines, conclusion, _notes(lines, base))


def _notes(lines: list[Line], base: Result | None) -> list[str]:
    notes = [_missing_rows(line.result) for line in lines if not line.result.rows]
    if base is None:
        return [*notes, "The base model has not been measured here: differences are left out."]
    return notes + [
        f"No interval for the difference between {line.result.name} and {base.name}: {line.versus_base.reason}."
        for line in lines
        if line.versus_base and line.versus_base.reason and line.result.rows and base.rows
    ]


def _missing_rows(result: Result) -> str:
    also = "those of all differences" if result.metrics.system == "base" else "that of its difference"
    file = rows_path(result.path).name
    return f"{file} is not there: the interval of {result.name}, {also} and the examples are left out."


def as_numbers(comparisons: list[Comparison], title: str, resamples: int) -> dict[str, Any]:
    """Returns the content of comparison.json: nested objects instead of lists, so that `dvc metrics` can show the numbers."""
    languages: dict[str, Any] = {}
    for comparison in comparisons:
        languages.setdefault(comparison.language, {})[comparison.corpus] = {
            "split": comparison.split,
            "rate": comparison.lead.rate,
            "verdict": comparison.verdict,
            "notes": comparison.notes,
            "systems": {line.result.metrics.system: _numbers(line, comparison.lead.rate) for line in comparison.lines},
        }
    return {"title": title, "bootstrap_resamples": resamples, "languages": languages}


COPIED = ("wer", "cer", "basic_wer", "basic_cer", "raw_wer", "raw_cer", "utterances", "words", "characters",
          "substitutions", "deletions", "insertions", "loops", "unended")  # fmt: skip


def _numbers(line: Line, rate: str) -> dict[str, Any]:
    """rate: the leading rate; intervals and differences are of this rate."""
    metrics, change = line.result.metrics, line.versus_base
    low, high = line.interval or (None, None)
    change_low, change_high = (change and change.interval) or (None, None)
    return {
        "name": line.result.name,
        **{field: getattr(metrics, field) for field in COPIED},
        f"{rate}_low": low,
        f"{rate}_high": high,
        f"{rate}_minus_base": change.value if change else None,
        f"{rate}_minus_base_low": change_low,
        f"{rate}_minus_base_high": change_high,
        "real_time_factor": line.real_time_factor,
        **{f"expert_share_{side}": fmean(shares) for side, shares in line.gates.items()},
        **({"published_wer": line.published.wer} if line.published else {}),
    }
