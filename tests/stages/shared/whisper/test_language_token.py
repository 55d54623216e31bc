"""A language that Whisper has no token for: trained and transcribed under a related language's, its own in all else."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from makers import make_tiny_whisper, run

import stages.shared.student.auto  # noqa: F401 (saving and loading by class)
from cache.errors import PipelineError
from cache.files import read_json
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.whisper.models import Whisper, load_whisper
from stages.shared.whisper.targets import prompt_ids, use_token

SPOKEN = ("en", "cs", "es", "pt")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_whisper(tmp_path_factory.mktemp("tiny"), languages=SPOKEN)


@pytest.fixture
def base(base_folder: Path) -> Whisper:
    return load_whisper(str(base_folder), 1)


def ids(whisper: Whisper, *names: str) -> list[int]:
    return whisper.tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names])


def prompted(model: torch.nn.Module, **call) -> list[list[int]]:
    """What the decoder reads first in one call of generate."""
    seen: list[list[list[int]]] = []
    handle = model.model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    random = torch.Generator().manual_seed(1)
    model.generate(torch.randn(2, 80, 100, generator=random), task="transcribe", max_new_tokens=2, **call)
    handle.remove()
    return seen[0]


@pytest.fixture
def student(base: Whisper) -> DistilWhisperForConditionalGeneration:
    use_token(base.model, "gn", "es")
    return DistilWhisperForConditionalGeneration.from_whisper(base.model, ["gn", "cs"]).eval()


# The model


def test_generate_prompts_with_the_token_and_routes_by_the_language(student, base):
    start, czech, spanish, transcribe, stamps = ids(base, "startoftranscript", "cs", "es", "transcribe", "notimestamps")
    guarani, own = [start, spanish, transcribe, stamps], [start, czech, transcribe, stamps]
    asked: set[str] = set()  # the layers whose gate was asked for Guarani
    for place, routed in student.routed.items():
        routed.gates["gn"].register_forward_hook(lambda *_, place=place: asked.add(place))
    for name in ("gn", "<|gn|>", "Guarani", "grn", ["gn", "gn"]):
        asked.clear()
        assert prompted(student, language=name) == [guarani, guarani]
        assert asked == set(student.routed)  # of both halves
    assert prompted(student, language=["gn", "cs"]) == [guarani, own]
    asked.clear()
    assert prompted(student, language="es") == [guarani, guarani]
    assert not asked


def test_the_codes_of_others_reach_generate(student, base):
    for name in ("cs_cz", "cze", "Czech", "<|cs|>"):
        assert prompted(student, language=name)[0][1] == ids(base, "cs")[0]


def test_a_saved_model_and_a_saved_expert_know_the_token(student, base_folder, base, tmp_path):
    student.save_pretrained(tmp_path / "whole")
    again = DistilWhisperForConditionalGeneration.from_pretrained(tmp_path / "whole").eval()
    assert again.config.language_tokens == {"gn": "es"}
    assert prompted(again, language="gn") == prompted(student, language="gn")

    student.save_expert(tmp_path / "gn", "gn")
    student.save_expert(tmp_path / "cs", "cs")
    assert [read_json(tmp_path / name / "experts.json")["token"] for name in ("gn", "cs")] == ["es", "cs"]
    fresh = DistilWhisperForConditionalGeneration.from_whisper(load_whisper(str(base_folder), 1).model)
    with pytest.raises(PipelineError, match="no token for Guarani"):
        fresh.generate(torch.zeros(1, 80, 100), language="gn")
    assert [fresh.load_expert(tmp_path / name) for name in ("gn", "cs")] == ["gn", "cs"]
    assert fresh.config.language_tokens == {"gn": "es"}
    assert prompted(fresh, language="gn") == prompted(student, language="gn")

    fresh.drop_expert("gn")
    with pytest.raises(PipelineError, match="no token for Guarani"):
        fresh.generate(torch.zeros(1, 80, 100), language="gn")
    use_token(fresh, "gn", "pt")
    with pytest.raises(PipelineError, match="under the token of 'pt', asked for 'es'"):
        fresh.load_expert(tmp_path / "gn")
    assert fresh.languages == ["cs"]


@pytest.mark.parametrize("token", [5, "gn", None])
def test_a_token_beside_an_expert_that_is_none(token, student, base_folder, tmp_path):
    student.save_expert(tmp_path, "gn")
    facts = read_json(tmp_path / "experts.json")
    (tmp_path / "experts.json").write_text(json.dumps({**facts, "token": token}))
    fresh = DistilWhisperForConditionalGeneration.from_whisper(load_whisper(str(base_folder), 1).model)
    if token == "gn":  # as a folder without the fact
        assert fresh.load_expert(tmp_path) == "gn"
        return
    with pytest.raises(PipelineError, match=r"experts.json: token is (5|None), expected text"):
        fresh.load_expert(tmp_path)


def test_an_expert_without_a_token_cannot_generate(base):
    student = DistilWhisperForConditionalGeneration.from_whisper(base.model, ["gn"])
    with pytest.raises(PipelineError, match="no token for Guarani"):
        student.generate(torch.zeros(1, 80, 100), language="gn")


def test_a_model_that_lacks_a_token_of_whispers(base):
    """Cantonese came with large-v3; an older model is prompted by another language's token, if it is named."""
    with pytest.raises(PipelineError, match=r"no token <\|yue\|>.*name a related language's token"):
        prompt_ids(base, "yue")
    use_token(base.model, "yue", "es")
    assert prompt_ids(base, "yue") == ids(base, "startoftranscript", "es", "transcribe", "notimestamps")


# The commands


