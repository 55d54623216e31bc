"""The workers of a Ray cluster, and the shards that each of them holds."""

import contextlib
import shlex
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import storage
from cache.errors import PipelineError
from cache.resume import differences
from cache.shards import ShardReader
from stages.teacher_cache.shard import ReportProgress
from stages.teacher_cache.worker import ScoringRequest, Worker

DEATHS = 3  # so many deaths of workers on one shard end the run
POLL_S = 2.0
ANNOUNCE_S = 60.0  # between two lines that no worker is ready
CHECKOUT = Path(__file__).parents[2]

Print = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    workers: int
    cpus: int  # of each
    gpus: int  # of each: 0 or 1


class Pool:
    """Starts workers and gives them shards. All workers are stopped at the end of the context."""

    def __init__(self, ray: Any, request: ScoringRequest, plan: Plan, device: str, say: Print):
        self.ray, self.plan, self.say = ray, plan, say
        options = {
            "num_cpus": plan.cpus,
            "num_gpus": plan.gpus,
            "max_concurrency": 3,  # two shards and one question about progress
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": _environment(plan.cpus), **_python()},
        }
        device = "cuda" if device == "auto" and plan.gpus else "cpu" if device == "auto" else device
        models = tuple(map(_absolute, request.teachers)), _absolute(request.student)
        self._start = lambda: (
            ray.remote(Worker).options(**options).remote(request.absolute(), *models, device, plan.cpus)
        )
        self.workers: list[Any] = []  # all workers that are not known to be dead
        self.ready: list[Any] = []  # workers that have loaded the teacher
        self.calls: dict[Any, tuple[Any, int | None]] = {}  # call -> worker and shard; None: it loads the teacher
        self.waiting: deque[int] = deque()
        self.deaths: Counter[int | None] = Counter()
        self.counted: dict[int, tuple[int, float]] = {}
        self.polled = time.monotonic()

    def __enter__(self) -> "Pool":
        for _ in range(self.plan.workers):
            self._add()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            self.ray.kill(worker)

    def _add(self) -> None:
        worker = self._start()
        self.workers.append(worker)
        self.calls[worker.open.remote()] = worker, None

    def open(self, utterances: ShardReader) -> dict[str, Any]:
        """Waits for the first worker and returns the provenance that it found."""
        announced = time.monotonic()
        while True:
            for worker, _, provenance in self._results():
                self.provenance = {**provenance, "utterances": utterances.fingerprint()}
                self._admit(worker, provenance)
                return provenance
            if time.monotonic() - announced > ANNOUNCE_S:
                announced = time.monotonic()
                self.say("Ray: no worker is ready yet: they wait for room on the cluster, or load the teacher")

    def run(self, shards: list[int], report_progress: ReportProgress) -> Iterator[dict[str, Any]]:
        """Yields the entries of the shards as they are finished."""
        self.waiting, self.report_progress = deque(shards), report_progress
        while self.waiting or any(index is not None for _, index in self.calls.values()):
            self._assign()
            for worker, index, result in self._results():
                if index is None:
                    self._admit(worker, result)
                else:
                    self._count(index, result["rows"], result["seconds"])
                    yield result
            self._poll()

    def _assign(self) -> None:
        """Gives each worker a shard, then a second one while there are enough for all.

        A shard that has killed a worker is scored alone, so that the next crash can be blamed on it.
        """
        for held in (0, 1):
            for worker in self.ready:
                have = [index for other, index in self.calls.values() if other is worker]
                if not self.waiting or len(have) != held:
                    continue
                suspect = any(self.deaths[index] for index in [*have, self.waiting[0]])
                if not held or (len(self.waiting) >= len(self.ready) and not suspect):
                    index = self.waiting.popleft()
                    self.calls[worker.score.remote(index)] = worker, index

    def _results(self) -> Iterator[tuple[Any, int | None, Any]]:
        """Yields worker, shard and result of each call that has ended. Waits at most POLL_S for one."""
        errors = self.ray.exceptions
        dead = errors.RayActorError, errors.OutOfMemoryError, errors.NodeDiedError, errors.ObjectLostError
        ready, _ = self.ray.wait(list(self.calls), timeout=POLL_S)
        for call in ready:
            worker, index = self.calls.pop(call)
            try:
                result = self.ray.get(call)
            except dead as error:
                self._replace_dead(worker, index, error)
            except errors.RayTaskError as error:
                raise _cause(error) from None
            except errors.RayError as error:
                raise PipelineError(f"Ray: {last_line(error)}") from None
            else:
                yield worker, index, result

    def _admit(self, worker: Any, provenance: dict[str, Any]) -> None:
        if differing := differences(provenance, self.provenance):
            raise PipelineError(
                f"the workers differ ({differing}), and so would their shards: every machine must see the same files, "
                "and give teacher_cache.dtype where their processors differ"
            )
        self.ready.append(worker)
        self.deaths[None] = 0

    def _replace_dead(self, worker: Any, index: int | None, error: Exception) -> None:
        """Starts another worker. The dead one's shards go to the worker that is free first."""
        if worker in self.workers:
            self.workers.remove(worker)
            self.ready = [other for other in self.ready if other is not worker]
            self.ray.kill(worker)  # it may only have been out of reach
            self._add()
        self.deaths[index] += 1
        what = "loaded the teacher" if index is None else f"had shard {index}"
        if self.deaths[index] == DEATHS:
            raise PipelineError(
                f"{DEATHS} workers died while they {what} ({last_line(error)}); what is done is kept: the same command goes on"
            )
        self.say(f"a worker died while it {what}; another one does it again")
        if index is not None:
            self._count(index, 0, 0.0)
            self.waiting.appendleft(index)

    def _poll(self) -> None:
        """Asks the workers every POLL_S seconds how far their shards are."""
        if time.monotonic() - self.polled < POLL_S or not self.ready:
            return
        asked = [worker.progress.remote() for worker in self.ready]
        for call in self.ray.wait(asked, num_returns=len(asked), timeout=POLL_S)[0]:
            with contextlib.suppress(self.ray.exceptions.RayError):  # its other calls raise when it dies
                for index, counts in self.ray.get(call).items():
                    self._count(index, *counts)
        self.polled = time.monotonic()

    def _count(self, index: int, utterances: int, seconds: float) -> None:
        before = self.counted.get(index, (0, 0.0))
        self.counted[index] = utterances, seconds
        self.report_progress(utterances - before[0], seconds - before[1])


