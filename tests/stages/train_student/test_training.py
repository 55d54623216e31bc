"""Training runs on the tiny Whisper: resumed bit for bit, refused by name, and learning what was planted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import make_teacher_shards, make_tiny_whisper, make_utterance_shards
from safetensors.torch import load_file
from sources import ROOT
from training import train_one
from transformers import WhisperForConditionalGeneration

from cache.errors import PipelineError
from cache.shards import ShardReader, ShardWriter
from stages.shared.whisper import features
from stages.shared.whisper.models import load_whisper
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.train_student import run as run_module
from stages.train_student.data import TrainingData
from stages.train_student.loop import _schedule
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee

CPU = torch.device("cpu")
FILES = {"clsr": "experts.safetensors", "lora": "adapter_model.safetensors", "full": "model.safetensors"}
WEIGHTS = FILES | {f"{method}-kd": name for method, name in FILES.items()}


def recipe(**changes) -> TrainSettings:
    """Two epochs of 3 steps; checkpoints at steps 2, 4 and at each validation (3, 6)."""
    chosen = dict(epochs=2, batch_size=2, accumulate=2, learning_rate=3e-3, dtype="fp32")
    return TrainSettings(**{**chosen, "save_every": 2, "log_every": 1, "max_validation": 2, **changes})


def train(base: Path, method: str, utterances: Path, out: Path, teacher: Path | None = None, **options) -> dict:
    changes = {name: options.pop(name) for name in list(options) if name in TrainSettings.model_fields}
    whisper = options.pop("whisper", None) or load_whisper(str(base), 1)
    return train_one(whisper, method, "cs", utterances, teacher, out, recipe(**changes), CPU, **options)


@pytest.fixture
def teacher_shards(utterances: Path, tmp_path: Path) -> Path:
    """Of another tiny Whisper, whose folder is gone once they are written."""
    folder = make_tiny_whisper(tmp_path / "teacher-model", seed=7)
    settings = TeacherCacheSettings(top_k=8, dtype="fp32")
    whisper = load_whisper(str(folder), 1)
    with torch.no_grad():
        whisper.model.model.decoder.layer_norm.weight.mul_(10)
    cache_teacher(ScoringJob(whisper, "cs", settings, CPU), utterances / "train", tmp_path / "teacher")
    shutil.rmtree(folder)
    return tmp_path / "teacher"


def shards_for(method: str, request: pytest.FixtureRequest) -> Path | None:
    return request.getfixturevalue("teacher_shards") if method.endswith("-kd") else None


def curve(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class StopError(Exception):
    """Stands for anything that ends a run."""


def stop_at(step: int):
    def progress(done: int, total: int, losses: dict) -> None:
        if done == step:
            raise StopError

    return progress


# Resumed


LOW_RANK = dict(expert_rank=3)


@pytest.mark.parametrize(
    ("method", "step", "form"),
    [
        ("clsr", 3, {}),
        ("clsr-kd", 5, {}),
        ("full", 4, {}),
        ("lora", 4, {}),
        ("full-kd", 3, {}),
        ("lora-kd", 5, {}),
        ("clsr", 5, LOW_RANK),
        ("clsr", 4, LOW_RANK | dict(gates="none")),
        ("clsr", 3, dict(gates="layer")),
    ],
)
def test_stopped_and_resumed_it_is_the_same_run(method, step, form, request, tiny_whisper, utterances, tmp_path):
    """Every file is equal, byte for byte: weights, curve, configuration, result.

    Skipped layers take no step: each parameter has its own step count in the optimizer.
    """
    teacher = shards_for(method, request)
    train(tiny_whisper, method, utterances, tmp_path / "whole", teacher, **form)
    with pytest.raises(StopError):
        train(tiny_whisper, method, utterances, tmp_path / "stopped", teacher, progress=stop_at(step), **form)
    assert (tmp_path / "stopped/checkpoint.safetensors").exists()
    assert not (tmp_path / "stopped/training.json").exists()
    torch.manual_seed(123)  # whatever the process did in between
    steps: list[int] = []
    remember = dict(progress=lambda done, *_: steps.append(done))
    train(tiny_whisper, method, utterances, tmp_path / "stopped", teacher, **remember, **form)
    assert steps == list(range(2 if step == 3 else 4 if step == 5 else 3, 7))
    whole, resumed = files_of(tmp_path / "whole"), files_of(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == []
    assert WEIGHTS[method] in whole
    assert [row["step"] for row in curve(tmp_path / "whole") if "loss" in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("method", ["full", "clsr-kd", "lora-kd"])
def test_on_two_threads_equal_runs_are_the_same(method, tiny_whisper, tmp_path, request):
    """Clips and texts enough that torch parts its work: the gradient of a decoder position is a sum over 64 clips."""
    corpus, texts = tmp_path / "corpus", [f"{'a long text ' * 5}{number}" for number in range(64)]
    make_utterance_shards(corpus / "train", [64], texts=texts)
    make_utterance_shards(corpus / "validation", [1], "validation")
    teacher = None
    if method.endswith("-kd"):
        teacher = make_teacher_shards(tmp_path / "teacher", corpus / "train", load_whisper(str(tiny_whisper), 1))
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(2)
    for name in "first", "second":
        train(tiny_whisper, method, corpus, tmp_path / name, teacher, batch_size=64, accumulate=1, max_steps=4)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")
    assert not torch.are_deterministic_algorithms_enabled()  # as before


def test_a_curve_row_covers_the_same_steps_when_it_is_resumed_amid_it(tiny_whisper, utterances, tmp_path):
    """The checkpoint after the validation of step 3 lies between the rows of steps 2 and 4."""
    options = dict(log_every=2, save_every=100)
    train(tiny_whisper, "clsr", utterances, tmp_path / "whole", **options)
    with pytest.raises(StopError):
        train(tiny_whisper, "clsr", utterances, tmp_path / "stopped", progress=stop_at(5), **options)
    train(tiny_whisper, "clsr", utterances, tmp_path / "stopped", **options)
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")


def test_a_torn_last_line_of_the_curve_does_not_end_the_run(tiny_whisper, utterances, tmp_path):
    """A full disk leaves half a row; once there is space the run goes on."""
    train(tiny_whisper, "clsr", utterances, tmp_path / "whole")
    with pytest.raises(StopError):
        train(tiny_whisper, "clsr", utterances, tmp_path / "stopped", progress=stop_at(5))
    with open(tmp_path / "stopped/curve.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    train(tiny_whisper, "clsr", utterances, tmp_path / "stopped")
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")


CHILD = """
import sys, torch
from pathlib import Path
from stages.train_student.run import Execution, LanguageData, train_student
from stages.train_student.settings import TrainSettings
from stages.shared.whisper.models import load_whisper
torch.set_num_threads(int(sys.argv[4]))
utterances, out = Path(sys.argv[2]), Path(sys.argv[3])
train_student(load_whisper(sys.argv[1], 1), "clsr", [LanguageData("cs", utterances, None, out)], out,
              TrainSettings.model_validate_json(sys.argv[5]), Execution(torch.device("cpu")))
