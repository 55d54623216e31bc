"""What the measurements share: real shards, ratios of runs that alternate, and the machine they ran on."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cache.shards import ShardReader
from stages.shared.whisper.device import keep_freed_memory, use_all_cores
from stages.shared.whisper.models import Whisper, load_whisper


def arguments(text: str, **options: tuple) -> argparse.Namespace:
    """`options`: name=(default, help). All scripts know --utterances, --model, --window and --shards."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--utterances", type=Path, default=Path("data/utterances/cs/train"), help="made by prepare")
    parser.add_argument("--model", default="openai/whisper-base")
    parser.add_argument("--window", type=int, default=5, help="seconds")
    parser.add_argument("--shards", type=int, default=1, help="how many of the folder's shards are used")
    for name, (default, help_) in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=help_)
    return parser.parse_args()


def begin(args: argparse.Namespace) -> tuple[Whisper, list[list[dict]]]:
    """The model, and the utterances of each shard that fit its window."""
    use_all_cores()
    keep_freed_memory()
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    reader = ShardReader(args.utterances, "utterances")
    shards = [reader.read(index) for index in range(min(args.shards, len(reader.shards)))]
    kept = [[row for row in shard if row["seconds"] <= args.window] for shard in shards]
    return load_whisper(args.model, args.window), kept


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def alternate(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round; one after the other in every round, so that all meet the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
            print(f"round {number + 1}: {name}: {seconds[name][-1]:.2f} s", flush=True)
    return seconds


def ratio(seconds: dict[str, list[float]], above: str, below: str) -> str:
    """Median over the rounds of `above` / `below`, with the extremes."""
    ratios = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
    return f"{above} / {below}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
