"""Sends a run's curve to experiment trackers, by accelerate's classes for them. Without trackers nothing is imported."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.errors import PipelineError, how_to_install
from stages.train_student.processes import SINGLE_PROCESS, Processes
from stages.train_student.settings import Tracker

Row = dict[str, float]
PROJECT = "whisper-offline-distillation"


@contextmanager
def tracked(
    trackers: Sequence[Tracker],
    run: str,
    folder: Path,
    settings: dict[str, Any],
    warn: Callable[[str], None] = lambda line: None,
    processes: Processes = SINGLE_PROCESS,
) -> Iterator[Callable[[Row], None]]:
    """Gives a function that sends a row of the curve, with its step, to all `trackers`. The main process alone calls it.

    run: its name in the trackers. folder: what TensorBoard and DVCLive write to. settings: of the run. warn: is called with
    a line where a tracker fails in the middle: it gets no more rows, and the training goes on.
    Raises PipelineError, on all processes, where a tracker is not installed or does not begin.
    """
    begun: dict[Tracker, Any] = {}

    def begin() -> None:
        for name in trackers:
            begun[name] = _begun(name, run, folder, settings)

    def attempt(name: Tracker, action: Callable[[Any], Any]) -> None:
        try:
            action(begun[name])
        except Exception as error:  # whatever a network or a full disk does to it
            del begun[name]
            warn(
                f"train.track: {name} has failed ({_line(error)}) and gets no more rows; the curve is in the run's folder"
            )

    def send(row: Row) -> None:
        values = {key: value for key, value in row.items() if key != "step"}
        for name in tuple(begun):
            attempt(name, lambda tracker: tracker.log(values, step=round(row["step"])))

    try:
        processes.on_main(begin)
        yield send
    finally:
        for name in tuple(begun):
            attempt(name, lambda tracker: tracker.finish())


def _begun(name: Tracker, run: str, folder: Path, settings: dict[str, Any]) -> Any:
    """A run that was stopped goes on in the same place."""
    # its import looks for every tracker there is
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import imports

    if not getattr(imports, f"is_{name}_available")():
        raise PipelineError(
            f"train.track: {name} is not installed: {how_to_install(name)}, or take it out of train.track"
        )
    of_all: dict[Tracker, dict[str, Any]] = {
        "tensorboard": {"run_name": run, "logging_dir": folder},
        "trackio": {"run_name": PROJECT, "name": run, "resume": "allow", "embed": False},
        "wandb": {"run_name": PROJECT, "name": run, "id": run.replace("/", "-"), "resume": "allow"},
        "dvclive": {"dir": str(folder / run), "resume": True, "save_dvc_exp": False, "dvcyaml": None},
    }
    try:
        PartialState()  # the trackers ask it which process is the main one
        tracker = LOGGER_TYPE_TO_CLASS[name](**of_all[name])
        tracker.start()
        tracker.store_init_configuration({key: _plain(value) for key, value in settings.items()})
    except Exception as error:
        raise PipelineError(
            f"train.track: {name} does not begin ({_line(error)}): set it up, or leave it out"
        ) from error
    return tracker


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
