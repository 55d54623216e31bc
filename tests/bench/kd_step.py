"""A training step with the teacher's shards, against one without and against one that runs the teacher each time.

    python tests/bench/kd_step.py --utterances data/utterances/cs/train
    python tests/bench/kd_step.py --teacher-config large-v2 --steps 2

ce: steps of `clsr`. kd: the same over the same batches with the cached teacher, `clsr-kd`. online: with the teacher in
memory, in inference mode, and the Jensen-Shannon divergence over the whole vocabulary by autograd. All three skip the
same layers. The teacher is the model itself, or a Whisper of another size with random weights. Peak memory: of a process
of its own for each.
"""

import dataclasses
import itertools
import math
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import alternate, arguments, begin, ratio
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperForConditionalGeneration

from cache.shards import ShardReader, ShardWriter
from stages.shared.whisper.models import Whisper, load_whisper
from stages.shared.whisper.window import cut_audio_window
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.train_student.data import Batch, TrainingData
from stages.train_student.loop import TrainingLoop
from stages.train_student.losses import gate_sum
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee

CPU = torch.device("cpu")
LANGUAGE = "cs"
SIZES = {"large-v2": dict(d_model=1280, layers=32, heads=20)}  # of openai/whisper-large-v2; its vocabulary is base's


def main() -> None:
    args = arguments(
        __doc__,
        steps=(8, "batches of 8, of each a step of every kind, one after the other"),
        teacher_config=("", "a teacher of this size with random weights, float32: large-v2; else the model itself"),
        shards_made=("", "used by the script's own processes"),
        alone=("", "used by the script's own processes"),
    )
    whisper, shards = begin(args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(args.shards_made or name)
        if not args.shards_made:
            _write(whisper, shards, 8 * args.steps, folder)
        run, batches = _run(whisper, folder, args.steps)
        teacher = None if args.alone in ("ce", "kd") else _teacher(whisper, args.teacher_config)
        runs: dict[str, Callable[[], None]] = {
            "ce": _steps(lambda batch: run._step([dataclasses.replace(batch, teacher=None)], 0), batches),
            "kd": _steps(lambda batch: run._step([batch], 0), batches),
            "online": _steps(lambda batch: _online_step(run, batch, teacher), batches),
        }
        if args.alone:
            for _ in range(args.steps):
                runs[args.alone]()
            print(_peak_memory())
            return
        run._step(batches[:1], 0)  # warms up
        seconds = alternate(runs, args.steps)
        print(ratio(seconds, "kd", "ce"))
        print(ratio(seconds, "online", "kd"))
        print(", ".join(f"{name} {statistics.median(each):.2f} s" for name, each in seconds.items()))
        teacher = None  # its memory is for the processes below
        peaks = {name: _peak(name, args.teacher_config, folder) for name in seconds}
    print("peak memory, MB: " + ", ".join(f"{name} {peak / 1000:.0f}" for name, peak in peaks.items()))
    print(f"kd / ce: {peaks['kd'] / peaks['ce']:.3f}, online / kd: {peaks['online'] / peaks['kd']:.3f}")


def _write(whisper: Whisper, shards: list[list[dict]], count: int, folder: Path) -> None:
    """`count` utterances and the teacher's distributions of them."""
    rows = [row for shard in shards for row in shard][:count]
    writer = ShardWriter(folder / "utterances", "utterances", {"language": LANGUAGE, "split": "train"})
    writer.write(0, rows, seconds=sum(row["seconds"] for row in rows))
    writer.finish(corpus="bench", language=LANGUAGE, split="train")
    teacher = load_whisper(whisper.model_id, whisper.audio_window_s)  # another copy: caching rounds the weights it has
    settings = TeacherCacheSettings(dtype="fp32")
    cache_teacher(ScoringJob(teacher, LANGUAGE, settings, CPU), folder / "utterances", folder / "teacher")


def _run(whisper: Whisper, folder: Path, steps: int) -> tuple[TrainingLoop, list[Batch]]:
    settings = TrainSettings(batch_size=8, accumulate=1, max_steps=1000, dtype="fp32")
    readers = ShardReader(folder / "utterances", "utterances"), ShardReader(folder / "teacher", "teacher")
    data = TrainingData(*readers, whisper, LANGUAGE, settings)
    trainee = Trainee(whisper, "clsr-kd", LANGUAGE, settings)
    run = TrainingLoop(trainee, data, settings, torch.float32, folder, dict, print)
    return run, [batch for batch, _ in zip(data.batches(8, seed=0, epoch=0), range(steps), strict=False)]


def _teacher(whisper: Whisper, size: str) -> WhisperForConditionalGeneration:
    if not size:
        return load_whisper(whisper.model_id, whisper.audio_window_s).model.eval()
    shape = SIZES[size]
    config = WhisperConfig(
        d_model=shape["d_model"],
        **{f"{side}_layers": shape["layers"] for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": shape["heads"] for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 4 * shape["d_model"] for side in ("encoder", "decoder")},
    )
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    model = model.to_empty(device="cpu").requires_grad_(False).eval()
    model.tie_weights()
    for parameter in model.parameters():
        parameter.uniform_(-0.03, 0.03)
    cut_audio_window(model, whisper.audio_window_s)
    return model


def _steps(step: Callable[[Batch], object], batches: list[Batch]) -> Callable[[], None]:
    """One step for each call, over one batch after the other, with the same random numbers whatever the step."""
    numbers = itertools.count()

    def run() -> None:
        torch.manual_seed(number := next(numbers))
        step(batches[number])

    return run


def _online_step(run: TrainingLoop, batch: Batch, teacher: WhisperForConditionalGeneration) -> None:
    """As the loop's, but for the teacher."""
    settings, count = run.settings, len(batch.targets)
    run.trainee.model.train()
    run.optimizer.zero_grad(set_to_none=True)
    with torch.inference_mode():
        hidden = teacher.model(batch.features, decoder_input_ids=batch.decoder_input_ids, use_cache=False)[0]
        log_p_NV = F.linear(hidden[batch.positions], teacher.proj_out.weight).log_softmax(-1)
    log_p_NV = log_p_NV.clone()  # an inference tensor takes no part in autograd
    with run.trainee.route() as routing:
        hidden = run.trainee.hidden(batch.features, batch.decoder_input_ids)
        log_q_NV = F.linear(hidden[batch.positions], run.trainee.whisper.model.proj_out.weight).log_softmax(-1)
    ce = F.cross_entropy(log_q_NV, batch.targets, reduction="sum", label_smoothing=settings.label_smoothing)
    log_m_NV = torch.logaddexp(log_p_NV, log_q_NV) - math.log(2)
    kl_p, kl_q = (F.kl_div(log_m_NV, log, reduction="sum", log_target=True) for log in (log_p_NV, log_q_NV))
    opened, positions = gate_sum(routing.gates, batch.encoder_mask, batch.decoder_mask)
    gate = (opened / positions - settings.gate_budget).abs()
    ((ce + settings.kd_weight * (kl_p + kl_q) / 2) / count + settings.gate_weight * gate).backward()
    torch.nn.utils.clip_grad_norm_(run.trainee.parameters.values(), settings.max_grad_norm)
    run.optimizer.step()


def _peak(name: str, teacher_config: str, folder: Path) -> int:
    """Of a process that makes two steps and nothing else."""
    options = ["--steps=2", f"--teacher-config={teacher_config}", f"--alone={name}", f"--shards-made={folder}"]
    script = [sys.executable, *sys.argv, *options]
    return int(subprocess.run(script, check=True, capture_output=True, text=True).stdout.split()[-1])


def _peak_memory() -> int:
    """In kB. Linux alone; getrusage's would be the parent's where that was larger."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    main()