"""


def test_killed_and_resumed_it_is_the_same_run(tiny_whisper, utterances, tmp_path):
    """SIGKILL as soon as the curve has reached a step beyond the first checkpoint."""
    out, options = tmp_path / "killed", dict(epochs=30, validate_every=40, save_every=3)
    arguments = [str(tiny_whisper), str(utterances), str(out), str(torch.get_num_threads())]
    arguments.append(recipe(**options).model_dump_json())
    process = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], cwd=ROOT)
    while not (out / "curve.jsonl").exists() or len((out / "curve.jsonl").read_bytes().splitlines()) < 8:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "training.json").exists()
    train(tiny_whisper, "clsr", utterances, out, **options)
    train(tiny_whisper, "clsr", utterances, tmp_path / "whole", **options)
    assert not list(out.glob(".tmp-*"))
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_finished_run_is_not_done_again(tiny_whisper, utterances, tmp_path):
    first = train(tiny_whisper, "clsr", utterances, tmp_path / "run")
    before = files_of(tmp_path / "run")
    names = ["README.md", "curve.jsonl", "experts.json", "experts.safetensors", "left_out.jsonl", "training.json"]
    assert sorted(before) == names
    assert train(tiny_whisper, "clsr", utterances, tmp_path / "run", progress=stop_at(0)) == first
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize("left", ["progress.json", "checkpoint.safetensors"])
def test_killed_between_the_result_and_the_end(left, tiny_whisper, utterances, tmp_path):
    """The result is there, the run's own files not yet removed: the next call leaves what any other run leaves."""
    train(tiny_whisper, "clsr", utterances, tmp_path / "run", max_steps=1)
    before = files_of(tmp_path / "run")
    settings = json.loads(before["training.json"])["settings"]
    (tmp_path / "run" / left).write_text(json.dumps({"settings": settings}))
    train(tiny_whisper, "clsr", utterances, tmp_path / "run", max_steps=1)
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_setting_is_refused_by_name(finished, tiny_whisper, utterances, tmp_path):
    if finished:
        train(tiny_whisper, "clsr", utterances, tmp_path / "run", max_steps=1)
    else:
        with pytest.raises(StopError):
            train(tiny_whisper, "clsr", utterances, tmp_path / "run", progress=stop_at(2), max_steps=3)
    steps = 1 if finished else 3
    before = files_of(tmp_path / "run")
    with pytest.raises(PipelineError, match=r"\(learning_rate: found 0\.003, wanted 0\.5\)") as caught:
        train(tiny_whisper, "clsr", utterances, tmp_path / "run", max_steps=steps, learning_rate=0.5)
    assert str(tmp_path / "run") in str(caught.value)
    with pytest.raises(PipelineError, match=f"max_steps: found {steps}, wanted 2"):
        train(tiny_whisper, "clsr", utterances, tmp_path / "run", max_steps=2)
    assert files_of(tmp_path / "run") == before
    # what the weights do not depend on may change
    train(tiny_whisper, "clsr", utterances, tmp_path / "run", max_steps=steps, log_every=5, save_every=7)
    result = train(tiny_whisper, "clsr", utterances, tmp_path / "run", max_steps=2, rerun="update")
    assert result["settings"]["max_steps"] == result["steps"] == 2


