"""Reads what `evaluate` has found for a model, and writes it for a card: a table, and the hub's `model-index`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from cache import storage
from cache.storage import AnyPath
from stages.shared.facts import Metrics, metrics_files, read_metrics, read_rows
from stages.shared.layout import VALIDATION
from stages.shared.scoring import interval

TASK = ("automatic-speech-recognition", "Automatic Speech Recognition")
RATES = {"wer": "WER", "cer": "CER"}


@dataclass(frozen=True)
class Measured:
    """One result of `evaluate`. own: of the model, not of a base."""

    system: str
    own: bool
    facts: Metrics
    intervals: dict[str, tuple[float, float]]  # rate -> 95 % interval, where the utterances' rows are there

    @property
    def place(self) -> tuple[str, str, str]:
        return self.facts.language, self.facts.corpus, self.facts.split


def find_measured(metrics: AnyPath, model: str) -> list[Measured]:
    """Returns the results of `model` (a folder or a hub id) in the folder `metrics`, then the bases' on these splits."""
    found = []
    for path in metrics_files(metrics):
        facts = read_metrics(path)
        own = _place(facts.model) == _place(model)
        if own or facts.system.partition("-")[0] == "base":
            found.append((path, own, facts))
    places = {_split_of(facts) for _, own, facts in found if own}
    found.sort(key=lambda one: not one[1])
    return [
        Measured(facts.system, own, facts, _intervals(path, facts) if own else {})
        for path, own, facts in found
        if _split_of(facts) in places
    ]


def _split_of(facts: Metrics) -> tuple[str, str, str, int]:
    return facts.language, facts.corpus, facts.split, facts.utterances


def _place(model: str) -> str:
    """Returns one name for a folder, however it was written."""
    place = storage.path(model)
    return str(place.resolve()) if isinstance(place, Path) and place.exists() else str(place)


def _intervals(path: AnyPath, facts: Metrics) -> dict[str, tuple[float, float]]:
    rows = read_rows(path, facts)
    return {} if rows is None else {rate: interval(rows, rate) for rate in RATES}


def section(measured: Sequence[Measured]) -> str:
    """Returns the rates as a table, and what else was noticed."""
    head = [
        "system",
        "language",
        "corpus",
        "split",
        "utterances",
        "WER % (95 %)",
        "CER % (95 %)",
        "window",
        "precision",
    ]
    lines = [" | ".join(["", *head, ""]).strip(), "|" + " --- |" * len(head)]
    for one in measured:
        facts = one.facts
        name = "**this model**" if one.own else f"{one.system}, not trained"
        rates = [_rate(one, rate) for rate in RATES]
        cells = [*map(str, one.place), f"{facts.utterances:,}", *rates, _seconds(facts), facts.dtype]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join([*lines, "", *_notes([one.facts for one in measured if one.own])])


def _rate(one: Measured, rate: str) -> str:
    value = getattr(one.facts, rate)
    low, high = one.intervals.get(rate, (value, value))
    return f"{100 * value:.1f}" + (f" ({100 * low:.1f} to {100 * high:.1f})" if rate in one.intervals else "")


def _seconds(facts: Metrics) -> str:
    return f"{facts.audio_window_s:g} s"


def _notes(own: list[Metrics]) -> Iterator[str]:
    if normalisers := sorted({facts.normaliser for facts in own}):
        yield f"- Normaliser: {', '.join(normalisers)}. It takes out capitals and punctuation."
    for facts in own:
        where = f"{facts.corpus}, {facts.split}"
        if facts.split == VALIDATION:
            yield f"- {where}: the weights were chosen on this split, so that its rates are too good."
        if facts.loops or facts.unended:
            yield (
                f"- {where}: of {facts.utterances:,} texts {facts.loops:,} repeated themselves, and "
                f"{facts.unended:,} did not end."
            )
        if facts.gates:
            yield f"- {where}: the expert took {', '.join(_gate_use(facts.gates))}."


def _gate_use(gates: dict[str, float]) -> Iterator[str]:
    for side in ("encoder", "decoder"):
        if shares := [share for layer, share in gates.items() if layer.startswith(side)]:
            yield f"{100 * sum(shares) / len(shares):.0f} % of the tokens in the {side}'s layers"


def eval_results(measured: Sequence[Measured]) -> list[EvalResult]:
    """Returns the model's own rates as the hub's `model-index` has them, in percent."""
    results = []
    for one in measured:
        language, corpus, split = one.place
        for rate, name in RATES.items():
            if not one.own or split == VALIDATION:
                continue
            details: dict[str, Any] = {"normaliser": one.facts.normaliser, "window": _seconds(one.facts)}
            if rate in one.intervals:
                details["confidence_interval_95"] = [round(100 * end, 2) for end in one.intervals[rate]]
            results.append(
                EvalResult(
                    task_type=TASK[0],
                    task_name=TASK[1],
                    dataset_type=corpus,
                    dataset_name=corpus,
                    dataset_config=language,
                    dataset_split=split,
                    metric_type=rate,
                    metric_name=name,
                    metric_value=round(100 * getattr(one.facts, rate), 2),
                    metric_args=details,
                )
            )
    return results
