"""The card beside what is trained: each fact from the run, and nothing that the run does not know."""

from pathlib import Path

import pytest
from export_makers import make_experts
from huggingface_hub import ModelCard
from makers import make_teacher_shards, make_utterance_shards, run, run_captured

from cache.files import read_json
from stages.shared.student.loading import locate
from stages.shared.whisper.models import load_whisper


@pytest.fixture
def data(tmp_path: Path, tiny_whisper: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split, rows in {"train": [3, 2], "validation": [2]}.items():
        make_utterance_shards(tmp_path / "data/utterances/cs" / split, rows, split)
    student = load_whisper(str(tiny_whisper), 1)
    make_teacher_shards(tmp_path / "data/teacher/cs/train", tmp_path / "data/utterances/cs/train", student)
    return tmp_path


@pytest.mark.parametrize(
    ("method", "library", "words"),
    [
        ("lora", "peft", ["a LoRA adapter", "were changed by the training too"]),
        ("full", "transformers", ["a Whisper", "were changed by the training too"]),
        ("clsr-kd", "whisper-offline-distillation", ["experts (CLSR)", "go through the base's own blocks"]),
    ],
)
def test_every_method_leaves_a_card(method, library, words, data, tiny_whisper, monkeypatch):
    settings = ["--set", f"student={tiny_whisper}", "--set", "audio_window_s=1", "--set", "licence=cc-by-4.0"]
    command = ["train-student", "--lang", "cs", "--method", method, "--max-steps", "2"]
    assert run(monkeypatch, *settings, *command) == 0
    folder = Path("models/cs") / method
    card, result = ModelCard.load(folder / "README.md"), read_json(folder / "training.json")
    assert (card.data.language, card.data.library_name, card.data.license) == (["cs"], library, "cc-by-4.0")
    assert card.data.base_model is None  # a folder of this machine is no model of the hub
    assert card.data.eval_results is None
    wer = f"{100 * result['best_validation_wer']:.1f} % on 2 utterances"
    for part in (
        *words,
        wer,
        "2 steps, seed 0",
        "5 utterances in training",
        "| audio window | 1 s |",
        "without timestamps",
    ):
        assert part in card.text, part
    assert 'load_model("here")' in card.text
    assert locate(str(folder)).folder == folder  # a card is no part of the model


def test_what_is_compressed_has_a_card_as_well(data, tiny_whisper, monkeypatch, capsys):
    make_experts(tiny_whisper, Path("experts"))
    command = ["experts", "compress", "experts", "--out", "small", "--precision", "int8", "--rank", "4"]
    status, _, error = run_captured(monkeypatch, capsys, *command)
    assert status == 0, error
    card = ModelCard.load("small/README.md")
    assert card.data.language == ["cs"] and "experts (CLSR)" in card.text