@pytest.mark.parametrize("data", [b"", b"\x80\x04}."])
def test_a_damaged_checkpoint_is_refused(data, tiny_whisper, utterances, tmp_path):
    with pytest.raises(StopError):
        train(tiny_whisper, "clsr", utterances, tmp_path / "run", progress=stop_at(3))
    (tmp_path / "run/checkpoint.safetensors").write_bytes(data)
    with pytest.raises(PipelineError, match=r"checkpoint\.safetensors: not a readable checkpoint"):
        train(tiny_whisper, "clsr", utterances, tmp_path / "run")


# What is trained


@pytest.mark.parametrize("method", ["clsr", "clsr-kd"])
def test_the_frozen_weights_do_not_change(method, request, tiny_whisper, utterances, tmp_path):
    teacher = shards_for(method, request)
    original = load_whisper(str(tiny_whisper), 1).model.state_dict()
    whisper = load_whisper(str(tiny_whisper), 1)
    train(tiny_whisper, method, utterances, tmp_path / "run", teacher, whisper=whisper)
    frozen = {
        name.replace("fc1.shared.", ""): tensor
        for name, tensor in whisper.model.state_dict().items()
        if ".experts." not in name and ".gates." not in name
    }
    assert frozen.keys() == original.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in frozen.items())
    trained = load_file(tmp_path / "run/experts.safetensors")
    moved = [name for name, tensor in trained.items() if "expert.fc1.weight" in name]
    assert len(moved) == 4
    for name in moved:
        place = name.replace(".expert.fc1.weight", ".fc1.weight")
        assert not torch.equal(trained[name], original[f"model.{place}"].half())


