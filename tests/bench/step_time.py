"""A training step of each method on whisper-base, over the same batches, in turn.

    python tests/bench/step_time.py --window 4

Run it where `make demo` or `pipeline teacher-cache` has run. All methods have their default sizes, and each has a model of its
own. Steps are of 8 utterances. Times are medians; ratios are to a step of `full`, with the extremes.
"""

import itertools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import alternate, arguments, begin, ratio

from cache.shards import ShardReader
from stages.shared.methods import FULL, METHODS
from stages.shared.whisper.device import compute_dtype, round_weights
from stages.shared.whisper.models import load_whisper
from stages.train_student.data import TrainingData
from stages.train_student.loop import TrainingLoop
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee

LANGUAGE = "cs"


def main() -> None:
    args = arguments(
        __doc__,
        teacher=("data/teacher/cs/train", "made by teacher-cache"),
        steps=(8, "of each method, one after the other"),
    )
    begin(args)
    dtype = compute_dtype("auto", torch.device("cpu"))
    print(f"{dtype}, window {args.window} s", flush=True)
    settings = TrainSettings(batch_size=8, accumulate=1, max_steps=1000)
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: _steps(args, name, settings, dtype, Path(folder)) for name in METHODS}
        for run in runs.values():
            run()  # warms up
        seconds = alternate(runs, args.steps)
    for name, each in seconds.items():
        print(f"{name}: {statistics.median(each):.2f} s; {ratio(seconds, name, FULL.name)}")


def _steps(args, name: str, settings: TrainSettings, dtype: torch.dtype, folder: Path) -> Callable[[], object]:
    """Returns what makes one training step at each call."""
    whisper = load_whisper(args.model, args.window)
    teacher = ShardReader(Path(args.teacher), "teacher") if METHODS[name].needs_teacher else None
    data = TrainingData(ShardReader(args.utterances, "utterances"), teacher, whisper, LANGUAGE, settings)
    trainee = Trainee(whisper, name, LANGUAGE, settings)
    round_weights(whisper.model, dtype)
    run = TrainingLoop(trainee, data, settings, dtype, folder, dict, print)
    batches, numbers = data.batches(8, seed=0, epoch=0), itertools.count()
    return lambda: run._step([next(batches)], next(numbers))


if __name__ == "__main__":
    main()
