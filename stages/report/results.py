"""Reads `metrics/<lang>/<system>[@<corpus>].json` and the utterances beside it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.facts import Metrics, metrics_files, read_metrics, read_rows
from stages.shared.methods import METHODS
from stages.shared.whisper.languages import code_of

SYSTEM_ORDER = ("base", "teacher", *METHODS)


@dataclass(frozen=True)
class Result:
    metrics: Metrics
    rows: list[dict[str, Any]] | None  # None: no utterances file
    path: AnyPath

    @property
    def name(self) -> str:
        """Names the system for readers. The base is called by the name of its model."""
        model = Path(self.metrics.model.replace("\\", "/")).name
        if self.metrics.system == "base":
            return model
        if is_baseline(self.metrics.system):
            return f"{model}, {self.metrics.audio_window_s:g} s window"
        if self.metrics.system == "teacher":
            own = model == "teacher" or model.startswith("fold-")  # an adapted one
            return f"teacher ({self.metrics.model if own else model})"
        return system_title(self.metrics.system)

    @property
    def entry(self) -> str:
        """Names the language's entry in the parameters, such as ca-x-3k: the file's folder."""
        return self.path.parent.name

    @property
    def corpus(self) -> str:
        """Names the corpus. A further corpus has the name that the user has chosen, which is in the file's name."""
        return self.further or self.metrics.corpus

    @property
    def further(self) -> str:
        """Names the further test corpus, '' for the language's own."""
        return self.path.stem.partition("@")[2]


def read_results(metrics: AnyPath) -> list[Result]:
    """Returns results sorted by language, with the main corpus before further ones, and systems in SYSTEM_ORDER.

    Raises PipelineError where there is none, and where one is not as expected.
    """
    if not (paths := metrics_files(metrics)):
        raise PipelineError(
            f"{metrics}: no results, expected <lang>/<system>.json; `pipeline evaluate --lang cs` makes them"
        )
    results = sorted(map(_read_result, paths), key=_order)
    seen: dict[tuple[str, str, str], AnyPath] = {}
    for result in results:
        key = (result.entry, result.corpus, result.metrics.system)
        if key in seen:
            raise PipelineError(
                f"{result.path}: corpus is {key[1]!r}, as in {seen[key]}; expected one result; remove one"
            )
        seen[key] = result.path
    return results


def system_title(system: str) -> str:
    """Returns what readers know a method by; any other system goes by its own name."""
    return METHODS[system].title if system in METHODS else system


def is_baseline(system: str) -> bool:
    """Whether the system is the base, or one of the parameters' `baselines`: untrained."""
    return system == "base" or system.startswith("base-")


def system_order_key(system: str) -> tuple[int, str]:
    """Sorts systems: those of SYSTEM_ORDER first, in that order, with the baselines after the base."""
    if is_baseline(system):
        return 0, system
    return SYSTEM_ORDER.index(system) if system in SYSTEM_ORDER else len(SYSTEM_ORDER), system


def _order(result: Result) -> tuple[tuple[tuple[int, str], ...], str, tuple[int, str]]:
    return _by_number(result.entry), result.further, system_order_key(result.metrics.system)


def _by_number(entry: str) -> tuple[tuple[int, str], ...]:
    """Sorts ca-x-3k before ca-x-10k."""
    return tuple((int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", entry))


def _read_result(path: AnyPath) -> Result:
    metrics = read_metrics(path)
    for field, value in {"language": code_of(path.parent.name), "system": path.stem.partition("@")[0]}.items():
        if (found := getattr(metrics, field)) != value:
            raise PipelineError(
                f"{path}: {field} is {found!r}, expected {value!r} from the file's place; evaluate again"
            )
    return Result(metrics, read_rows(path, metrics), path)
