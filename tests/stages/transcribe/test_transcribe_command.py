"""`pipeline transcribe`: formats, files and folders, what fails, and the language."""

import json
import os
from pathlib import Path

import numpy as np
import pysubs2
import pytest
import soundfile
from makers import make_tiny_whisper, run_captured, saying

TEXT = "Ano, dej pokoj!"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says TEXT to whatever it hears, in windows of one second."""
    folder = make_tiny_whisper(tmp_path_factory.mktemp("model"), positions=448)
    saying(folder, TEXT, 30).model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "audio_window_s": 1}))
    return folder


def sound(path: Path, seconds: float = 0.8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(16_000 * seconds)) / 16_000
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * 300 * time), 16_000, format="WAV")
    return path


@pytest.fixture
def command(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def of(*arguments: object, language: tuple[str, ...] = ("--lang", "cs")) -> tuple[int, str, str]:
        return run_captured(
            monkeypatch, capsys, "transcribe", *arguments, "--model", model, "--device", "cpu", *language
        )

    return of


def written(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_one_recording_is_printed_in_any_format(command, tmp_path):
    sound(tmp_path / "a.wav")
    assert command("a.wav")[:2] == (0, f"{TEXT}\n")
    status, out, _ = command("a.wav", "--format", "json")
    found = json.loads(out)
    assert (status, found["text"], found["language"]) == (0, TEXT, "cs")
    assert [word["word"] for word in found["segments"][0]["words"]] == [" Ano,", " dej", " pokoj!"]
    assert 0 <= found["segments"][0]["start"] < found["segments"][0]["end"] <= 0.8
    (event,) = pysubs2.SSAFile.from_string(command("a.wav", "--format", "srt")[1], "srt")
    assert event.plaintext == TEXT


def test_several_recordings_are_printed_as_text_alone(command, tmp_path):
    sound(tmp_path / "a.wav")
    sound(tmp_path / "b.wav")
    assert command("a.wav", "b.wav", "a.wav")[:2] == (0, "".join(f"{name}.wav:\n{TEXT}\n" for name in "aba"))
    status, out, err = command("a.wav", "b.wav", "--format", "srt")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == "pipeline: 2 recordings as srt: give --out, a folder for their files"


@pytest.mark.parametrize(("format", "ending"), [("text", "txt"), ("srt", "srt")])
def test_a_folder_is_written_to_another(format, ending, command, tmp_path):
    for name in ("talks/a.wav", "talks/day 2/b.wav", "talks/day 2/kůň.wav"):
        sound(tmp_path / name)
    (tmp_path / "talks/notes.txt").write_text("notes")
    status, out, err = command("talks", "--format", format, "--out", "texts")
    assert (status, out) == (0, "")
    assert "talks: 3 recordings; no audio, left out: 1 (notes.txt)" in err.splitlines()
    assert any(line.startswith("transcribe: 3/3 recordings") for line in err.splitlines())
    assert (written("texts"), written("texts/day 2")) == (
        [f"a.{ending}", "day 2"],
        [f"b.{ending}", f"kůň.{ending}"],
    )
    assert all("pokoj!" in path.read_text(encoding="utf-8") for path in Path("texts").rglob(f"*.{ending}"))


def test_what_fails_is_named_and_the_others_are_written(command, tmp_path):
    sound(tmp_path / "a.wav")
    sound(tmp_path / "empty.wav", 0)
    (tmp_path / "broken.wav").write_text("no audio")
    status, _, err = command("broken.wav", "gone.wav", "empty.wav", "a.wav", "--out", "out")
    *_, last = err.splitlines()
    assert (status, last) == (1, "pipeline: 3 of 4 failed: broken.wav, gone.wav, empty.wav")
    assert "pipeline: gone.wav: no such file" in err.splitlines()
    assert written("out") == ["a.txt"]


HOSTILE = ["-o.wav", "a\nb.wav", "\x1b[31mred.wav", "..wav", " .wav", "kůň'\".wav", os.fsdecode(b"m\xe9.wav")]


def test_hostile_names(command, tmp_path):
    data = sound(tmp_path / "a.wav").read_bytes()
    (tmp_path / "in").mkdir()
    for name in HOSTILE:
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in" / "x\ny.txt").write_text("no audio")
    status, _, err = command("in", "--format", "json", "--out", "out")
    assert status == 0
    assert written("out") == sorted(name.removesuffix(".wav") + ".json" for name in HOSTILE)
    assert written(".") == ["a.wav", "in", "out"]  # nothing beside the folder
    assert "\x1b" not in err and "(x\\ny.txt)" in err
    status, out, _ = command("in/a\nb.wav", "in/\x1b[31mred.wav")
    assert (status, out) == (0, f"in/a\\nb.wav:\n{TEXT}\nin/\\x1b[31mred.wav:\n{TEXT}\n")


def test_the_folder_for_the_transcripts_is_no_file(command, tmp_path):
    sound(tmp_path / "a.wav")
    (tmp_path / "out").write_text("mine")
    status, _, err = command("a.wav", "--out", "out")
    assert status == 2 and "out is a file, expected a folder" in err
    assert (tmp_path / "out").read_text() == "mine"
    status, _, err = command("none", "--out", "texts")
    assert (status, err.splitlines()[-1]) == (1, "pipeline: none: no such file")


def test_a_recording_named_twice_is_written_once(command, tmp_path):
    sound(tmp_path / "in/a.wav")
    status, _, err = command("in/a.wav", "in", "in/a.wav", "--out", "out")
    assert status == 0 and "transcribe: 1/1 recordings" in err
    assert written("out") == ["a.txt"]


def test_the_language_is_heard_for_each_recording(command, tmp_path):
    sound(tmp_path / "a.wav")
    sound(tmp_path / "b.wav", 0.5)
    status, _, err = command("a.wav", "b.wav", "--format", "json", "--out", "out", language=())
    assert status == 0
    for name in "ab":
        code = json.loads(Path(f"out/{name}.json").read_text())["language"]
        (line,) = [line for line in err.splitlines() if line.startswith(f"{name}.wav: detected ")]
        assert f" ({code}), probability 0." in line
