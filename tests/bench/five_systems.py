"""All methods on the same part of the scenes, for the same training time, over several seeds; with base and teacher.

    python tests/bench/five_systems.py --minutes 3 --seeds 3

Run it where `make demo` has run: it takes that run's utterances, teacher and teacher shards, and writes to --out; what is
there already is not made again. Each run has one core, as many at once as there are (Linux). A method's steps are the
minutes over its own time for a step, measured first. Intervals are paired bootstraps over utterances (95 %); a method's
errors are summed over its seeds before that.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from statistics import mean

import torch
from common import cpu_name

from cache.files import read_jsonl
from cache.shards import ShardReader
from pipeline.params import load_params
from stages.scoring import RATES, interval, paired_interval, totals
from stages.train_student.data import TrainingData
from stages.train_student.loop import Run
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee
from stages.whisper.models import compute_dtype, keep_freed_memory, load_whisper, round_weights

CPU = torch.device("cpu")
LANGUAGE = "cs"
RATE = {"full": 4e-5, "lora": 1e-3, "clsr": 1e-4, "clsr-kd": 1e-4}
TIMED = 6  # steps


def main() -> None:
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{cpu_name()}, torch {torch.__version__}", flush=True)
    steps = _steps(args)
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    with ThreadPoolExecutor(cores.qsize()) as pool:
        runs = [pool.submit(_made, args, cores, 0, system, 0) for system in ("base", "teacher")]
        runs += [
            pool.submit(_made, args, cores, seed, name, steps[name]) for seed in range(args.seeds) for name in RATE
        ]
        for run in runs:
            run.result()
    _print(args, steps)


def _made(args: argparse.Namespace, cores: Queue, seed: int, system: str, steps: int) -> None:
    """Trains where there is something to train, and evaluates; on the next core that is free."""
    if _metrics(args, seed, system).exists():
        return
    core = cores.get()
    try:
        if steps:
            given = {"--method": system, "--seed": seed, "--max-steps": steps, "--learning-rate": RATE[system]}
            _pipeline(args, core, seed, "train-student", *(str(part) for pair in given.items() for part in pair))
        _pipeline(args, core, seed, "evaluate", "--system", system)
    finally:
        cores.put(core)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3, help="of training, of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fraction", type=float, default=0.25, help="of the training scenes")
    parser.add_argument("--out", type=Path, default=Path("five-systems"))
    return parser.parse_args()


def _steps(args: argparse.Namespace) -> dict[str, int]:
    """By method; measured once for a folder."""
    path = args.out / "steps.json"
    if not path.exists():
        seconds = {method: _seconds_of_a_step(method) for method in RATE}
        print("seconds of a step:", {method: round(value, 2) for method, value in seconds.items()}, flush=True)
        path.write_text(json.dumps({method: round(60 * args.minutes / value) for method, value in seconds.items()}))
    return json.loads(path.read_text())


def _seconds_of_a_step(method: str) -> float:
    torch.set_num_threads(1)
    keep_freed_memory()
    params = load_params(Path("params.yaml"), {})
    settings = TrainSettings(**{**params.train.model_dump(), "max_steps": 1000})
    whisper, dtype = load_whisper(params.student, params.audio_window_s), compute_dtype(settings.dtype, CPU)
    trainee = Trainee(whisper, method, LANGUAGE, settings)
    round_weights(trainee.whisper.model, dtype)
    utterances = ShardReader(params.paths.utterances / LANGUAGE / "train", "utterances")
    teacher = ShardReader(params.paths.teacher / LANGUAGE / "train", "teacher") if method == "clsr-kd" else None
    data = TrainingData(utterances, teacher, whisper, LANGUAGE, settings)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(trainee, data, settings, 1e-5, dtype, Path(folder), dict, print)
        steps = run._steps(0)
        run._step(next(steps), 0)
        started = time.perf_counter()
        for number in range(TIMED):
            run._step(next(steps), number)
    return (time.perf_counter() - started) / TIMED


def _metrics(args: argparse.Namespace, seed: int, system: str) -> Path:
    return args.out / f"metrics-{seed}" / LANGUAGE / f"{system}.json"


def _pipeline(args: argparse.Namespace, core: int, seed: int, *command: str) -> None:
    settings = {
        "paths.models": "models" if command[-1] == "teacher" else f"{args.out}/models-{seed}",
        "paths.metrics": f"{args.out}/metrics-{seed}",
        "train.train_fraction": args.fraction,
        "train.validate_every": 10**6,  # at the end alone: it takes time, too
    }
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    whole = [sys.executable, "-m", "pipeline", *given, *command, "--lang", LANGUAGE]
    subprocess.run(whole, check=True, preexec_fn=lambda: os.sched_setaffinity(0, {core}))


def _rows(args: argparse.Namespace, system: str, seeds: int) -> list[dict]:
    """Each utterance's counts, summed over the seeds."""
    paths = [_metrics(args, seed, system).with_suffix(".utterances.jsonl") for seed in range(seeds)]
    runs = [{row["id"]: row for row in read_jsonl(path)} for path in paths]
    counted = {name for columns in RATES.values() for name in columns} | {
        "hits",
        "substitutions",
        "deletions",
        "insertions",
    }
    return [{"id": id, **{name: sum(run[id][name] for run in runs) for name in counted}} for id in runs[0]]


def _print(args: argparse.Namespace, steps: dict[str, int]) -> None:
    many = args.seeds
    # the base has one run: taken as often as there are seeds, so that the counts of a pair belong together
    rows = {system: _rows(args, system, many) for system in RATE}
    once = {system: _rows(args, system, 1) for system in ("base", "teacher")}
    rows |= {
        system: [{k: v if k == "id" else many * v for k, v in row.items()} for row in own]
        for system, own in once.items()
    }
    print(
        "| system | steps | WER % (95 %) | of each seed | CER % | points against base |\n| --- | --- | --- | --- | --- | --- |"
    )
    for system in ("base", "teacher", *RATE):
        found, (low, high) = totals(rows[system]), interval(rows[system])
        seeds = [_wer(args, seed, system) for seed in range(many)] if system in RATE else []
        each = ", ".join(f"{100 * wer:.1f}" for wer in seeds)
        change = "" if system == "base" else _points(rows[system], rows["base"])
        wer = f"{100 * found['wer']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        print(f"| {system} | {steps.get(system, '')} | {wer} | {each} | {100 * found['cer']:.1f} | {change} |")
    for one, other in (
        ("clsr-kd", "clsr"),
        ("clsr-kd", "full"),
        ("clsr-kd", "lora"),
        ("clsr", "full"),
        ("lora", "full"),
    ):
        print(f"{one} against {other}: {_points(rows[one], rows[other])} points")
    spread = mean(max(w) - min(w) for w in ([_wer(args, s, m) for s in range(many)] for m in RATE))
    print(f"between the seeds of a method: {100 * spread:.1f} points on average, greatest less least")


def _wer(args: argparse.Namespace, seed: int, system: str) -> float:
    return json.loads(_metrics(args, seed, system).read_text())["wer"]


def _points(a: list[dict], b: list[dict]) -> str:
    value, low, high = paired_interval(a, b)
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    main()