def test_clsr_kd_needs_nothing_of_the_teacher(teacher_shards, tiny_whisper, utterances, tmp_path):
    """Its folder is gone, its stage cannot be imported, the hub cannot be reached: the shards are enough."""
    code = f"""
import sys
sys.modules["stages.teacher_cache"] = None  # importing it is an ImportError
import socket
def refuse(*_, **__): raise AssertionError("the network was used")
socket.socket.connect = socket.create_connection = refuse
import torch
from pathlib import Path
from stages.train_student.run import Execution, LanguageData, train_student
from stages.train_student.settings import TrainSettings
from stages.shared.whisper.models import load_whisper
settings = TrainSettings.model_validate_json({recipe(max_steps=2).model_dump_json()!r})
out = Path({str(tmp_path / "run")!r})
data = [LanguageData("cs", Path({str(utterances)!r}), Path({str(teacher_shards)!r}), out)]
result = train_student(load_whisper({str(tiny_whisper)!r}, 1), "clsr-kd", data, out, settings,
                       Execution(torch.device("cpu")))
assert not [name for name in sys.modules if name.startswith("stages.teacher_cache.")]
print(result["steps"])
"""
    assert not (tmp_path / "teacher-model").exists()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2"], done.stderr[-2000:]
    assert "kd" in curve(tmp_path / "run")[0]


@pytest.mark.parametrize(
    ("method", "rate", "divergence", "tail"),
    [
        ("clsr-kd", 0.02, "js", "bucket"),
        ("clsr-kd", 0.02, "kl", "bucket"),
        ("clsr-kd", 0.02, "kl", "spread"),
        ("lora-kd", 0.02, "js", "bucket"),
        ("full-kd", 0.004, "js", "bucket"),
    ],
)
def test_a_student_comes_nearer_to_a_planted_teacher(
    method, rate, divergence, tail, tiny_whisper, utterances, tmp_path
):
    """And one that is not told of it does not: the transcripts say something else."""
    source, whisper = utterances / "train", load_whisper(str(tiny_whisper), 1)
    teacher = make_teacher_shards(tmp_path / "planted", source, whisper)
    options = dict(epochs=12, accumulate=1, learning_rate=rate, max_validation=1, validate_every=1000)
    options |= dict(skip_gate=0, expert_dropout=0, kd_divergence=divergence, kd_tail=tail)
    distances = {}
    for weight in (0.0, 20.0):
        out = tmp_path / f"weight-{weight}"
        whisper = load_whisper(str(tiny_whisper), 1)
        with torch.no_grad():
            whisper.model.model.decoder.layer_norm.weight.mul_(20)  # so that it can be sure of anything
        train(tiny_whisper, method, utterances, out, teacher, whisper=whisper, kd_weight=weight, **options)
        distances[weight] = [row["kd"] for row in curve(out) if "kd" in row]
    assert distances[20.0][0] == pytest.approx(distances[0.0][0], rel=1e-4)
    assert np.mean(distances[20.0][-5:]) < 0.6 * distances[20.0][0]
    assert np.mean(distances[20.0][-5:]) < 0.7 * np.mean(distances[0.0][-5:])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_nan_stops_before_the_step_and_names_the_utterances(
    accumulate, tiny_whisper, utterances, tmp_path, monkeypatch
):
    """One clip of the training data, found by its length, gives features that are not numbers."""
    whisper = load_whisper(str(tiny_whisper), 1)
    compute = features.LogMel.__call__

    def poisoned(self, clips):
        log_mel = compute(self, clips)
        for place, clip in enumerate(clips):
            if len(clip) == 14400:  # 0.9 s: one clip of all
                log_mel[place, 3, 3] = torch.nan
        return log_mel

    weights: list[dict[str, torch.Tensor]] = []

    def remember(done: int, total: int, losses: dict) -> None:
        weights.append({name: p.detach().clone() for name, p in whisper.model.named_parameters()})

    folder = make_utterance_shards(tmp_path / "u/train", [6, 3])
    shutil.copytree(utterances / "validation", tmp_path / "u/validation")
    rows = [row for shard in range(2) for row in ShardReader(folder, "utterances").read(shard)]
    poison = [row["id"] for row in rows if round(row["seconds"] * 16000) == 14400]
    assert len(poison) == 1
    monkeypatch.setattr(features.LogMel, "__call__", poisoned)
    with pytest.raises(
        PipelineError, match=r"loss is not finite at step \d+, before the weights were changed"
    ) as caught:
        train(
            tiny_whisper, "clsr", tmp_path / "u", tmp_path / "run", whisper=whisper, accumulate=accumulate,
            progress=remember, skip_gate=0,
        )  # fmt: skip
    named = str(caught.value).rpartition(": ")[2].split(", ")
    assert poison[0] in named
    assert len(named) <= 2 * accumulate
    assert f"step {len(weights)}," in str(caught.value)
    for name, parameter in whisper.model.named_parameters():
        assert torch.equal(parameter, weights[-1][name])
        assert torch.isfinite(parameter).all()


