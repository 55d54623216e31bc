"""`evaluate --model` measures any model under a name; `--untouched` compares its texts with the base's in other languages."""

import json
from pathlib import Path

import pytest
import torch
from makers import make_utterance_shards, run_captured, speaking
from transformers import WhisperFeatureExtractor

from stages.shared.student.experts import shared_of, write_expert
from stages.shared.student.metadata import base_metadata
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.whisper.models import Whisper, load_whisper


def save(whisper: Whisper, folder: Path) -> Path:
    whisper.model.save_pretrained(folder)
    whisper.tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture
def base(tiny_whisper: Path, tmp_path: Path) -> Path:
    whisper = speaking(load_whisper(str(tiny_whisper)), listen=300, end=40, seed=3)
    whisper.model.generation_config.begin_suppress_tokens = [whisper.tokenizer.eos_token_id]
    return save(whisper, tmp_path / "base")


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path, base: Path):
    """Runs a command line where Czech and Dutch have test splits. Models lie in the folders of the fixtures."""
    monkeypatch.setattr("pipeline.commands.common.use_all_cores", lambda: torch.set_num_threads(1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for language, split in (("cs", "test"), ("cs", "validation"), ("nl", "test")):
        make_utterance_shards(tmp_path / "data/utterances" / language / split, [3], split)
    (tmp_path / "params.yaml").write_text(f"student: {base}\nevaluate: {{dtype: fp32}}\n")
    return lambda *arguments: run_captured(monkeypatch, capsys, *arguments)


@pytest.fixture
def experts(base: Path, tmp_path: Path) -> Path:
    """Czech experts that say something else than the base, whatever the gate."""
    whisper = load_whisper(str(base))
    student = DistilWhisperForConditionalGeneration.from_whisper(whisper.model, ["cs"])
    named = base_metadata(whisper.model_id, dict(whisper.model.named_parameters()), 30, whisper.fingerprint)
    state = student.expert_state("cs")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.mul_(-20 if name.endswith("expert.fc2.weight") else 1)
    write_expert(tmp_path / "experts", "cs", state, shared_of(whisper.model), {**named, "token": "cs"})
    return tmp_path / "experts"


def metrics(place: str) -> dict:
    return json.loads(Path("metrics", place).read_text())


def rows(place: str) -> list[dict]:
    return [json.loads(line) for line in Path("metrics", place).read_text().splitlines()]


def test_any_model_is_measured_under_a_name_and_stands_in_the_report(pipeline, experts: Path):
    assert pipeline("evaluate", "--lang", "cs", "--system", "base")[0] == 0
    status, _, err = pipeline("evaluate", "--lang", "cs", "--model", experts, "--name", "my-experts")
    assert status == 0, err
    found = metrics("cs/my-experts.json")
    assert (found["system"], found["model"], found["split"]) == ("my-experts", str(experts), "test")
    assert found["gates"], "the experts took part"
    texts = [row["hypothesis"] for row in rows("cs/my-experts.utterances.jsonl")]
    assert texts != [row["hypothesis"] for row in rows("cs/base.utterances.jsonl")]
    assert pipeline("report")[0] == 0
    assert "| my-experts |" in Path("report/report.md").read_text()


def test_the_validation_split_is_measured_beside_the_test_split(pipeline, base: Path):
    for split in ("test", "validation"):
        assert pipeline("evaluate", "--lang", "cs", "--model", base, "--name", "it", "--split", split)[0] == 0
    assert metrics("cs/it@validation.json")["split"] == "validation"
    ids = [{row["id"] for row in rows(f"cs/{name}.utterances.jsonl")} for name in ("it", "it@validation")]
    assert not ids[0] & ids[1]


def test_a_model_has_its_own_window_as_in_transcribe(pipeline, base: Path):
    assert pipeline("--set", "audio_window_s=4", "evaluate", "--lang", "cs", "--model", base, "--name", "it")[0] == 0
    assert metrics("cs/it.json")["audio_window_s"] == 30


def test_experts_leave_other_languages_untouched(pipeline, experts: Path, base: Path):
    status, _, err = pipeline(
        "evaluate", "--lang", "cs", "--model", experts, "--name", "it", "--untouched", "nl", "--base", base
    )
    assert status == 0, err
    assert f"{experts}: untouched in Dutch: all 3 texts are those of {base}" in err
    assert rows("nl/it-of-cs.utterances.jsonl") == rows("nl/base.utterances.jsonl")


def test_a_model_that_changes_other_languages_is_named_with_its_rates(pipeline, base: Path, tmp_path: Path):
    other = load_whisper(str(base))
    with torch.no_grad():
        for layer in other.model.model.decoder.layers:
            layer.fc2.weight.mul_(-2000)
    model = save(other, tmp_path / "other")
    status, _, err = pipeline("evaluate", "--lang", "cs", "--model", model, "--name", "it", "--untouched", "dutch")
    assert status == 1
    assert f"{model} is changed in Dutch: 3 of 3 texts are not those of {base}" in err
    assert "% against" in err and "metrics/nl/it-of-cs.json" in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "x"], "--model and --name go together"),
        (["--name", "x"], "--model and --name go together"),
        (["--model", "x", "--name", "x", "--system", "base"], "exclude each other"),
        (["--model", "x", "--name", "teacher"], "a system has this name"),
        (["--model", "x", "--name", "base-x"], "not base- at its beginning"),
        (["--model", "x", "--name", "../x"], "expected up to 64 letters"),
        (["--model", "x", "--name", "a@b"], "expected up to 64 letters"),
        (["--corpus", "fleurs", "--split", "validation"], "it has no --split validation"),
        (["--split", "train"], "'train' is not one of"),
    ],
)
def test_wrong_usage_is_told(pipeline, options: list[str], told: str):
    status, _, err = pipeline("evaluate", "--lang", "cs", *options)
    assert status == 2 and told in err, err


def test_a_language_without_a_test_split_is_told(pipeline, base: Path):
    status, _, err = pipeline("evaluate", "--lang", "cs", "--model", base, "--name", "it", "--untouched", "de")
    assert status == 1 and "data/utterances/de/test" in err, err
