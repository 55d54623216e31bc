"""Reads learning curves, `models/<lang>/<method>/curve.jsonl`, and writes them as CSV for `dvc plots`."""

import csv
import io
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat

from cache.files import read_jsonl
from cache.storage import AnyPath
from stages.report.results import is_baseline, system_title
from stages.shared.facts import validated
from stages.shared.layout import CURVE
from stages.shared.whisper.languages import code_of

COLUMNS = ("step", "epoch", "loss", "ce", "kd", "gate_mean", "validation_wer")


class Point(BaseModel):
    """A training row or a validation row. Values that the row lacks are None."""

    step: Annotated[int, Field(ge=0)]
    epoch: FiniteFloat | None = None
    loss: FiniteFloat | None = None
    ce: FiniteFloat | None = None
    kd: FiniteFloat | None = None
    gate_mean: FiniteFloat | None = None
    validation_wer: FiniteFloat | None = None


Curves = dict[tuple[str, str], list[Point]]  # by language and method


def read_curves(models: AnyPath) -> Curves:
    """Reads all curves. A run for several languages, `models/A+B`, gives each language a curve with its own validation WER.

    A language's own run is preferred to a run for several languages.
    """
    curves: Curves = {}
    found = {(path.parent.parent.name, path.parent.name): path for path in models.glob("*/*/curve.jsonl")}
    for languages, method in sorted(found, key=lambda owner: ("+" in owner[0], owner)):
        path = found[languages, method]
        rows = list(enumerate(read_jsonl(path), start=1))
        for language in languages.split("+"):
            points = [validated(Point, _own(row, language), f"{path}, line {number}") for number, row in rows]
            curves.setdefault((language, method), points)
    return curves


def _own(row: Any, language: str) -> Any:
    """Replaces the mean validation WER over the run's languages by that of the language."""
    own = f"validation_wer_{code_of(language)}"
    return {**row, "validation_wer": row[own]} if isinstance(row, dict) and own in row else row


def curve_csv(points: list[Point]) -> str:
    """Returns one row per step, with empty cells where nothing was measured. `dvc plots` draws one line per file."""
    steps: dict[int, dict[str, float | None]] = {}
    for point in points:
        row = steps.setdefault(point.step, dict.fromkeys(COLUMNS))
        row.update({name: value for name, value in point.model_dump().items() if value is not None})
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(steps[step] for step in sorted(steps))
    return text.getvalue()


def missing_curves(curves: Curves, language: str, systems: list[str], models: AnyPath) -> list[str]:
    """Returns a note for each trained system without a curve. The base and a downloaded teacher never have one."""
    return [
        f"{path} is not there: the learning curve of {system_title(system)} is left out."
        for system in systems
        for path in [models / language / system / CURVE]
        if system != "teacher" and not is_baseline(system) and not curves.get((language, system))
    ]
