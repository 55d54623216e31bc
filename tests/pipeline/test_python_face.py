"""What Python code imports, and the README's blocks, word for word."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from makers import make_tiny_whisper, make_utterance, speaking
from sources import ROOT

import pipeline
from cache.errors import PipelineError
from stages.shared.audio import SAMPLE_RATE, decode_flac
from stages.shared.student.metadata import base_metadata
from stages.shared.student.model import DistilWhisperForConditionalGeneration as Student
from stages.shared.transcription import joined_text
from stages.shared.whisper.decode import Transcript
from stages.shared.whisper.languages import LANGUAGES, language_name
from stages.shared.whisper.models import load_whisper

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The names that the README uses: a base, an expert that changes what is said, and recordings."""
    folder = tmp_path_factory.mktemp("readme")
    base = make_tiny_whisper(folder / "openai/whisper-small")
    speaking(load_whisper(str(base)), listen=20, end=2.5, seed=4).model.save_pretrained(base)
    whisper = load_whisper(str(base))
    student = Student.from_whisper(whisper.model, ["gl"])
    for parameter in student.expert_state("gl").values():
        parameter.data += 0.1  # opens the gates, too
    student.config.name_or_path = "openai/whisper-small"
    student.save_expert(folder / "models/gl/clsr-kd", "gl", "fp32")
    assert base_metadata("x", student.base_parameters(), 30)["base_weights"] == whisper.fingerprint
    long = np.concatenate([decode_flac(make_utterance(number)["audio"]) for number in range(30)] * 3)  # 54 s
    soundfile.write(folder / "long.wav", long, SAMPLE_RATE)
    for number, name in enumerate(("talk.mp3", "galician.wav", "english.wav")):
        soundfile.write(folder / name, decode_flac(make_utterance(number)["audio"]), SAMPLE_RATE, format="WAV")
    return folder


def test_there_are_two_blocks_and_they_use_the_package():
    assert len(BLOCKS) == 2
    assert all("from pipeline import" in block for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=["load_model", "transformers"])
def test_a_block_of_the_readme_runs_as_written(block, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    found: dict = {}
    exec(compile(block, "README.md", "exec"), found)
    out = capsys.readouterr().out
    if "window" in found:
        assert out == found["window"].text + "\n" and found["window"].text
    else:
        texts = found["processor"].batch_decode(found["ids"], skip_special_tokens=True)
        assert out == f"{texts}\n"
        generate, inputs = found["student"].generate, found["inputs"].input_features
        plain = found["base"].generate(inputs[1:], language="en", task="transcribe")
        assert found["ids"][1, : plain.shape[1]].tolist() == plain[0].tolist()  # English by the base
        assert generate(inputs[:1], language="en", task="transcribe").tolist() != found["ids"][:1].tolist()


def test_the_names_are_those_of_the_parts():
    from stages.shared.student.loading import LoadedModel, load_model, transcribe
    from stages.shared.transcription import Transcription

    assert pipeline.DistilWhisperForConditionalGeneration is Student
    assert (pipeline.load_model, pipeline.transcribe) == (load_model, transcribe)
    assert (pipeline.LoadedModel, pipeline.Transcript) == (LoadedModel, Transcript)
    assert pipeline.Transcription is Transcription
    assert pipeline.transcribe is LoadedModel.transcribe
    assert set(pipeline.__all__) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="no attribute 'load_models'"):
        pipeline.load_models  # noqa: B018


def test_the_language_is_the_experts_or_asked_for(folder, monkeypatch):
    monkeypatch.chdir(folder)
    model = pipeline.load_model("models/gl/clsr-kd")
    assert list(model.languages) == ["gl"]
    default, named = (list(pipeline.transcribe(model, "talk.mp3", language)) for language in (None, "Galician"))
    assert default == named
    assert list(pipeline.transcribe(model, Path("talk.mp3"), device="cpu", dtype="auto")) == default
    assert {window.language for window in default} == {"gl"}


def test_the_method_of_the_model_is_the_function(folder, monkeypatch):
    """For a Whisper and for experts: the same windows, each when it is asked for, and the text of all of them."""
    monkeypatch.chdir(folder)
    for source in ("openai/whisper-small", "models/gl/clsr-kd"):
        model = pipeline.load_model(source)
        expected = list(pipeline.transcribe(model, "long.wav", "gl"))
        assert len([window for window in expected if window.text]) > 1
        found = model.transcribe("long.wav", language="Galician")
        assert next(found) == expected[0]
        assert found.text == " ".join(window.text for window in expected if window.text)
        assert list(found) == [] and found.text  # it is not decoded again
        with pytest.raises(PipelineError, match="unknown language 'galicjan'"):
            model.transcribe("long.wav", "galicjan")


def test_a_language_without_spaces_is_joined_without_them():
    def windows(language: str, *texts: str) -> list[Transcript]:
        return [Transcript([], text, False, False, 0.0, language=language) for text in texts]

    assert joined_text(windows("cs", "Dej", "", "pokoj.")) == "Dej pokoj."
    assert joined_text(windows("zh", "", "静か", "に。")) == "静かに。"
    assert joined_text(windows("cs", "", "")) == joined_text([]) == ""


def test_a_language_that_the_model_does_not_say_is_heard(folder, monkeypatch):
    monkeypatch.chdir(folder)
    said: list[str] = []
    base = pipeline.load_model("openai/whisper-small")
    (window,) = pipeline.transcribe(base, "talk.mp3", warn=said.append)
    assert window.language in LANGUAGES
    assert said == [
        f"talk.mp3: detected {language_name(window.language)} ({window.language}), {said[0].rpartition(', ')[2]}"
    ]
    assert list(pipeline.transcribe(base, "talk.mp3", window.language)) == [window]


def test_windows_have_times_and_words(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (window,) = pipeline.transcribe(pipeline.load_model("models/gl/clsr-kd"), "talk.mp3")
    assert "".join(word.text for word in window.words).strip() == window.text
    assert 0 <= window.start == window.words[0].start <= window.words[-1].end == window.end <= 0.6
    assert all(0 < word.probability <= 1 for word in window.words)


def test_a_silent_recording_has_no_language(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    soundfile.write(tmp_path / "silent.wav", [0.0] * SAMPLE_RATE, SAMPLE_RATE)
    model = pipeline.load_model("openai/whisper-small")
    with pytest.raises(PipelineError, match="nothing is to be heard in it that tells its language: give the language"):
        next(pipeline.transcribe(model, tmp_path / "silent.wav"))
    assert [window.text for window in pipeline.transcribe(model, tmp_path / "silent.wav", "cs")] == [""]


def test_weights_that_were_rounded_are_not_taken_for_exact_ones(folder, monkeypatch):
    monkeypatch.chdir(folder)
    model = pipeline.load_model("models/gl/clsr-kd")
    first = list(pipeline.transcribe(model, "talk.mp3", dtype="bf16"))
    for other, name in (("fp32", "float32"), ("fp16", "float16")):
        with pytest.raises(PipelineError, match=f"rounded to bfloat16 when it was used: load it again for {name}"):
            list(pipeline.transcribe(model, "talk.mp3", dtype=other))
    assert list(pipeline.transcribe(model, "talk.mp3", dtype="bf16")) == first


def test_the_command_line_starts_without_torch():
    """Also where the package's own names are offered."""
    code = (
        "import pipeline.cli, sys; print(*sorted({'torch', 'transformers', 'datasets', 'peft'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert {(ROOT / top / "py.typed").exists() for top in ("pipeline", "stages", "cache")} == {True}
