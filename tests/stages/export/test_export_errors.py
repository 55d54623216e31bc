"""What cannot be exported is one line, and leaves nothing."""

import errno
import json
import shutil
from pathlib import Path

from export_makers import make_experts, make_lora
from makers import make_tiny_whisper, run_captured

from stages.export import run as stage


def refused(monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    status, out, error = run_captured(monkeypatch, capsys, "export", *arguments)
    last = error.splitlines()[-1]
    assert out == "" and last.startswith("pipeline: ")
    return status, last


def test_wrong_usage(speaker, work, monkeypatch, capsys):
    make_lora(speaker, work / "lora")
    make_experts(speaker, work / "experts")
    for arguments, text in {
        (
            "lora",
            "--to",
            "tflite",
            "--out",
            "out",
        ): "'tflite' is not one of 'whisper', 'ctranslate2', 'peft', 'ggml', 'onnx'",
        ("lora", "--to", "whisper"): "Missing option '--out'",
        ("lora", "--to", "ggml", "--out", "out", "--precision", "fp32"): "--precision fp32: ggml has fp16 alone",
        ("lora", "--to", "whisper", "--out", "out", "--fold", "gates"): "--fold gates: has no effect here",
        ("experts", "--to", "peft", "--out", "out", "--fold", "all"): "--fold all: has no effect here",
        ("experts", "--to", "onnx", "--out", "out", "--fold", "all"): "--fold all: has no effect here",
        ("experts", "--to", "onnx", "--out", "out", "--precision", "fp16"): "--precision fp16: onnx has fp32 alone",
        ("lora", "--to", "whisper", "--out", "out", "--lang", "gl"): "gl: lora was trained for cs",
        ("lora", "--to", "whisper", "--out", "out", "--lang", "catlan"): "did you mean catalan",
    }.items():
        status, line = refused(monkeypatch, capsys, *arguments)
        assert (status, text in line) == (2, True), line
    assert not Path("out").exists()


def test_a_place_that_is_taken(speaker, work, monkeypatch, capsys):
    make_lora(speaker, work / "lora")
    (work / "taken").mkdir()
    (work / "taken/notes.txt").write_text("mine")
    (work / "file").write_text("mine")
    for out, text in {"taken": "taken: holds files already", "file": "file: a file, expected a new folder"}.items():
        status, line = refused(monkeypatch, capsys, "lora", "--to", "whisper", "--out", out)
        assert (status, text in line) == (1, True), line
    assert [path.name for path in (work / "taken").iterdir()] == ["notes.txt"]
    (work / "empty").mkdir()
    assert run_captured(monkeypatch, capsys, "export", "lora", "--to", "whisper", "--out", "empty")[0] == 0
    assert (work / "empty/README.md").exists()


def test_a_library_that_is_not_installed_is_named_with_its_extra(speaker, work, monkeypatch, capsys):
    make_lora(speaker, work / "lora")
    find = stage.check_installed.__globals__["importlib"].util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "ctranslate2" else find(name, *rest)
    )
    status, line = refused(monkeypatch, capsys, "lora", "--to", "ctranslate2", "--out", "out")
    assert status == 1
    assert "ctranslate2 is not installed: pip install -c constraints.txt -e '.[export]'" in line


def test_experts_need_validation_shards(speaker, work, monkeypatch, capsys):
    make_experts(speaker, work / "experts")
    status, line = refused(monkeypatch, capsys, "experts", "--to", "whisper", "--out", "out")
    assert status == 1
    assert "data/utterances/cs/validation: no validation shards there" in line and "prepare --lang cs" in line


def test_another_base_is_refused(speaker, validation, work, monkeypatch, capsys):
    make_experts(speaker, work / "experts")
    make_tiny_whisper(work / "other", seed=5)
    status, line = refused(monkeypatch, capsys, "experts", "--to", "whisper", "--out", "out", "--base", "other")
    assert status == 1 and "trained on base weights" in line
    status, line = refused(monkeypatch, capsys, "other", "--to", "whisper", "--out", "out", "--base", "other")
    assert status == 1 and "--base other has no effect" in line
    assert not Path("out").exists()


def test_values_beyond_half_precision_are_refused(speaker, work, monkeypatch, capsys):
    from safetensors.torch import load_file, save_file

    shutil.copytree(speaker, work / "loud")
    weights = load_file("loud/model.safetensors")
    weights["model.decoder.layers.0.fc1.weight"][0, 0] = 1e5
    save_file(weights, "loud/model.safetensors", {"format": "pt"})
    arguments = ("loud", "--to", "whisper", "--out", "out", "--lang", "cs", "--precision", "fp16")
    status, line = refused(monkeypatch, capsys, *arguments)
    assert status == 1
    assert "'model.decoder.layers.0.fc1.weight' has values that are not finite in fp16" in line
    assert "try --precision fp32" in line


def test_a_full_disk_leaves_nothing(speaker, work, monkeypatch, capsys):
    make_lora(speaker, work / "lora")
    before = {path.name for path in work.iterdir()}

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "vocab.json")

    monkeypatch.setattr("stages.export.plain.write_vocabulary", full)
    status, line = refused(monkeypatch, capsys, "lora", "--to", "whisper", "--out", "out")
    assert status == 1 and "No space left on device: free some space" in line
    assert {path.name for path in work.iterdir()} == before


def test_a_hostile_name_does_not_break_the_card(speaker, work, monkeypatch, capsys):
    """A folder may be called like a line of the hub's metadata."""
    from huggingface_hub import ModelCard

    name = "a: [b\n---\n# c"
    make_lora(speaker, work / name)
    status, _, error = run_captured(monkeypatch, capsys, "export", name, "--to", "whisper", "--out", "out")
    assert status == 0, error
    card = ModelCard.load("out/README.md")
    assert card.data.language == ["cs"]
    assert json.loads(json.dumps(card.data.to_dict()))["library_name"] == "transformers"
