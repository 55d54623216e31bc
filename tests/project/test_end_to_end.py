"""The commands one after the other on made recordings and a tiny model, as a user would run them."""

import json
from pathlib import Path

import numpy as np
import soundfile
from makers import TEXTS, make_tiny_whisper, run
from transformers.models.whisper.tokenization_whisper import LANGUAGES


def make_corpus(folder: Path, clips: int) -> Path:
    """Stereo 48 kHz tones with transcripts, by 12 speakers."""
    lines = ["path,text,speaker"]
    for number in range(clips):
        time = np.arange(int(48_000 * (0.5 + 0.02 * number))) / 48_000
        tone = 0.1 * np.sin(2 * np.pi * (150 + 20 * number) * time)
        soundfile.write(folder / f"{number}.wav", np.stack([tone, tone], 1), 48_000)
        lines.append(f'{number}.wav,"{TEXTS[number % len(TEXTS)]} {number}",s{number % 12}')
    (folder / "corpus.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "corpus.csv"


def test_from_recordings_to_report(monkeypatch, tmp_path, capsys):
    """The teacher as large-v3 is one: it has 128 mel bins, and a language before Czech that the student lacks."""
    corpus = make_corpus(tmp_path, 40)
    teacher = make_tiny_whisper(tmp_path / "large", seed=1, mels=128)
    student = make_tiny_whisper(tmp_path / "small", languages=[code for code in LANGUAGES if code != "uk"])
    monkeypatch.chdir(tmp_path)
    settings = {
        "languages": {"cs": {"corpus": {"corpus": "manifest", "path": str(corpus)}}},
        "audio_window_s": 2,
        "student": str(student),
        "teacher": {"model": str(teacher), "adapt": {"max_steps": 2, "accumulate": 1, "dtype": "fp32"}},
        "train": {"max_steps": 3, "accumulate": 2, "batch_size": 4, "dtype": "fp32"},
        "teacher_cache": {"top_k": 8, "dtype": "fp32"},
        "evaluate": {"dtype": "fp32"},
    }
    (tmp_path / "params.yaml").write_text(json.dumps(settings))  # JSON is YAML
    for command in (
        ["prepare", "--lang", "Czech"],
        ["adapt-teacher", "--lang", "cs"],
        ["teacher-cache", "--lang", "cs"],
        ["train-student", "--lang", "cs", "--method", "clsr-kd", "--method", "clsr"],
        ["evaluate", "--lang", "cs"],
        ["report"],
    ):
        assert run(monkeypatch, *command) == 0, capsys.readouterr().err
    output = capsys.readouterr()
    assert "CLSR-FT+KD" in output.out and "report/index.html" in output.out
    systems = {path.stem for path in (tmp_path / "metrics/cs").glob("*.json")}
    assert systems == {"base", "teacher", "clsr", "clsr-kd"}
    utterances = json.loads((tmp_path / "data/utterances/cs/test/manifest.json").read_text())["rows"]
    for system in systems:
        metrics = json.loads((tmp_path / f"metrics/cs/{system}.json").read_text())
        assert metrics["utterances"] + len(metrics["unscored"]) == utterances
    assert {"encoder.layers.0", "decoder.layers.1"} <= metrics["gates"].keys() or metrics["system"] in (
        "base",
        "teacher",
    )
    assert run(monkeypatch, "transcribe", str(tmp_path / "3.wav"), "--model", "models/cs/clsr-kd") == 0
    assert capsys.readouterr().out.strip()
    # a second call finds everything done
    assert run(monkeypatch, "teacher-cache", "--lang", "cs", "--top-k", "9") == 1
    assert "top_k: found 8, wanted 9" in capsys.readouterr().err