@pytest.fixture
def project(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Guarani's corpus and parameters, without a token."""
    monkeypatch.setattr("pipeline.commands.common.use_all_cores", lambda: torch.set_num_threads(1))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    random, lines = np.random.default_rng(0), ["path,text,split"]
    for number, split in enumerate(("train", "train", "dev", "test")):
        soundfile.write(f"{number}.wav", 0.1 * random.standard_normal(12_000), 16_000)
        lines.append(f"{number}.wav,Mba'éichapa {number},{split}")
    Path("gn.csv").write_text("\n".join(lines), encoding="utf-8")
    Path("params.yaml").write_text(
        f"languages:\n  gn:\n    corpus: {{corpus: manifest, path: gn.csv}}\n"
        f"student: {base_folder}\nteacher: {{model: {base_folder}}}\naudio_window_s: 1\ndevice: cpu\n"
        "teacher_cache: {top_k: 4, dtype: fp32, transcribe: true}\nevaluate: {dtype: fp32}\n"
        "train: {batch_size: 2, accumulate: 1, max_steps: 1, dtype: fp32}\n"
    )
    return tmp_path


TOKEN = ("--set", "languages.gn.token=es")


def test_from_the_corpus_to_a_transcript(project, base, monkeypatch, capsys):
    for step in (
        ["prepare"],
        ["teacher-cache"],
        ["train-student", "--method", "clsr-kd", "--method", "lora", "--method", "full"],
        ["evaluate"],
        ["report"],
    ):
        assert run(monkeypatch, *TOKEN, *step) == 0, capsys.readouterr().err
    spanish = ids(base, "startoftranscript", "es", "transcribe", "notimestamps")
    made = read_json(Path("data/teacher/gn/train/manifest.json"))["settings"]
    assert (made["language"], made["token"], made["prompt"]) == ("gn", "es", spanish)
    for method in ("clsr-kd", "lora", "full"):
        facts = read_json(Path(f"models/gn/{method}/training.json"))["settings"]
        assert (facts["language"], facts["token"]) == ("gn", "es")
    assert read_json(Path("models/gn/clsr-kd/experts.json"))["token"] == "es"
    assert read_json(Path("models/gn/lora/lora.json"))["language_tokens"] == {"gn": "es"}
    assert read_json(Path("models/gn/full/config.json"))["language_tokens"] == {"gn": "es"}
    for system in ("base", "teacher", "clsr-kd", "lora", "full"):
        metrics = read_json(Path(f"metrics/gn/{system}.json"))
        assert (metrics["language"], metrics["token"], metrics["utterances"]) == ("gn", "es", 1)
    assert "Guarani (gn)" in Path("report/report.md").read_text(encoding="utf-8")

    Path("params.yaml").unlink()  # what was trained knows its token
    prompts: list[list[int]] = []
    generate = type(base.model).generate

    def noted(self, *args, **kwargs):
        config = kwargs["generation_config"]
        language = kwargs.get("language") or config.language
        prompts.append(config.lang_to_id[language])
        return generate(self, *args, **kwargs)

    monkeypatch.setattr("transformers.WhisperForConditionalGeneration.generate", noted)
    for method in ("clsr-kd", "lora", "full"):
        language = [] if method != "full" else ["--lang", "Guarani"]
        capsys.readouterr()
        assert (
            run(monkeypatch, "transcribe", "3.wav", *language, "--model", f"models/gn/{method}", "--device", "cpu") == 0
        )
        assert prompts.pop() == spanish[1]
        assert not prompts

    for token in ("pt", "Portuguese"):
        arguments = ("transcribe", "3.wav", "--lang", "gn", "--token", token, "--model", "models/gn/full")
        assert run(monkeypatch, *arguments) == 1
        assert "under the token of 'es', asked for 'pt'" in capsys.readouterr().err


def test_a_cache_under_another_token_does_not_fit(project, monkeypatch, capsys):
    assert run(monkeypatch, "prepare") == 0
    assert "--token es" in capsys.readouterr().err  # already here: preparing needs none, what follows does
    assert run(monkeypatch, "teacher-cache", "--lang", "gn", "--token", "spanish") == 0
    assert run(monkeypatch, "train-student", "--lang", "gn", "--token", "pt") == 1
    assert "token: found 'es', wanted 'pt'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["teacher-cache", "train-student", "evaluate", "adapt-teacher", "transcribe"])
def test_without_a_token_a_line_says_how(command, project, base_folder, monkeypatch, capsys):
    if command == "evaluate":
        assert run(monkeypatch, "prepare") == 0
    more = {
        "adapt-teacher": ["--set", "teacher.adapt={max_steps: 1}"],
        "evaluate": [],
        "transcribe": [],
    }.get(command, [])
    after = {
        "evaluate": ["--system", "base"],
        "train-student": ["--method", "clsr"],
        "transcribe": ["3.wav", "--model", str(base_folder)],
    }.get(command, [])
    capsys.readouterr()
    assert run(monkeypatch, *more, command, "--lang", "gn", *after) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "Whisper has no token for Guarani (gn): name a related language's token" in last
    assert "token: es" in last
    assert "--token es" in last


@pytest.mark.parametrize("languages", [[], ["--lang", "gn,rw"]])
def test_a_token_is_of_one_language(languages, project, monkeypatch, capsys):
    assert run(monkeypatch, "teacher-cache", *languages, "--token", "es") == 2
    assert "--token needs --lang with one language" in capsys.readouterr().err


def test_what_is_taken_is_said_once(project, monkeypatch, capsys):
    assert run(monkeypatch, "prepare", "--lang", "grn,Guarani,gn") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "grn: taken as Guarani (gn)"
    assert sum("taken as" in line for line in lines) == 1
    assert sum("data/utterances/gn/train:" in line for line in lines) == 1
    assert [folder.name for folder in Path("data/utterances").iterdir()] == ["gn"]
