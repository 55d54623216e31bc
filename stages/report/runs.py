"""Reads `models/<lang>/<system>/training.json`: how the systems were trained, and on what."""

from cache.storage import AnyPath
from stages.shared.facts import Training, read_training
from stages.shared.layout import RESULT
from stages.shared.methods import METHODS

TRAINED = {*METHODS, "teacher"}

Runs = dict[tuple[str, str], Training]  # by the language's folder and the system


def read_runs(models: AnyPath) -> Runs:
    """Reads the facts of all finished trainings. Raises PipelineError where a file is not as expected."""
    folders = [path.parent for path in sorted(models.glob(f"*/*/{RESULT}"), key=str) if path.parent.name in TRAINED]
    found = {(folder.parent.name, folder.name): read_training(folder) for folder in folders}
    return {owner: training for owner, training in found.items() if training is not None}