def _environment(cpus: int) -> dict[str, str]:
    """Returns the workers' environment: their threads and, if this runs from a checkout, its modules."""
    modules = {"PYTHONPATH": f"{CHECKOUT}:${{PYTHONPATH}}"} if (CHECKOUT / "pyproject.toml").exists() else {}
    return {"OMP_NUM_THREADS": str(cpus), **modules}


def _python() -> dict[str, str]:
    """Returns Python's path quoted for the shell, if it needs quotes: Ray puts it unquoted into a shell command."""
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def _absolute(model_id: str) -> str:
    """Returns a model's folder as an absolute path. A hub id stays as it is."""
    folder = storage.home(model_id)
    return str(folder.absolute()) if folder.is_dir() else model_id


def _cause(error: Any) -> Exception:
    """Returns the worker's own error if the user can mend it, else `error`, with the worker's traceback."""
    cause = error.cause
    if isinstance(cause, OSError) and cause.errno is not None:
        return PipelineError(f"on {error.ip} {cause.filename or 'file system'}: {cause.strerror}")
    return cause if isinstance(cause, PipelineError) else error


def last_line(error: Exception) -> str:
    """Returns the last line of an error, at most 200 characters: Ray's errors fill pages, the reason comes last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if len(lines[-1]) <= 200 else lines[-1][:197] + "..."
