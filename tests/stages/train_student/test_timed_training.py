"""Training on targets with times: the batches token by token, the losses against a plain forward pass, what is learnt."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import make_tiny_whisper, make_utterance_shards, run
from references import prompt_of, reference, targets_of
from training import train_one

from cache.errors import PipelineError
from cache.shards import ShardReader
from stages.shared.whisper.models import Whisper, load_whisper
from stages.shared.whisper.timestamps import is_timed
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.train_student.data import TrainingData
from stages.train_student.mixture import Mixture
from stages.train_student.settings import AdaptSettings, TrainSettings

CPU = torch.device("cpu")
HALF = 0.5
STEPS = 150


def train(base: Path, method: str, utterances: Path, out: Path, teacher: Path | None = None, **changes) -> dict:
    chosen = dict(
        max_steps=1, batch_size=9, accumulate=1, label_smoothing=0.0, dtype="fp32", log_every=1, max_validation=2
    )
    settings = TrainSettings(**{**chosen, **changes})
    return train_one(load_whisper(str(base), 1), method, "cs", utterances, teacher, out, settings, CPU)


def first_losses(folder: Path) -> dict:
    return json.loads((folder / "curve.jsonl").read_text().splitlines()[0])


def rows(utterances: Path) -> list[dict]:
    return list(ShardReader(utterances / "train", "utterances").records())


def expected(whisper: Whisper, row: dict, share: float) -> tuple[list[int], list[int]]:
    """Prompt and targets of an utterance, by the names of the tokens."""
    prompt, targets = prompt_of(whisper), targets_of(whisper, row)
    if not is_timed(row["id"], share):
        return prompt, targets
    names = ["<|0.00|>", f"<|{round(row['seconds'] * 50) / 50:.2f}|>"]
    start, end = whisper.tokenizer.convert_tokens_to_ids(names)
    return prompt[:-1], [start, *targets[:-1], end, targets[-1]]


def test_a_batch_holds_what_the_decoder_reads_and_predicts(tiny_whisper, utterances):
    whisper = load_whisper(str(tiny_whisper), 1)
    data = TrainingData(
        ShardReader(utterances / "train", "utterances"), None, whisper, "cs", TrainSettings(timestamps=HALF)
    )
    by_id, timed = {row["id"]: row for row in rows(utterances)}, 0
    for batch in data.batches(4, 0, 0):
        assert batch is not None
        for number, name in enumerate(batch.ids):
            prompt, targets = expected(whisper, by_id[name], HALF)
            read = batch.decoder_input_ids[number][batch.decoder_mask[number]].tolist()
            assert read == [*prompt, *targets[:-1]]
            own = batch.positions[0] == number
            assert batch.targets[own].tolist() == targets
            assert batch.positions[1][own].tolist() == list(range(len(prompt) - 1, len(prompt) - 1 + len(targets)))
            timed += len(prompt) == 3
    assert 3 <= timed <= 6


def test_languages_and_times_mix_in_a_batch(tiny_whisper, utterances, tmp_path):
    whisper = load_whisper(str(tiny_whisper), 1)
    settings, readers = TrainSettings(timestamps=HALF), ShardReader(utterances / "train", "utterances")
    parts = [TrainingData(readers, None, whisper, language, settings) for language in ("cs", "nl")]
    (batch,) = Mixture(parts).batches(18, 0, 0)
    assert batch is not None
    begins = {tuple(whisper.tokenizer.convert_ids_to_tokens(row[:4])) for row in batch.decoder_input_ids.tolist()}
    wanted = {
        ("<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", last)
        for language in ("cs", "nl")
        for last in ("<|0.00|>", "<|notimestamps|>")
    }
    assert begins == wanted


def test_the_cross_entropy_is_that_of_the_forward_pass(tiny_whisper, utterances, tmp_path):
    """Each clip alone, in float64: the mean over all targets, those of time among them."""
    whisper = load_whisper(str(tiny_whisper), 1)
    for share in (0.0, HALF, 1.0):
        train(tiny_whisper, "full", utterances, tmp_path / str(share), timestamps=share)
        nll = []
        for row in rows(utterances):
            prompt, targets = expected(whisper, row, share)
            nll += list(-reference(whisper, row, targets, prompt)[np.arange(len(targets)), targets])
        assert first_losses(tmp_path / str(share))["ce"] == pytest.approx(np.mean(nll), rel=1e-5)


def test_a_teacher_that_is_the_student_has_nothing_to_teach(tiny_whisper, utterances, tmp_path):
    """Its distributions lie at the student's own positions: the divergence is that of 8 bits. Another teacher's is large."""
    found = {}
    for name, seed in (("same", 0), ("other", 1)):
        folder = make_tiny_whisper(tmp_path / f"model-{name}", seed=seed)
        teacher = load_whisper(str(folder), 1)
        with torch.no_grad():
            teacher.model.model.decoder.layer_norm.weight.mul_(20)
        teacher.model.save_pretrained(folder)
        settings = TeacherCacheSettings(top_k=200, top_p=1.0, bits=8, dtype="fp32")
        job = ScoringJob(load_whisper(str(folder), 1), "cs", settings, CPU, timestamps=HALF)
        cache_teacher(job, utterances / "train", tmp_path / name)
        out = tmp_path / f"student-{name}"
        train(tmp_path / "model-same", "full-kd", utterances, out, tmp_path / name, timestamps=HALF)
        found[name] = first_losses(out)["kd"]
    assert found["same"] < 0.001 < 0.05 < found["other"]


def test_the_share_is_part_of_what_a_run_is(tiny_whisper, utterances, tmp_path):
    """Where it is nothing the run is named as before there were times, so that earlier runs stand."""
    plain = train(tiny_whisper, "lora", utterances, tmp_path / "plain")
    assert "timestamps" not in plain["settings"]
    with pytest.raises(PipelineError, match=r"timestamps: found None, wanted 0\.5"):
        train(tiny_whisper, "lora", utterances, tmp_path / "plain", timestamps=HALF)
    half = train(tiny_whisper, "lora", utterances, tmp_path / "half", timestamps=HALF)
    assert half["settings"]["timestamps"] == half["changes"]["timestamps"] == HALF
    assert train(tiny_whisper, "lora", utterances, tmp_path / "half", timestamps=HALF) == half
    with pytest.raises(PipelineError, match=r"timestamps: found 0\.5, wanted None"):
        train(tiny_whisper, "lora", utterances, tmp_path / "half")


def test_times_are_learnt(tmp_path, tiny_whisper):
    """Clips of three lengths that say the same: only the sound tells when they end."""
    folder = tmp_path / "cs"
    make_utterance_shards(folder / "train", [3], first=0, texts=["Ano."] * 3)
    make_utterance_shards(folder / "validation", [2], "validation")
    long = dict(max_steps=STEPS, validate_every=STEPS, learning_rate=5e-3)
    train(tiny_whisper, "full", folder, tmp_path / "out", timestamps=1.0, **long)
    whisper = load_whisper(str(tmp_path / "out"), 1)
    for row in rows(folder):
        prompt, targets = expected(whisper, row, 1.0)
        assert reference(whisper, row, targets, prompt).argmax(-1).tolist() == targets


def test_a_share_beyond_all_is_refused():
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="timestamps"):
            TrainSettings(timestamps=share)


def test_an_adapted_teacher_learns_times_by_its_own_share(tiny_whisper, utterances, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(
        f"""
audio_window_s: 1
teacher:
  model: {tiny_whisper}
  adapt: {{timestamps: 0.25, max_steps: 1, batch_size: 4, dtype: fp32, max_validation: 2}}
""",
        encoding="utf-8",
    )
    assert run(monkeypatch, "adapt-teacher", "--lang", "cs") == 0
    assert json.loads((tmp_path / "models/cs/teacher/training.json").read_text())["settings"]["timestamps"] == 0.25
    assert AdaptSettings(folds=2, timestamps=0.25).of_each.timestamps == 0.25
