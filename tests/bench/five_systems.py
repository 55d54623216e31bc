"""All methods on the same part of the scenes, for the same training time, over several seeds; with base and teacher.

    python tests/bench/five_systems.py --minutes 5 --search-minutes 2 --seeds 3

Run it where `make demo` has run: it takes that run's utterances, teacher and teacher shards, and writes to --out; what is
there already is not made again. Each run has one core, as many at once as there are (Linux). A method's steps are the
minutes over its own time for a step, measured first. Its learning rate is the one of RATES with the lowest validation WER
after --search-minutes with a seed that is not used again; clsr-kd takes that of clsr. Intervals are paired bootstraps over
utterances (95 %); a method's errors are summed over its seeds before that.

What a method that has one set of weights for all languages forgets: with --other nl, `full` and `lora` also transcribe that
language's test lines, after `pipeline --set languages.nl.corpus.corpus=fish-fillets prepare --lang nl`. Experts leave every
other language as it was, bit for bit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from statistics import mean, median

import torch
from common import cpu_name

from cache.files import read_jsonl
from cache.shards import ShardReader
from pipeline.params import load_params
from stages.shared.scoring import RATES as ERROR_RATES
from stages.shared.scoring import interval, paired_interval, totals
from stages.shared.whisper.device import compute_dtype, keep_freed_memory, round_weights
from stages.shared.whisper.models import load_whisper
from stages.train_student.data import TrainingData
from stages.train_student.loop import TrainingLoop
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee

CPU = torch.device("cpu")
LANGUAGE = "cs"
METHODS = ("full", "lora", "clsr", "clsr-kd")
RATES = {"full": (2e-5, 4e-5, 1e-4, 2e-4), "lora": (5e-4, 1e-3, 2e-3), "clsr": (3e-5, 1e-4, 3e-4, 1e-3)}
SEARCH_SEED = 99
FORGETFUL = ("full", "lora")  # change what other languages meet
TIMED = 9  # steps of each method


def main() -> None:
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{cpu_name()}, torch {torch.__version__}", flush=True)
    seconds = _seconds(args)
    steps = {method: round(60 * args.minutes / value) for method, value in seconds.items()}
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    with ThreadPoolExecutor(cores.qsize()) as pool:
        rates = _searched(args, pool, cores, seconds)
        runs = [pool.submit(_evaluated, args, cores, 0, system) for system in ("base", "teacher")]
        runs += [
            pool.submit(_made, args, cores, seed, method, steps[method], rates[method])
            for seed in range(args.seeds)
            for method in METHODS
        ]
        runs += [pool.submit(_evaluated, args, cores, 0, "base", other) for other in args.other]
        for run in runs:
            run.result()
        for run in [
            pool.submit(_elsewhere, args, cores, seed, method, other)
            for other in args.other
            for seed in range(args.seeds)
            for method in FORGETFUL
        ]:
            run.result()
    _print(args, steps)
    for other in args.other:
        _print_other(args, other)


def _searched(
    args: argparse.Namespace, pool: ThreadPoolExecutor, cores: Queue, seconds: dict[str, float]
) -> dict[str, float]:
    """Each method's learning rate."""
    tried = {
        (method, rate): pool.submit(
            _tried, args, cores, method, rate, round(60 * args.search_minutes / seconds[method])
        )
        for method, rates in RATES.items()
        for rate in rates
    }
    wers = {key: run.result() for key, run in tried.items()}
    chosen = {method: min(rates, key=lambda rate: wers[method, rate]) for method, rates in RATES.items()}
    for (method, rate), wer in wers.items():
        print(f"{method} at {rate:g}: validation WER {100 * wer:.1f} %", flush=True)
    return {**chosen, "clsr-kd": chosen["clsr"]}


def _tried(args: argparse.Namespace, cores: Queue, method: str, rate: float, steps: int) -> float:
    """The validation WER."""
    models = args.out / "rates" / f"{rate:g}"
    finished = models / LANGUAGE / method / "training.json"
    if not finished.exists():
        with _core(cores) as core:
            _train(args, core, models, method, SEARCH_SEED, steps, rate)
    return json.loads(finished.read_text())["best_validation_wer"]


def _made(args: argparse.Namespace, cores: Queue, seed: int, method: str, steps: int, rate: float) -> None:
    if not _metrics(args, seed, method).exists():
        with _core(cores) as core:
            _train(args, core, args.out / f"models-{seed}", method, seed, steps, rate)
        _evaluated(args, cores, seed, method)


def _evaluated(args: argparse.Namespace, cores: Queue, seed: int, system: str, language: str = LANGUAGE) -> None:
    if not _metrics(args, seed, system, language).exists():
        models = Path("models") if system == "teacher" else args.out / f"models-{seed}"
        with _core(cores) as core:
            _pipeline(args, core, models, seed, language, "evaluate", "--system", system)


def _elsewhere(args: argparse.Namespace, cores: Queue, seed: int, method: str, other: str) -> None:
    """The model of LANGUAGE on another one."""
    models = (args.out / f"models-{seed}").resolve()
    link = models / other / method
    link.parent.mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to(models / LANGUAGE / method)
    _evaluated(args, cores, seed, method, other)


@contextmanager
def _core(cores: Queue) -> Iterator[int]:
    """The next one that is free."""
    core = cores.get()
    try:
        yield core
    finally:
        cores.put(core)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="of training, of each run")
    parser.add_argument("--search-minutes", type=float, default=2, help="of training, for each learning rate tried")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fraction", type=float, default=0.25, help="of the training scenes")
    parser.add_argument("--other", action="append", default=[], help="a language whose test lines were prepared, too")
    parser.add_argument("--out", type=Path, default=Path("five-systems"))
    return parser.parse_args()


