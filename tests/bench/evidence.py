"""Runs what docs/results.md rests on: teachers, caches and students of every method, several amounts of data and seeds.

    python tests/bench/evidence.py --out evidence --records docs/evidence.jsonl      # goes on where it was stopped
    python tests/bench/evidence.py --only 'half/*' --cores 1                         # a part of the plan, on one core
    python tests/bench/evidence_tables.py docs/evidence.jsonl                        # the tables so far

Run it in a folder with params.yaml where `pipeline prepare --lang cs` has run (and for Dutch `pipeline --set
languages.nl.corpus.corpus=fish-fillets prepare --lang nl`). Each run has one core. It is recorded as it ends: its settings,
its steps, and for a system the errors of every test line, which paired intervals need. A record is never made again. A
learning rate is the one of the plan's with the lowest validation WER after 96 steps with a seed that is not used again.
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from common import cpu_name
from evidence_plan import LANGUAGE, RATES, STEPS, Step, cache_name, plan, teacher_name

from cache.errors import PipelineError
from cache.files import read_jsonl
from cache.records import TARGET_COUNTS
from stages.shared.whisper.device import compute_dtype

KEPT = ("words", "word_errors", "characters", "character_errors")  # of each test line
OF_TRAINING = ("steps", "best_step", "training_utterances", "parameters")
VALIDATE_EVERY = 125


def main() -> None:
    args = _arguments()
    steps = [step for step in plan() if fnmatch.fnmatch(step.name, args.only)]
    if args.list:
        done = Records(args.records).done()
        print("\n".join(f"{'done   ' if step.name in done else 'to do  '}{step.name}" for step in steps))
        return
    cores = sorted(os.sched_getaffinity(0))[: args.cores]
    queue = Queue(steps, Records(args.records))
    threads = [threading.Thread(target=_work, args=(args, queue, core)) for core in cores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if unmade := [step.name for step in steps if step.name not in queue.records.done()]:
        sys.exit(f"{len(unmade)} of {len(steps)} steps have no record, see {args.out}/logs: {', '.join(unmade)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("evidence"), help="folder of models, caches and metrics")
    parser.add_argument("--records", type=Path, default=Path("evidence.jsonl"), help="file of what has ended")
    parser.add_argument("--only", default="*", help="names of steps, such as 'half/*'")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="how many are used, a run on each")
    parser.add_argument("--list", action="store_true", help="say what is done and what is to do, and run nothing")
    return parser.parse_args()


class Records:
    """The file of finished steps. A line is written at once, whole."""

    def __init__(self, path: Path):
        self.path = path

    def done(self) -> dict[str, dict[str, Any]]:
        return {record["name"]: record for record in read_jsonl(self.path)} if self.path.exists() else {}

    def add(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


class Queue:
    """Gives each worker the first step whose needs have been met."""

    def __init__(self, steps: list[Step], records: Records):
        self.records, self.lock = records, threading.Lock()
        self.left = [step for step in steps if step.name not in records.done()]
        self.running: set[str] = set()

    def take(self) -> Step | None:
        """Returns a step, None where none is left that can be made. Waits for the needs of the others."""
        while True:
            with self.lock:
                done = self.records.done()
                for step in self.left:
                    if all(need in done for need in step.needs):
                        self.left.remove(step)
                        self.running.add(step.name)
                        return step
                if not any(need in self.running for step in self.left for need in step.needs):
                    return None
            time.sleep(2)

    def end(self, step: Step, record: dict[str, Any] | None) -> None:
        with self.lock:
            if record is not None:
                self.records.add(record)
            self.running.remove(step.name)


def _work(args: argparse.Namespace, queue: Queue, core: int) -> None:
    while step := queue.take():
        started = time.monotonic()
        record = None
        try:
            facts = _run(args, step, core, queue.records.done())
            machine = f"{cpu_name()}, torch {torch.__version__}, one core, {_precision()}"
            record = {"name": step.name, "seconds": round(time.monotonic() - started), "machine": machine, **facts}
        except subprocess.CalledProcessError as error:
            print(f"{step.name}: ended with {error.returncode}", flush=True)
        except PipelineError as error:
            print(f"{step.name}: {error}", flush=True)
        queue.end(step, record)


def _precision() -> str:
    return str(compute_dtype("auto", torch.device("cpu"))).removeprefix("torch.")


def _run(args: argparse.Namespace, step: Step, core: int, done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    print(f"{step.name}: begins", flush=True)
    train = {**step.train}
    if step.rate_of:
        rates = {rate: done[f"rates/{step.rate_of}/{rate:g}"]["validation_wer"] for rate in RATES[step.rate_of]}
        train["learning_rate"] = min(rates, key=lambda rate: rates[rate])
    if step.kind in ("teacher", "cache"):
        command = "adapt-teacher" if step.kind == "teacher" else "teacher-cache"
        _pipeline(args, step, core, {}, command, "--update")
        return {"settings": step.settings}
    facts: dict[str, Any] = {"settings": {**step.settings, **train}, "seed": step.seed}
    if step.kind in ("search", "student"):
        wanted = {"max_steps": STEPS, "validate_every": VALIDATE_EVERY, "seed": step.seed, "save_every": 64, **train}
        _pipeline(args, step, core, wanted, "train-student", "--method", step.method, "--update")
        found = json.loads((_models(args, step) / step.language / step.method / "training.json").read_text())
        _check(step, wanted, found)
        facts |= {name: found[name] for name in (*OF_TRAINING, *TARGET_COUNTS.values())}
        facts["validation_wer"] = found["best_validation_wer"]
    if step.kind in ("system", "student"):
        on = f"@{step.corpus}" if step.corpus else ""
        _pipeline(args, step, core, {}, "evaluate", "--system", step.method, *(("--corpus", on[1:]) if on else ()))
        facts["test"] = _test(_metrics(args, step) / step.language / f"{step.method}{on}.utterances.jsonl")
    return facts


def _check(step: Step, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Raises PipelineError where a value of params.yaml stood in for one of the plan's."""
    used = {name: found["settings"].get(name, value) for name, value in wanted.items()}
    if used != wanted:
        raise PipelineError(f"trained with {used}, expected {wanted}")
    if step.teacher and step.cache == cache_name(step.teacher, "transcripts", LANGUAGE) and found["teacher_targets"]:
        raise PipelineError(f"{found['teacher_targets']} targets are the teacher's words, expected transcripts alone")


