"""The process on each machine of a cluster: it holds the teacher and writes whole shards, but records nothing."""

import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from cache.errors import PipelineError
from cache.shards import ShardReader
from cache.storage import AnyPath
from stages.shared.whisper.device import choose_device, keep_freed_memory
from stages.shared.whisper.models import Whisper, load_whisper
from stages.shared.whisper.targets import use_token
from stages.teacher_cache.crossfit import CrossFit
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import write_scored
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.vocabulary import Vocabulary, load_vocabulary


@dataclass(frozen=True)
class ScoringRequest:
    """Tells a worker what to score. It is small, because it is sent to every worker."""

    teachers: tuple[str, ...]  # hub ids or folders as the user gave them, by fold: they go into the manifest
    student: str
    audio_window_s: int
    language: str
    settings: TeacherCacheSettings
    utterances: AnyPath
    out: AnyPath
    token: str | None = None  # the language whose token replaces that of `language` in prompts; None: its own
    timestamps: float = 0.0  # the share of the utterances whose targets carry times

    def absolute(self) -> "ScoringRequest":
        """Returns the request with absolute paths, for a process with another working folder."""
        return replace(self, utterances=self.utterances.absolute(), out=self.out.absolute())

    def job(self, teachers: Iterable[Whisper], student: Vocabulary, device: torch.device) -> CrossFit:
        """Returns what is asked for, with these teachers by fold. Their tokens are set in place."""
        jobs = []
        for teacher in teachers:
            use_token(teacher.model, self.language, self.token)
            jobs.append(ScoringJob(teacher, self.language, self.settings, device, student, self.timestamps))
        return CrossFit(tuple(jobs))


class Worker:
    """Handles two shards at a time: while one is scored the other is read or written.

    teachers, student: absolute folders or hub ids; the request has them as the user gave them.
    """

    def __init__(self, request: ScoringRequest, teachers: tuple[str, ...], student: str, device: str, threads: int):
        self.request, self.teachers, self.student, self.device, self.threads = (
            request,
            teachers,
            student,
            device,
            threads,
        )
        self.scoring = threading.Lock()
        self.done: dict[int, tuple[int, float]] = {}

    def open(self) -> dict[str, Any]:
        """Loads the teachers and returns the provenance, which must be the same on all workers."""
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        try:
            job = self._load()
        except PipelineError as error:
            raise PipelineError(
                f"on {socket.gethostname()}: {error}; every machine must see the same folders (by a shared filesystem or "
                "an object store) and have the same kind of processor"
            ) from None
        provenance = job.provenance(self.utterances)
        job.place()
        self.scorer = job.scorer(self.utterances)
        return provenance

    def _load(self) -> CrossFit:
        request = self.request
        self.utterances = ShardReader(request.utterances, "utterances")
        student = replace(load_vocabulary(self.student), model_id=request.student)
        teachers = (
            replace(load_whisper(folder, request.audio_window_s), model_id=name)
            for folder, name in zip(self.teachers, request.teachers, strict=True)
        )
        return request.job(teachers, student, choose_device(self.device))

    def score(self, index: int) -> dict[str, Any]:
        """Scores and writes shard `index`, and returns its entry for the manifest."""
        records = self.utterances.read(index)
        with self.scoring:
            torch.set_num_threads(self.threads)  # holds for the calling thread only
            self.done[index] = 0, 0.0
            (shard,) = self.scorer.run([(index, records)], lambda *counts: self._add_progress(index, *counts))
        entry = write_scored(self.request.out, self.request.settings.format, shard, self.utterances)
        del self.done[index]
        return entry

    def _add_progress(self, index: int, utterances: int, seconds: float) -> None:
        before = self.done[index]
        self.done[index] = before[0] + utterances, before[1] + seconds

    def progress(self) -> dict[int, tuple[int, float]]:
        """Returns utterances and seconds of audio done, for each shard that is being scored."""
        return dict(self.done)
