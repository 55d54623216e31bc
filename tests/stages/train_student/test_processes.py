"""Training on several processes: the steps of one process with their batches together, stopped and resumed bit for bit."""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import make_teacher_shards, make_utterance_shards
from sources import ROOT
from training import train_one

from cache.errors import PipelineError
from cache.shards import ShardReader
from stages.shared.whisper import features
from stages.shared.whisper.models import load_whisper
from stages.train_student import run as run_module
from stages.train_student.data import TrainingData
from stages.train_student.processes import Processes, join_processes
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee

CPU = torch.device("cpu")
QUIET = dict(skip_gate=0, gate_noise=0, expert_dropout=0)


def _child(function: Callable, rank: int, count: int, port: int, results: multiprocessing.Queue) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    try:
        results.put((rank, function(join_processes(CPU))))
    except BaseException as error:
        results.put((rank, f"{type(error).__name__}: {error}"))


def together(function: Callable[[Processes], object], count: int = 2) -> list:
    """What `function` returns on each of `count` gloo processes, or the error it raised there; forks have all imported."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=_child, args=(function, rank, count, port, results)) for rank in range(count)]
    for child in children:
        child.start()
    found = dict(results.get(timeout=120) for _ in children)
    for child in children:
        child.join()
    return [found[rank] for rank in range(count)]


def train(base: Path, method: str, utterances: Path, out: Path, teacher: Path | None, processes: Processes, **changes):
    progress = changes.pop("progress", lambda *_: None)
    whisper = load_whisper(str(base), 1)
    chosen = dict(epochs=3, batch_size=2, accumulate=2, learning_rate=3e-3, dtype="fp32", log_every=1, max_validation=3)
    settings = TrainSettings(**{**chosen, **changes})
    return train_one(
        whisper, method, "cs", utterances, teacher, out, settings, CPU, progress=progress, processes=processes
    )


def curve(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def teacher(utterances: Path, tiny_whisper: Path, tmp_path: Path) -> Path:
    return make_teacher_shards(tmp_path / "teacher", utterances / "train", load_whisper(str(tiny_whisper), 1))


def test_sums_over_processes():
    """Bucket by bucket, of gradients that are there on all processes, on one alone and on none."""

    def sums(processes: Processes) -> tuple:
        torch.manual_seed(processes.rank)
        parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 5, 2, 4)]
        parameters[2].requires_grad_(False)
        for number, parameter in enumerate(parameters):
            if number in ((0, 1, 3), (0, 3))[processes.rank]:
                parameter.grad = torch.full_like(parameter, 10.0 * number + processes.rank + 1)
        processes.sum_gradients(parameters)
        values = processes.sum([1.0 + processes.rank, 10.0]), processes.others([1.0 + processes.rank])
        stacked = processes.stack(torch.tensor([processes.rank, 7])).tolist()
        on_main = processes.on_main(lambda: f"said by {processes.rank}")
        return [None if p.grad is None else p.grad.tolist() for p in parameters], values, stacked, on_main

    first, second = together(sums)
    assert first[0] == second[0] == [[3.0] * 3, [11.0] * 5, None, [63.0] * 4]
    assert (first[1], second[1]) == (([3.0, 20.0], [2.0]), ([3.0, 20.0], [1.0]))
    assert first[2] == second[2] == [[0, 7], [1, 7]]
    assert first[3] == second[3] == "said by 0"


def test_buckets_hold_every_gradient_once(monkeypatch):
    from stages.train_student import processes as module

    monkeypatch.setattr(module, "BUCKET", 10)
    gradients = [
        torch.zeros(size, dtype=dtype) for size in (4, 6, 30, 1, 1) for dtype in (torch.float32, torch.float16)
    ]
    buckets = list(module._buckets(gradients))
    assert sorted(id(one) for bucket in buckets for one in bucket) == sorted(map(id, gradients))
    assert all(len({one.dtype for one in bucket}) == 1 for bucket in buckets)
    assert all(len(bucket) == 1 or sum(one.numel() for one in bucket) <= 10 for bucket in buckets)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_utterance_is_read_once_and_batches_are_shares_of_one(world, tiny_whisper, utterances):
    """9 utterances in batches of 2: the last batch is smaller, and some processes have nothing of it."""
    data = TrainingData(
        ShardReader(utterances / "train", "utterances"), None, load_whisper(str(tiny_whisper), 1), "cs", TrainSettings()
    )
    whole = [batch.ids for batch in data.batches(2 * world, 0, 1)]
    shares = [[batch.ids if batch else [] for batch in data.batches(2, 0, 1, 0, rank, world)] for rank in range(world)]
    assert {len(share) for share in shares} == {len(whole)}
    for number, ids in enumerate(whole):
        assert [shares[place % world][number][place // world] for place in range(len(ids))] == ids
        assert sum(len(share[number]) for share in shares) == len(ids)
    for start in range(len(whole) + 1):
        for rank in range(world):
            later = data.batches(2, 0, 1, start, rank, world)
            assert [batch.ids if batch else [] for batch in later] == shares[rank][start:]


@pytest.mark.parametrize(
    ("method", "form"),
    [("full", {}), ("clsr-kd", {}), ("lora-kd", {}), ("clsr-kd", dict(expert_rank=3, gates="none"))],
)
def test_two_processes_are_one_with_their_batches_together(
    method, form, teacher, tiny_whisper, utterances, tmp_path, monkeypatch
):
    """Losses, validation and weights; one process of the two has nothing of an epoch's last batch."""
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: x)
    shards = teacher if method.endswith("-kd") else None

    def run(name: str, **changes) -> Callable[[Processes], tuple[dict, dict]]:
        def trained(processes: Processes) -> tuple[dict, dict]:
            trainees: list[Trainee] = []
            monkeypatch.setattr(run_module, "Trainee", lambda *given: trainees.append(Trainee(*given)) or trainees[0])
            options = dict(gate_budget=0.2, **QUIET, **form, **changes)
            result = train(tiny_whisper, method, utterances, tmp_path / name, shards, processes, **options)
            return result, {name: p.detach().numpy() for name, p in trainees[0].parameters.items()}

        return trained

    first, second = together(run("two"))
    expected, weights = run("one", batch_size=4)(Processes())
    assert first[0] == second[0]
    assert first[0]["settings"].pop("processes") == 2
    assert (first[0]["steps"], first[0]["settings"]) == (6, {**expected["settings"], "batch_size": 2})
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert ("kd" in one[0]) == method.endswith("-kd")
    assert ("gate" in one[0]) == (method == "clsr-kd" and not form)
    for mine, theirs in zip(two, one, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    before = load_whisper(str(tiny_whisper), 1).model.state_dict()
    for name, expected_weight in weights.items():
        np.testing.assert_allclose(first[1][name], expected_weight, atol=1e-5, rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(first[1][name], second[1][name])
        assert name not in before or not np.array_equal(expected_weight, before[name].numpy())


def test_two_processes_have_noise_of_their_own_and_resume_bit_for_bit(tiny_whisper, utterances, tmp_path):
    class StopError(Exception):
        pass

    def stop(done: int, total: int, losses: dict) -> None:
        if done == 4:
            raise StopError

    def run(out: str, **options) -> Callable[[Processes], list]:
        def trained(processes: Processes) -> list:
            draws: list[float] = []

            def progress(done: int, total: int, losses: dict) -> None:
                draws.append(torch.get_rng_state().float().sum().item())
                options.get("progress", lambda *_: None)(done, total, losses)

            train(tiny_whisper, "clsr", utterances, tmp_path / out, None, processes, save_every=3, progress=progress)
            return draws

        return trained

    first, second = together(run("whole"))
    assert first and second
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert all("StopError" in outcome for outcome in together(run("stopped", progress=stop)))
    assert (tmp_path / "stopped/checkpoint.safetensors").exists()
    resumed = together(run("stopped"))
    assert all(isinstance(draws, list) for draws in resumed), resumed
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    assert [draws[1:] for draws in resumed] == [first[-len(resumed[0]) + 1 :], second[-len(resumed[1]) + 1 :]]


def test_accelerate_launches_the_command(tiny_whisper, utterances, tmp_path):
    """Two processes on one machine; one of them writes and speaks."""
    shutil.copytree(tiny_whisper, tmp_path / "tiny")
    recipe = "{batch_size: 2, accumulate: 1, max_steps: 2, max_validation: 2}"
    (tmp_path / "params.yaml").write_text(f"audio_window_s: 1\nstudent: tiny\ndevice: cpu\ntrain: {recipe}\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [
        *launch,
        "--main_process_port",
        "0",
        "-m",
        "pipeline",
        "train-student",
        "--lang",
        "cs",
        "--method",
        "clsr",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("2/2 steps") == done.stderr.count("best validation WER") == 1
    result = json.loads((tmp_path / "models/cs/clsr/training.json").read_text())
    assert result["settings"]["processes"] == 2
    assert [row["epoch"] for row in curve(tmp_path / "models/cs/clsr")] == [0.6667, 0.6667]


def test_another_number_of_processes_is_refused_by_name(tiny_whisper, utterances, tmp_path):
    train(tiny_whisper, "clsr", utterances, tmp_path / "run", None, Processes(), max_steps=1)

    def run(processes: Processes) -> dict:
        return train(tiny_whisper, "clsr", utterances, tmp_path / "run", None, processes, max_steps=1)

    first, second = together(run)
    assert "processes: found None, wanted 2" in first
    assert first.partition("was made")[2] == second.partition("was made")[2]


def test_what_is_not_finite_ends_all_processes_and_names_the_utterances(
    tiny_whisper, tmp_path, monkeypatch, utterances
):
    """Only the process that had the clip names it, and its neighbours there; no weight was changed."""
    compute = features.LogMel.__call__

    def poisoned(self, clips):
        log_mel = compute(self, clips)
        for place, clip in enumerate(clips):
            if len(clip) == 14400:  # 0.9 s: one clip of all
                log_mel[place, 3, 3] = torch.nan
        return log_mel

    folder = make_utterance_shards(tmp_path / "u/train", [6, 3])
    (tmp_path / "u/validation").symlink_to(utterances / "validation")
    rows = [row for shard in range(2) for row in ShardReader(folder, "utterances").read(shard)]
    (poison,) = [row["id"] for row in rows if round(row["seconds"] * 16000) == 14400]
    monkeypatch.setattr(features.LogMel, "__call__", poisoned)

    def run(processes: Processes) -> None:
        train(tiny_whisper, "clsr", tmp_path / "u", tmp_path / "run", None, processes, accumulate=1, skip_gate=0)

    outcomes = together(run)
    assert outcomes[0] == outcomes[1]
    assert "PipelineError: process" in outcomes[0] and "is not finite at step" in outcomes[0]
    named = outcomes[0].rpartition(": ")[2].split(", ")
    assert poison in named and len(named) <= 2


@pytest.mark.parametrize("kind", [OSError, PipelineError])
def test_an_error_of_one_process_ends_the_others(kind, tiny_whisper, utterances, tmp_path, monkeypatch):
    """One that a batch's making raises, in its thread, on one process alone; none of them waits for another."""
    compute = features.LogMel.__call__
    main = os.getpid()

    def run(processes: Processes) -> None:
        def failing(self, clips):
            if processes.rank == 1 and os.getpid() != main:
                raise kind("the disk is gone")
            return compute(self, clips)

        monkeypatch.setattr(features.LogMel, "__call__", failing)
        train(tiny_whisper, "full", utterances, tmp_path / "run", None, processes)

    first, second = together(run)
    assert first == "PipelineError: process 1 of 2: the disk is gone"
    assert second == ("OSError: the disk is gone" if kind is OSError else first)


def test_a_process_that_dies_ends_the_others(tmp_path):
    def run(processes: Processes) -> None:
        processes.sum([1.0])
        if processes.rank == 1:
            raise KeyboardInterrupt
        processes.sum([1.0])

    first, second = together(run)
    assert second == "KeyboardInterrupt: "
    assert first.startswith("PipelineError: process 0 of 2: another process of the run has ended")