# Full fine-tuning


def test_full_gives_a_plain_whisper(tiny_whisper, utterances, tmp_path):
    whisper = load_whisper(str(tiny_whisper), 1)
    result = train(tiny_whisper, "full", utterances, tmp_path / "full", whisper=whisper)
    plain, info = WhisperForConditionalGeneration.from_pretrained(tmp_path / "full", output_loading_info=True)
    assert not any(info.values()), info
    assert plain.config.max_source_positions == 1500
    assert plain.config.audio_window_s == 1
    original = WhisperForConditionalGeneration.from_pretrained(tiny_whisper)
    positions = "model.encoder.embed_positions.weight"
    assert plain.state_dict()[positions].shape == (1500, 32)
    torch.testing.assert_close(
        plain.state_dict()[positions].float(), original.state_dict()[positions], atol=1e-3, rtol=0
    )
    before = {name: p.half() for name, p in original.named_parameters()}
    assert [name for name, p in plain.named_parameters() if torch.equal(p.half(), before[name])] == [positions]
    assert result["parameters"] == sum(p.numel() for name, p in plain.named_parameters() if name != positions)
    plain.generate(torch.randn(1, 80, 3000), language="cs", max_new_tokens=3)
    assert load_whisper(str(tmp_path / "full")).audio_window_s == 1
    with pytest.raises(PipelineError, match="trained with audio_window_s 1, asked for 2"):
        load_whisper(str(tmp_path / "full"), 2)


def test_full_keeps_the_weights_that_it_trained(tiny_whisper, utterances, tmp_path):
    """What lies on disk is the model in memory, to float16: with the window cut as it was trained."""
    whisper = load_whisper(str(tiny_whisper), 1)
    train(tiny_whisper, "full", utterances, tmp_path / "full", whisper=whisper, max_steps=2)
    stored = load_whisper(str(tmp_path / "full"), 1)
    for (name, expected), (_, found) in zip(
        sorted(whisper.model.named_parameters()), sorted(stored.model.named_parameters()), strict=True
    ):
        assert torch.equal(found, expected.half().float()), name


# Refused


def copied(teacher: Path, out: Path, change=None, records=None) -> Path:
    """The teacher shards again, with other settings or other records."""
    source = ShardReader(teacher, "teacher")
    writer = ShardWriter(out, "teacher", {**source.provenance, **(change or {})})
    for index in range(len(source.shards)):
        rows = source.read(index)
        writer.write(index, records(index, rows) if records else rows, seconds=1.0, left_out=[])
    writer.finish(left_out={})
    shutil.copy(teacher / "tail.npy", out)
    return out


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("language", "nl"),
        ("utterances", "0" * 64),
        ("tokenizer", "0" * 64),
        ("vocab_size", 51866),
        ("prompt", [1, 2]),
        ("audio_window_s", 30),
    ],
)
def test_teacher_shards_of_something_else_are_refused(field, value, teacher_shards, tiny_whisper, utterances, tmp_path):
    other = copied(teacher_shards, tmp_path / "other", {field: value})
    with pytest.raises(PipelineError, match=f"does not fit this student and corpus .*{field}: found") as caught:
        train(tiny_whisper, "clsr-kd", utterances, tmp_path / "run", other)
    assert str(other) in str(caught.value)
    assert repr(value) in str(caught.value)


def test_teacher_shards_without_a_setting_are_refused(teacher_shards, tiny_whisper, utterances, tmp_path):
    source = copied(teacher_shards, tmp_path / "other")
    manifest = json.loads((source / "manifest.json").read_text())
    del manifest["settings"]["prompt"]
    (source / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PipelineError, match="prompt"):
        train(tiny_whisper, "clsr-kd", utterances, tmp_path / "run", source)


