"""Shards to batches against what the fastest training consumes.

    python tests/bench/reading.py --utterances data/utterances/cs/train

reading: one shuffled epoch of utterance and teacher shards, from FLAC and distributions to the tensors of a batch, in the
one thread that works ahead of training. training: optimizer steps of `clsr` (no teacher, the cheapest of the methods) over
batches that are ready.
"""

import tempfile
import time
from pathlib import Path

import torch
from common import arguments, begin

from cache.shards import ShardReader, ShardWriter
from stages.shared.prefetch import prefetch
from stages.shared.whisper.device import compute_dtype
from stages.shared.whisper.models import Whisper, load_whisper
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.train_student.data import TrainingData
from stages.train_student.loop import TrainingLoop
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee

CPU = torch.device("cpu")
LANGUAGE = "cs"


def main() -> None:
    args = arguments(__doc__, steps=(6, "training steps that are timed"), rounds=(2, "alternations"))
    whisper, shards = begin(args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = {format: _data(whisper, shards, folder / format, format) for format in ("parquet", "webdataset")}
        run = _run(whisper, data["parquet"], folder)
        for _ in range(args.rounds):
            trained = _training(run, args.steps)
            for format, each in data.items():
                started, count = time.perf_counter(), 0
                for batch in prefetch(each.batches(8, seed=0, epoch=0)):
                    count += len(batch.ids)
                rate = count / (time.perf_counter() - started)
                print(
                    f"{format}: {rate:.0f} utterances/s, training {trained:.2f}: {rate / trained:.0f} times", flush=True
                )


def _data(whisper: Whisper, shards: list[list[dict]], folder: Path, format: str) -> TrainingData:
    writer = ShardWriter(folder / "utterances", "utterances", {"language": LANGUAGE, "split": "train"}, format)
    for index, rows in enumerate(shards):
        writer.write(index, rows, seconds=sum(row["seconds"] for row in rows))
    writer.finish(corpus="bench", language=LANGUAGE, split="train")
    settings = TeacherCacheSettings(format=format)
    teacher = load_whisper(whisper.model_id, whisper.audio_window_s)  # another copy: caching rounds the weights it has
    cache_teacher(ScoringJob(teacher, LANGUAGE, settings, CPU), folder / "utterances", folder / "teacher")
    readers = ShardReader(folder / "utterances", "utterances"), ShardReader(folder / "teacher", "teacher")
    return TrainingData(*readers, whisper, LANGUAGE, TrainSettings())


def _run(whisper: Whisper, data: TrainingData, folder: Path) -> TrainingLoop:
    settings = TrainSettings(batch_size=8, accumulate=1)
    trainee = Trainee(whisper, "clsr", LANGUAGE, settings)
    return TrainingLoop(trainee, data, settings, compute_dtype("auto", CPU), folder, dict, print)


def _training(run: TrainingLoop, steps: int) -> float:
    """Utterances per second; the teacher's part of the batches is put aside."""
    batches = [batch for batch, _ in zip(run.data.batches(8, seed=0, epoch=0), range(steps + 1), strict=False)]
    for batch in batches:
        object.__setattr__(batch, "teacher", None)
    run._step(batches[:1], 0)
    started = time.perf_counter()
    for number, batch in enumerate(batches[1:]):
        run._step([batch], number)
    return 8 * steps / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
