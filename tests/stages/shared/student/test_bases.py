"""The base of an expert or an adapter: found wherever it lies, and only taken where its weights and its window are the same."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import soundfile
import torch
from makers import make_tiny_whisper, make_utterance_shards, run
from transformers import WhisperForConditionalGeneration

from cache.errors import PipelineError
from stages.shared.audio import decode_flac
from stages.shared.student.loading import load_model
from stages.shared.student.model import DistilWhisperForConditionalGeneration as Student
from stages.shared.whisper.models import load_whisper
from stages.shared.whisper.window import cut_audio_window

HALVES = [torch.bfloat16, torch.float16]


def base_in(folder: Path, dtype: torch.dtype = torch.float32, window: int = 2) -> WhisperForConditionalGeneration:
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    cut_audio_window(model, window)
    return model


def student_in(folder: Path, dtype: torch.dtype = torch.float32, window: int = 2) -> Student:
    return Student.from_whisper(base_in(folder, dtype, window))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, another of the same shape, and an expert of the first one, trained with a window of 2 s."""
    folder = tmp_path_factory.mktemp("places")
    for seed, name in enumerate(("base", "other")):
        make_tiny_whisper(folder / name, seed=seed)
    student = student_in(folder / "base")
    student.add_expert("cs")
    student.save_expert(folder / "expert", "cs")
    return {name: folder / name for name in ("base", "other", "expert")}


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_an_expert_loads_beside_its_own_base_alone(dtype, places):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert student_in(places["base"], dtype).load_expert(places["expert"]) == "cs"
        stranger = student_in(places["other"], dtype)
        with pytest.raises(PipelineError, match="expected the same base model") as caught:
            stranger.load_expert(places["expert"])
    assert str(places["expert"]) in str(caught.value)
    assert stranger.languages == []


@pytest.mark.parametrize("window", [1, 3, 30])
def test_an_expert_loads_with_its_own_window_alone(window, places):
    student = student_in(places["base"], window=window)
    with pytest.raises(PipelineError, match=f"audio_window_s 2, the model has {window}"):
        student.load_expert(places["expert"])
    assert student.languages == []


@pytest.mark.parametrize("dtype", HALVES)
def test_an_expert_saved_beside_a_base_in_half_precision(dtype, places, tmp_path):
    """Its fingerprint is of rounded weights: the base in float32 is rounded before it is compared."""
    student = student_in(places["base"], dtype)
    student.add_expert("cs")
    student.save_expert(tmp_path / "expert", "cs")
    assert load_model(str(tmp_path / "expert")).student is not None
    assert student_in(places["base"], dtype).load_expert(tmp_path / "expert") == "cs"
    with pytest.raises(PipelineError, match="expected the same base model"):
        load_model(str(tmp_path / "expert"), base=str(places["other"]))


def test_what_cannot_be_compared_is_said(places, tmp_path):
    """Trained beside float16 weights, used beside bfloat16 ones; or written before the rounded fingerprints were."""
    student = student_in(places["base"], torch.float16)
    student.add_expert("cs")
    student.save_expert(tmp_path / "half", "cs")
    with pytest.warns(UserWarning, match="cannot be compared"):
        student_in(places["base"], torch.bfloat16).load_expert(tmp_path / "half")
    shutil.copytree(places["expert"], tmp_path / "old")
    metadata = json.loads((tmp_path / "old/experts.json").read_text())
    old = {
        name: value
        for name, value in metadata.items()
        if name not in ("base_weights_bf16", "base_weights_fp16", "base_dtype")
    }
    (tmp_path / "old/experts.json").write_text(json.dumps(old))
    assert student_in(places["base"]).load_expert(tmp_path / "old") == "cs"
    with pytest.warns(UserWarning, match="cannot be compared"):
        student_in(places["base"], torch.bfloat16).load_expert(tmp_path / "old")


# Where it lies


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which an expert and an adapter were trained from the folder `models-here/whisper`."""
    folder = tmp_path_factory.mktemp("work")
    make_tiny_whisper(folder / "models-here/whisper")
    for split, rows in {"train": [3], "validation": [1]}.items():
        make_utterance_shards(folder / "data/utterances/cs" / split, rows, split)
    lines = ["student: models-here/whisper", "audio_window_s: 1", "train: {max_steps: 1, dtype: fp32, batch_size: 2}"]
    (folder / "params.yaml").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        for method in ("clsr", "lora"):
            assert run(patch, "train-student", "--lang", "cs", "--method", method) == 0
    soundfile.write(folder / "a.wav", decode_flac(make_row()), 16_000)
    return folder


def make_row() -> bytes:
    from makers import make_utterance

    return make_utterance(3)["audio"]


@pytest.mark.parametrize("method", ["clsr", "lora"])
def test_from_another_folder(method, trained, tmp_path, monkeypatch, capsys):
    """The base is found beside the folder of models, as it was named in training; also where the whole has moved."""
    shutil.copytree(trained, tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wav = str(trained / "a.wav")
    for place in (str(trained), str(tmp_path / "moved"), "../moved"):
        assert run(monkeypatch, "transcribe", wav, "--model", f"{place}/models/cs/{method}") == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("method", ["clsr", "lora"])
def test_a_base_that_lies_elsewhere(method, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(trained / "models/cs" / method, tmp_path / "ship")
    shutil.copytree(trained / "models-here/whisper", tmp_path / "bases/here")
    make_tiny_whisper(tmp_path / "bases/other", seed=9)
    command = ("transcribe", str(trained / "a.wav"), "--model", "ship")
    assert run(monkeypatch, *command) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "models-here/whisper" in said and "--base" in said
    assert run(monkeypatch, *command, "--base", "bases/here") == 0
    assert run(monkeypatch, *command, "--base", "bases/other") == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "bases/other" in said and "expected the same base model" in said


def test_a_folder_is_not_taken_for_a_name_on_the_hub(trained):
    """`models-here/whisper` reads like owner/name."""
    for file in ("clsr/experts.json", "lora/lora.json"):
        assert json.loads((trained / "models/cs" / file).read_text())["base"] == "./models-here/whisper"


def test_a_whisper_has_no_base(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    command = ("transcribe", "a.wav", "--lang", "cs", "--model", "models-here/whisper", "--base", "x")
    assert run(monkeypatch, *command) == 1
    assert "--base x has no effect" in capsys.readouterr().err


def test_a_window_recorded_in_the_facts_is_that_of_the_training(trained):
    metadata = json.loads((trained / "models/cs/clsr/experts.json").read_text())
    assert metadata["audio_window_s"] == 1
    assert metadata["base_weights"] == load_whisper(str(trained / "models-here/whisper"), 1).fingerprint