def test_reordered_or_missing_ids_are_refused(teacher_shards, tiny_whisper, utterances, tmp_path):
    for name, records in {
        "turned": lambda index, rows: rows[::-1] if index else rows,
        "short": lambda index, rows: rows[:-1] if index else rows,
    }.items():
        other = copied(teacher_shards, tmp_path / name, records=records)
        with pytest.raises(PipelineError, match=f"{name}.*not those of the utterance shard"):
            train(tiny_whisper, "clsr-kd", utterances, tmp_path / f"run-{name}", other)


def test_fewer_teacher_shards_than_utterance_shards_are_refused(teacher_shards, tiny_whisper, utterances, tmp_path):
    source = copied(teacher_shards, tmp_path / "other")
    manifest = json.loads((source / "manifest.json").read_text())
    del manifest["shards"][1]
    (source / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PipelineError, match="other"):
        train(tiny_whisper, "clsr-kd", utterances, tmp_path / "run", source)


def test_a_refused_run_does_not_stand_in_the_way_of_the_next(teacher_shards, tiny_whisper, utterances, tmp_path):
    """Nothing was trained, so that nothing has to be removed with --restart once the right shards are given."""
    other = copied(teacher_shards, tmp_path / "other", records=lambda index, rows: rows[::-1])
    with pytest.raises(PipelineError, match="its ids are not those of the utterance shard"):
        train(tiny_whisper, "clsr-kd", utterances, tmp_path / "run", other, max_steps=1)
    assert train(tiny_whisper, "clsr-kd", utterances, tmp_path / "run", teacher_shards, max_steps=1)["steps"] == 1


@pytest.mark.parametrize(
    ("method", "given"),
    [("clsr-kd", False), ("lora-kd", False), ("full-kd", False), ("clsr", True), ("full", True)],
)
def test_teacher_shards_go_with_clsr_kd_alone(method, given, request, tiny_whisper, utterances, tmp_path):
    teacher = request.getfixturevalue("teacher_shards") if given else None
    with pytest.raises(PipelineError, match=f"method {method} {'takes no' if given else 'needs'} teacher shards"):
        train(tiny_whisper, method, utterances, tmp_path / "run", teacher)


# Which utterances


def data_of(utterances: Path, tiny: Path, fraction: float) -> TrainingData:
    source, whisper = ShardReader(utterances / "train", "utterances"), load_whisper(str(tiny), 1)
    return TrainingData(source, None, whisper, "cs", TrainSettings(train_fraction=fraction))


def chosen_rows(data: TrainingData) -> list[dict]:
    shards = [data.utterances.read(shard, only=("id", "group")) for shard in range(len(data.kept))]
    return [shards[shard][row] for shard, rows in enumerate(data.kept) for row in rows]


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.99, 1.0])
def test_a_fraction_is_of_whole_groups(fraction, tiny_whisper, utterances):
    data = data_of(utterances, tiny_whisper, fraction)
    everything = chosen_rows(data_of(utterances, tiny_whisper, 1.0))
    taken = chosen_rows(data)
    groups = {row["group"] for row in taken}
    assert taken == [row for row in everything if row["group"] in groups]  # no group is torn apart
    sizes = [sum(row["group"] == group for row in everything) for group in groups]
    assert fraction * len(everything) <= len(taken) < fraction * len(everything) + max(sizes)
    assert data.not_chosen == len(everything) - len(taken)
    assert taken == chosen_rows(data_of(utterances, tiny_whisper, fraction))
    assert len(everything) == 9


def test_smaller_fractions_lie_within_larger_ones(tiny_whisper, utterances):
    ids = [{row["id"] for row in chosen_rows(data_of(utterances, tiny_whisper, f))} for f in (0.2, 0.5, 0.8, 1.0)]
    assert ids == sorted(ids, key=len)
    assert all(small <= large for small, large in zip(ids[:-1], ids[1:], strict=True))
    assert len(ids[0]) < len(ids[-1])


