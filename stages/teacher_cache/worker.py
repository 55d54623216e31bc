"""What runs on each machine of a cluster: it holds the teacher and makes whole shards. It records nothing."""

import socket
import threading
from dataclasses import dataclass, replace
from typing import Any

import torch

from cache.errors import PipelineError
from cache.shards import ShardReader
from cache.storage import AnyPath
from stages.shared.whisper.device import choose_device, compute_dtype, keep_freed_memory
from stages.shared.whisper.models import load_whisper
from stages.shared.whisper.targets import use_token
from stages.teacher_cache.job import Job
from stages.teacher_cache.run import write_scored
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.shard import ShardScorer
from stages.teacher_cache.vocabulary import load_vocabulary


@dataclass(frozen=True)
class Task:
    """What a worker is to do; small, for it travels."""

    teacher: str  # hub id or folder, as it was asked for: the manifest says so
    student: str
    audio_window_s: int
    language: str
    settings: TeacherCacheSettings
    utterances: AnyPath
    out: AnyPath
    token: str | None = None  # the language whose token stands for `language` in prompts; None: its own

    def absolute(self) -> "Task":
        """The same for another working folder."""
        return replace(self, utterances=self.utterances.absolute(), out=self.out.absolute())


class Worker:
    """Two shards at a time: while one is scored the other is read, or written.

    teacher, student: where the task's two are, which it names as they were asked for.
    """

    def __init__(self, task: Task, teacher: str, student: str, device: str, threads: int):
        self.task, self.teacher, self.student, self.device, self.threads = task, teacher, student, device, threads
        self.scoring = threading.Lock()
        self.done: dict[int, tuple[int, float]] = {}

    def open(self) -> dict[str, Any]:
        """Loads the teacher, and returns what the cache depends on: it must be the same on all workers."""
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        try:
            job = self._load()
        except PipelineError as error:
            raise PipelineError(
                f"on {socket.gethostname()}: {error}; every machine must see the same folders (by a shared filesystem or "
                "an object store) and have the same kind of processor"
            ) from None
        facts = job.facts(self.source)
        job.teacher.model.to(self.where)
        self.scorer = ShardScorer(job)
        return facts

    def _load(self) -> Job:
        task = self.task
        self.source = ShardReader(task.utterances, "utterances")
        self.where = choose_device(self.device)
        teacher = replace(load_whisper(self.teacher, task.audio_window_s), source=task.teacher)
        use_token(teacher.model, task.language, task.token)
        student = replace(load_vocabulary(self.student), source=task.student)
        return Job(teacher, student, task.language, task.settings, compute_dtype(task.settings.dtype, self.where))

    def score(self, index: int) -> dict[str, Any]:
        """Makes shard `index`, and returns its entry for the manifest."""
        utterances = self.source.read(index)
        with self.scoring:
            torch.set_num_threads(self.threads)  # holds for the calling thread only
            self.done[index] = 0, 0.0
            (shard,) = self.scorer.run([(index, utterances)], lambda *counts: self._tell(index, *counts))
        entry = write_scored(self.task.out, self.task.settings.format, shard, self.source)
        del self.done[index]
        return entry

    def _tell(self, index: int, utterances: int, seconds: float) -> None:
        before = self.done[index]
        self.done[index] = before[0] + utterances, before[1] + seconds

    def progress(self) -> dict[int, tuple[int, float]]:
        """Of the shards in the making: utterances and seconds of audio done."""
        return dict(self.done)
