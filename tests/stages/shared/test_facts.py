"""Files of facts that somebody has damaged: one line with the file's name, from whatever reads them."""

import json
import shutil
from pathlib import Path

import pytest
from export_makers import make_lora
from makers import make_utterance_shards, run_captured
from metrics_files import write_metrics

from cache.errors import PipelineError
from stages.shared.facts import read_begun, read_metrics, read_rows, read_training
from stages.shared.layout import RESULT, rows_path

BROKEN = pytest.mark.parametrize(
    "text", ["[]", "5", "null", "{}", '{"settings": []}', '{"settings": {"fold": "x"}}', "{"]
)
SETTINGS = {"method": "lora", "seed": 0, "base": "openai/whisper-base", "audio_window_s": 4}
SETTINGS |= {"batch_size": 8, "accumulate": 1}
FACTS = {
    "settings": SETTINGS,
    "training_utterances": 4,
    "validation_utterances": 2,
    "steps": 3,
    "best_step": 3,
    "best_validation_wer": 0.5,
}


@pytest.fixture
def adapter(tiny_whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return make_lora(tiny_whisper, Path("models/cs/lora"))


@BROKEN
@pytest.mark.parametrize("command", ["export", "evaluate", "train-student", "adapt-teacher"])
def test_a_damaged_training_json(command, text, adapter, tiny_whisper, monkeypatch, capsys):
    for split in ("train", "validation", "test"):
        make_utterance_shards(Path("data/utterances/cs") / split, [1], split)
    shutil.copytree(adapter, "models/cs/teacher")
    for folder in (adapter, Path("models/cs/teacher")):
        (folder / RESULT).write_text(text)
    arguments = {
        "export": ["export", str(adapter), "--to", "peft", "--out", "out"],
        "evaluate": ["evaluate", "--lang", "cs", "--system", "lora"],
        "train-student": ["train-student", "--lang", "cs", "--method", "lora"],
        "adapt-teacher": ["adapt-teacher", "--lang", "cs"],
    }[command]
    settings = {"student": tiny_whisper, "teacher.model": tiny_whisper, "teacher.adapt": "{}", "audio_window_s": 1}
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    status, _, error = run_captured(monkeypatch, capsys, *given, *arguments)
    assert status == 1, error
    assert RESULT in error.splitlines()[-1] and "Traceback" not in error
    assert not Path("out").exists()


@pytest.mark.parametrize("change", [{"steps": "many"}, {"best_validation_wer": None}, {"data": {"cs": "fish"}}])
def test_a_fact_of_another_type(change, tmp_path):
    (tmp_path / RESULT).write_text(json.dumps({**FACTS, **change}))
    with pytest.raises(PipelineError, match=f"{RESULT}: field '{next(iter(change))}"):
        read_training(tmp_path)


def test_what_is_as_expected_is_read(tmp_path):
    assert read_training(tmp_path) is None
    (tmp_path / RESULT).write_text(json.dumps({**FACTS, "settings": {**SETTINGS, "fold": [1, 2], "rank": 64}}))
    training = read_training(tmp_path)
    assert training is not None and training.steps == 3 and training.settings.timestamps == 0
    assert read_begun(tmp_path / RESULT)["settings"]["rank"] == 64


@pytest.mark.parametrize("text", ["[]", "5", "{}", "null"])
def test_damaged_metrics(text, tmp_path):
    path = tmp_path / "cs/lora.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(PipelineError, match=r"lora\.json: field"):
        read_metrics(path)


@pytest.mark.parametrize("line", ["[]", "{}", '{"id": "u00"}', "5"])
def test_damaged_rows(line, tmp_path):
    path = write_metrics(tmp_path / "cs/lora.json", [("jedna", "dva")])
    rows_path(path).write_text(line + "\n")
    with pytest.raises(PipelineError, match=r"lora\.utterances\.jsonl, line 1: field"):
        read_rows(path, read_metrics(path))
