"""Reads `models/<lang>/<method>/training.json`: how the systems were trained, and on what."""

from typing import Any

from pydantic import BaseModel

from cache.files import read_json
from cache.storage import AnyPath
from stages.shared.facts import Count, Data, validated
from stages.shared.methods import METHODS


class RunSettings(BaseModel):
    base: str
    audio_window_s: float
    batch_size: Count
    accumulate: Count
    processes: Count = 1


class Run(BaseModel):
    settings: RunSettings
    changes: dict[str, Any] = {}  # the settings that are not the paper's
    data: dict[str, Data] = {}  # by language; {}: not known, so that nothing can be compared
    training_utterances: Count  # of all languages


Runs = dict[tuple[str, str], Run]  # by the language's folder and the method


def read_runs(models: AnyPath) -> Runs:
    """Reads the facts of all finished runs. Raises PipelineError where a file is not as expected."""
    found = {(path.parent.parent.name, path.parent.name): path for path in models.glob("*/*/training.json")}
    return {
        owner: validated(Run, read_json(path), str(path))
        for owner, path in sorted(found.items())
        if owner[1] in METHODS
    }