def _models(args: argparse.Namespace, step: Step) -> Path:
    """Returns the folder of the step's models; for a student in another language with a link to it."""
    if step.of:
        models = args.out / step.of / "models"
        link, target = models / step.language / step.method, models / LANGUAGE / step.method
        if not link.exists():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(target.resolve())
        return models
    of_teacher = step.kind in ("teacher", "cache") or (step.kind == "system" and step.teacher)
    name = teacher_name(step.teacher, step.language).rpartition("/")[0] if of_teacher else step.name
    return args.out / name if of_teacher else args.out / name / "models"


def _metrics(args: argparse.Namespace, step: Step) -> Path:
    return args.out / step.name / "metrics"


def _test(rows: Path) -> dict[str, list]:
    """Returns each line's counts, by the lines' ids in order."""
    found = sorted(read_jsonl(rows), key=lambda row: row["id"])
    return {"id": [row["id"] for row in found], **{name: [row[name] for row in found] for name in KEPT}}


def _pipeline(args: argparse.Namespace, step: Step, core: int, train: dict[str, Any], *command: str) -> None:
    """Runs a command of the pipeline on one core. Its output goes to a file of the step."""
    cache = step.name if step.kind == "cache" else step.cache
    settings = {
        **step.settings,
        **{f"train.{name}": value for name, value in train.items()},
        "paths.models": _models(args, step),
        "paths.metrics": _metrics(args, step),
        **({"paths.teacher": args.out / cache.rpartition("/")[0]} if cache else {}),
        **({f"languages.{step.language}.corpus.corpus": "fish-fillets"} if step.language != LANGUAGE else {}),
        **({f"further_tests.{step.corpus}.corpus": "fish-fillets"} if step.corpus else {}),
    }
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    whole = [sys.executable, "-m", "pipeline", *given, *command, "--lang", step.language]
    log = args.out / "logs" / f"{step.name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        pinned = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "preexec_fn": lambda: os.sched_setaffinity(0, {core})}
        subprocess.run(whole, check=True, stdout=file, stderr=subprocess.STDOUT, **pinned)  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
