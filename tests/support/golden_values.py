"""What each stage computes for a tiny model: kept in golden/values.json with the stage's version.

`python tests/support/golden_values.py` writes that file anew.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from makers import TEXTS, make_tiny_whisper, make_utterance_shards, speaking
from training import train_one

from cache.files import read_json, read_jsonl, write_json
from cache.shards import ShardReader
from stages.evaluate.run import EVALUATE_VERSION, Subject, evaluate
from stages.evaluate.settings import EvaluateSettings
from stages.prepare.corpora.manifest import ManifestSettings
from stages.prepare.run import PREPARE_VERSION, prepare
from stages.prepare.settings import PrepareSettings
from stages.shared.audio import decode_flac
from stages.shared.student.loading import LoadedModel
from stages.shared.whisper.models import load_whisper
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import TEACHER_CACHE_VERSION, cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.train_student.run import TRAIN_VERSION
from stages.train_student.settings import TrainSettings

FILE = Path(__file__).parent / "golden/values.json"
COMMAND = "python tests/support/golden_values.py"
CONSTANTS = {
    "prepare": ("PREPARE_VERSION", PREPARE_VERSION),
    "teacher_cache": ("TEACHER_CACHE_VERSION", TEACHER_CACHE_VERSION),
    "train_student": ("TRAIN_VERSION", TRAIN_VERSION),
    "evaluate": ("EVALUATE_VERSION", EVALUATE_VERSION),
}
RELATIVE, ABSOLUTE = 1e-3, 1e-6  # another machine adds in another order
CPU = torch.device("cpu")


def compute(folder: Path) -> dict[str, Any]:
    """By stage, its version and its values."""
    tiny = make_tiny_whisper(folder / "tiny")
    for split, rows in {"train": [5, 4], "validation": [3], "test": [4]}.items():
        make_utterance_shards(folder / "cs" / split, rows, split)
    values = {
        "prepare": _prepare(folder),
        "teacher_cache": _teacher_cache(folder),
        "train_student": _train_student(folder, tiny),
        "evaluate": _evaluate(folder, tiny),
    }
    return {stage: {"version": version, "values": values[stage]} for stage, (_, version) in CONSTANTS.items()}


def _prepare(folder: Path) -> list[dict[str, Any]]:
    """Recordings of several rates, channels and reasons to be left out."""
    lines = []
    for number, (rate, channels, seconds, level) in enumerate(
        [(16_000, 1, 0.5, 0.1), (44_100, 2, 0.8, 0.3), (8_000, 1, 1.0, 0.2), (48_000, 2, 2.5, 0.1), (16_000, 1, 0.6, 0)]
    ):
        wave = level * np.sin(2 * np.pi * (200 + 50 * number) * np.arange(round(rate * seconds)) / rate)
        soundfile.write(folder / f"{number}.wav", np.stack([wave, 0.5 * wave][:channels], 1), rate)
        lines.append({"path": f"{number}.wav", "text": f" {TEXTS[number]}  e\u0301", "split": "train"})
    lines.append({"path": "0.wav", "text": "… ?", "split": "train"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    corpus = ManifestSettings(corpus="manifest", path=folder / "rows.jsonl")
    prepare(corpus, PrepareSettings(), "cs", folder / "prepared", 2.0)
    found: list[dict[str, Any]] = []
    for record in _records(folder / "prepared/train", "utterances"):
        samples = decode_flac(record["audio"])
        # resampled audio may differ in its last bit from machine to machine
        exact = {"audio_sha256": record["audio_sha256"]} if record["id"] == "0.wav" else {}
        loudness = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
        found.append({"id": record["id"], "text": record["text"], "samples": len(samples), "rms": loudness, **exact})
    return found + read_jsonl(folder / "prepared/train/left_out.jsonl")


def _teacher_cache(folder: Path) -> list[dict[str, Any]]:
    settings = TeacherCacheSettings(top_k=8, dtype="fp32")
    # another than the student and surer of itself, or there would be nothing to learn from it
    teacher = load_whisper(str(make_tiny_whisper(folder / "large", seed=1)), 1)
    with torch.no_grad():
        teacher.model.model.decoder.layer_norm.weight.mul_(10)
    cache_teacher(ScoringJob(teacher, "cs", settings, CPU), folder / "cs/train", folder / "teacher")
    found: list[dict[str, Any]] = []
    for record in _records(folder / "teacher", "teacher"):
        probs = record["top_probs"].astype(float)
        sums = {"tail_log_probs": float(record["tail_log_probs"].sum()), "mean_prob_code": float(probs.mean())}
        what = {"targets": record["targets"].tolist(), "target_source": record["target_source"]}
        found.append({**what, "mean_log_prob": record["mean_log_prob"], **sums})
    return found


def _train_student(folder: Path, tiny: Path) -> dict[str, Any]:
    found = {}
    for method in ("clsr-kd", "lora", "full"):
        settings = TrainSettings(
            max_steps=3, batch_size=4, accumulate=1, log_every=1, learning_rate=3e-3, dtype="fp32", validate_every=3
        )
        teacher = folder / "teacher" if method == "clsr-kd" else None
        out = folder / "models" / method
        train_one(load_whisper(str(tiny), 1), method, "cs", folder / "cs", teacher, out, settings, CPU)
        found[method] = [row for row in read_jsonl(out / "curve.jsonl") if "loss" in row]
    return found


def _evaluate(folder: Path, tiny: Path) -> dict[str, Any]:
    model = LoadedModel(speaking(load_whisper(str(tiny), 1), listen=20, end=2.5, seed=4), None)
    out = folder / "metrics/base.json"
    evaluate(model, folder / "cs/test", Subject("cs", "base", "base"), out, EvaluateSettings(dtype="fp32"), CPU)
    facts = ("seconds", "evaluate_version", "corpus_utterances")  # of the machine, the code and the corpus
    metrics = {name: value for name, value in read_json(out).items() if name not in facts}
    return {**metrics, "rows": read_jsonl(out.with_suffix(".utterances.jsonl"))}


def _records(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    reader = ShardReader(folder, kind)
    for index in range(len(reader.shards)):
        yield from reader.read(index)


def faults(found: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    """One line for each stage whose values or version are not the golden ones: what to do."""
    lines = []
    for stage, (constant, _) in CONSTANTS.items():
        now, then = found[stage], golden.get(stage, {"version": None, "values": None})
        where = difference(now["values"], then["values"], stage)
        if now["version"] != then["version"]:
            lines.append(
                f"{stage}: {constant} is {now['version']}, the golden values are of {then['version']}: {COMMAND}"
            )
        elif where:
            lines.append(
                f"results changed ({where}): raise {constant} in stages/{stage}/run.py, so that no old output stands "
                f"as new, and then write the golden values anew: {COMMAND}"
            )
    return lines


def difference(found: Any, golden: Any, where: str) -> str:
    """'' where equal within the tolerance, else the first place that differs."""
    if isinstance(found, dict) and isinstance(golden, dict) and found.keys() == golden.keys():
        return next((text for key in found if (text := difference(found[key], golden[key], f"{where}.{key}"))), "")
    if isinstance(found, list) and isinstance(golden, list) and len(found) == len(golden):
        pairs = enumerate(zip(found, golden, strict=True))
        return next((text for n, (one, other) in pairs if (text := difference(one, other, f"{where}[{n}]"))), "")
    if isinstance(found, float) and isinstance(golden, int | float):
        equal = math.isclose(found, golden, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    else:
        equal = found == golden
    return "" if equal else f"{where}: found {str(found)[:60]}, golden {str(golden)[:60]}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        write_json(FILE, compute(Path(temporary)))
    print(f"written: {FILE}")