def test_an_epoch_reads_every_utterance_once_and_can_begin_anywhere(tiny_whisper, utterances):
    data = data_of(utterances, tiny_whisper, 1.0)
    epochs = [[batch.ids for batch in data.batches(2, 0, epoch)] for epoch in range(2)]
    everything = sorted(row["id"] for row in chosen_rows(data))
    assert all(sorted(sum(epoch, [])) == everything for epoch in epochs)
    assert epochs[0] != epochs[1]
    for start in range(6):
        assert [batch.ids for batch in data.batches(2, 0, 1, start)] == epochs[1][start:]


def test_what_cannot_be_trained_on_is_listed(tiny_whisper, utterances, tmp_path):
    """At a window of 1 s nothing is too long; a clip of 2 s is, and is listed; so is one without a transcript."""
    source = ShardReader(utterances / "train", "utterances")
    writer = ShardWriter(tmp_path / "u/train", "utterances", {"language": "cs", "split": "train"})
    rows = source.read(0)
    odd = [{**rows[0], "id": "long", "seconds": 2.0}, {**rows[1], "id": "mute", "text": ""}]
    writer.write(0, [*odd, *rows[2:]], seconds=1.0)
    writer.finish(corpus="made", language="cs", split="train", seconds=1.0, left_out={})
    shutil.copytree(utterances / "validation", tmp_path / "u/validation")
    result = train(tiny_whisper, "clsr", tmp_path / "u", tmp_path / "run", max_steps=1)
    assert (result["left_out"], result["training_utterances"]) == (2, 3)
    listed = [json.loads(line) for line in (tmp_path / "run/left_out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in listed] == [("long", "too_long"), ("mute", "no_text")]


# The best checkpoint


@pytest.mark.parametrize(
    ("rates", "best"), [([0.5, 0.2, 0.7, 0.2, 0.9], 2), ([1.5, 1.4, 1.3, 1.2, 1.1], 5), ([0.3, 0.3, 0.3, 0.3, 0.3], 1)]
)
def test_the_weights_of_the_lowest_validation_wer_are_kept(
    rates, best, tiny_whisper, utterances, tmp_path, monkeypatch
):
    planted, trainees = iter(rates), []
    monkeypatch.setattr(run_module, "Trainee", lambda *given: trainees.append(Trainee(*given)) or trainees[0])
    monkeypatch.setattr(run_module, "validate_languages", lambda *_: {"wer": next(planted), "cer": 0.1})
    after: dict[int, dict[str, torch.Tensor]] = {}

    def remember(done: int, total: int, losses: dict) -> None:
        parameters = trainees[0].model.named_parameters()
        after[done] = {name: p.detach().half() for name, p in parameters if "experts" in name}

    options = dict(max_steps=5, validate_every=1, accumulate=1)
    result = train(tiny_whisper, "clsr", utterances, tmp_path / "run", progress=remember, **options)
    assert (result["best_step"], result["best_validation_wer"]) == (best, rates[best - 1])
    kept = load_file(tmp_path / "run/experts.safetensors")
    name = "model.encoder.layers.1.fc1.experts.cs.fc2.weight"
    equal = [step for step in range(1, 6) if torch.equal(after[step][name], kept["encoder.layers.1.expert.fc2.weight"])]
    assert equal == [best]
    config = json.loads((tmp_path / "run/experts.json").read_text())
    assert (config["step"], config["validation_wer"]) == (best, rates[best - 1])
    assert [row["validation_wer"] for row in curve(tmp_path / "run") if "validation_wer" in row] == rates


def test_the_rates_of_a_schedule():
    """Linear warm-up over a tenth of 20 steps, then linear decay: by hand."""
    rates = [_schedule(step, 20, 0.1) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == pytest.approx([(20 - step) / 18 for step in range(2, 20)])
    assert all(rate > 0 for rate in rates)


def test_the_gates_noise_rises_from_nothing_to_alpha(tiny_whisper, utterances, tmp_path, monkeypatch):
    seen: list[float] = []
    route = Trainee.route
    monkeypatch.setattr(
        Trainee, "route", lambda self, noise=0.0, languages=None: seen.append(noise) or route(self, noise, languages)
    )
    train(tiny_whisper, "clsr", utterances, tmp_path / "run", max_steps=5, accumulate=1, validate_every=5)
    assert seen[:5] == pytest.approx([0, 1, 2, 3, 4])