def _seconds(args: argparse.Namespace) -> dict[str, float]:
    """Of a step, by method: medians of steps that alternate, on the same batches. Measured once for a folder."""
    path = args.out / "seconds.json"
    if not path.exists():
        torch.set_num_threads(1)
        keep_freed_memory()
        with tempfile.TemporaryDirectory() as folder:
            steps = {method: _steps(method, Path(folder)) for method in METHODS}
            times = [{method: _timed(steps[method]) for method in METHODS} for _ in range(1 + TIMED)][1:]
        seconds = {method: median(each[method] for each in times) for method in METHODS}
        print("seconds of a step:", {method: round(value, 2) for method, value in seconds.items()}, flush=True)
        path.write_text(json.dumps(seconds))
    return json.loads(path.read_text())


def _timed(steps: Iterator[None]) -> float:
    started = time.perf_counter()
    next(steps)
    return time.perf_counter() - started


def _steps(method: str, folder: Path) -> Iterator[None]:
    """Training steps, each made when it is asked for."""
    params = load_params(Path("params.yaml"), {})
    settings = TrainSettings(**{**params.train.model_dump(), "max_steps": 1000})
    whisper, dtype = load_whisper(params.student, params.audio_window_s), compute_dtype(settings.dtype, CPU)
    trainee = Trainee(whisper, method, LANGUAGE, settings)
    round_weights(trainee.whisper.model, dtype)
    utterances = ShardReader(params.paths.utterances / LANGUAGE / "train", "utterances")
    teacher = ShardReader(params.paths.teacher / LANGUAGE / "train", "teacher") if method == "clsr-kd" else None
    data = TrainingData(utterances, teacher, whisper, LANGUAGE, settings)
    run = TrainingLoop(trainee, data, settings, dtype, folder, dict, print)
    for number, batches in enumerate(run._steps(0)):
        run._step(batches, number)
        yield


def _metrics(args: argparse.Namespace, seed: int, system: str, language: str = LANGUAGE) -> Path:
    return args.out / f"metrics-{seed}" / language / f"{system}.json"


def _train(args: argparse.Namespace, core: int, models: Path, method: str, seed: int, steps: int, rate: float) -> None:
    given = {"--method": method, "--seed": seed, "--max-steps": steps, "--learning-rate": rate}
    _pipeline(
        args, core, models, seed, LANGUAGE, "train-student", *(str(part) for pair in given.items() for part in pair)
    )


def _pipeline(args: argparse.Namespace, core: int, models: Path, seed: int, language: str, *command: str) -> None:
    settings = {
        "paths.models": models,
        "paths.metrics": f"{args.out}/metrics-{seed}",
        "train.train_fraction": args.fraction,
        "train.validate_every": 10**6,  # at the end alone: it takes time, too
    }
    if language != LANGUAGE:
        settings[f"languages.{language}.corpus.corpus"] = "fish-fillets"
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    whole = [sys.executable, "-m", "pipeline", *given, *command, "--lang", language]
    subprocess.run(whole, check=True, preexec_fn=lambda: os.sched_setaffinity(0, {core}))


def _rows(args: argparse.Namespace, system: str, seeds: int, language: str = LANGUAGE) -> list[dict]:
    """Each utterance's counts, summed over the seeds."""
    paths = [_metrics(args, seed, system, language).with_suffix(".utterances.jsonl") for seed in range(seeds)]
    runs = [{row["id"]: row for row in read_jsonl(path)} for path in paths]
    counted = {name for columns in ERROR_RATES.values() for name in columns} | {
        "hits",
        "substitutions",
        "deletions",
        "insertions",
    }
    return [{"id": id, **{name: sum(run[id][name] for run in runs) for name in counted}} for id in runs[0]]


def _print(args: argparse.Namespace, steps: dict[str, int]) -> None:
    many = args.seeds
    rows = {system: _rows(args, system, many) for system in METHODS}
    rows |= {system: _as_often(_rows(args, system, 1), many) for system in ("base", "teacher")}
    print(
        "| system | steps | WER % (95 %) | of each seed | CER % | points against base |\n| --- | --- | --- | --- | --- | --- |"
    )
    for system in ("base", "teacher", *METHODS):
        found, (low, high) = totals(rows[system]), interval(rows[system])
        seeds = [_wer(args, seed, system) for seed in range(many)] if system in METHODS else []
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
    spread = mean(max(w) - min(w) for w in ([_wer(args, s, m) for s in range(many)] for m in METHODS))
    print(f"between the seeds of a method: {100 * spread:.1f} points on average, greatest less least")


def _as_often(rows: list[dict], many: int) -> list[dict]:
    """What has one run, as often as the others have seeds, so that the counts of a pair belong together."""
    return [{key: value if key == "id" else many * value for key, value in row.items()} for row in rows]


def _print_other(args: argparse.Namespace, other: str) -> None:
    base = _rows(args, "base", 1, other)
    print(f"{other}: base {100 * totals(base)['wer']:.1f} % of {totals(base)['words']} words", end="")
    for method in FORGETFUL:
        rows = _rows(args, method, args.seeds, other)
        change = _points(rows, _as_often(base, args.seeds))
        print(f"; {method} {100 * totals(rows)['wer']:.1f} %, {change} points", end="")
    print()


def _wer(args: argparse.Namespace, seed: int, system: str) -> float:
    return json.loads(_metrics(args, seed, system).read_text())["wer"]


def _points(a: list[dict], b: list[dict]) -> str:
    value, low, high = paired_interval(a, b)
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    main()
