"""One language several times in the parameters, with other data: ca-x-3k. Folders have the entry's name, all else the code."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from makers import run
from sources import ROOT

from cache.errors import PipelineError
from cache.files import read_json
from pipeline.params import load_params
from stages.shared.whisper.languages import code_of, entry_name, language_name

SIZES = ("3k", "10k", "28k")


@pytest.mark.parametrize(
    ("text", "entry"),
    [("ca", "ca"), ("Catalan", "ca"), ("ca-x-3k", "ca-x-3k"), ("Catalan-x-3K", "ca-x-3k"), ("nb-x-a-2", "no-x-a-2")],
)
def test_an_entry_is_a_code_with_or_without_a_name(text, entry):
    assert entry_name(text) == entry
    assert language_name(entry) == language_name(code_of(entry)) != entry


@pytest.mark.parametrize("text", ["ca-x-", "ca-x-a b", "ca-x-../a", "ca-x-a@b", "ca-x-a.b", "nope-x-a", "-x-a"])
def test_what_is_no_entry_is_refused(text):
    with pytest.raises(PipelineError, match="language"):
        entry_name(text)


def test_a_key_must_be_the_entry_itself(tmp_path):
    (tmp_path / "params.yaml").write_text("languages: {cat-x-3k: {}}")
    with pytest.raises(PipelineError, match="'cat-x-3k' is taken as Catalan: write ca-x-3k"):
        load_params(tmp_path / "params.yaml", {})


@pytest.fixture
def project(tiny_whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two corpora of Czech, one with twice as many training lines."""
    monkeypatch.setattr("pipeline.commands.common.use_all_cores", lambda: torch.set_num_threads(1))
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name, count in (("few", 2), ("all", 4)):
        Path(name).mkdir()
        lines = ["path,text,split"]
        for number, split in enumerate([*["train"] * count, "dev", "test"]):
            soundfile.write(f"{name}/{number}.wav", 0.1 * random.standard_normal(12_000), 16_000)
            lines.append(f"{number}.wav,ahoj {number},{split}")
        Path(f"{name}/lines.csv").write_text("\n".join(lines), encoding="utf-8")
    Path("params.yaml").write_text(
        "languages:\n  cs-x-few: {corpus: {corpus: manifest, path: few/lines.csv}}\n"
        "  cs-x-all: {corpus: {corpus: manifest, path: all/lines.csv}}\n"
        f"student: {tiny_whisper}\nteacher: {{model: {tiny_whisper}, adapt: {{max_steps: 1, batch_size: 2, dtype: fp32}}}}\n"
        "audio_window_s: 1\ndevice: cpu\nteacher_cache: {top_k: 4, dtype: fp32}\nevaluate: {dtype: fp32}\n"
        "train: {batch_size: 2, accumulate: 1, max_steps: 1, dtype: fp32}\n"
    )
    return tmp_path


def test_from_the_corpora_to_one_report(project, monkeypatch, capsys):
    for step in (
        ["prepare"],
        ["adapt-teacher"],
        ["teacher-cache"],
        ["train-student", "--method", "clsr-kd"],
        ["evaluate"],
        ["report"],
    ):
        assert run(monkeypatch, *step) == 0, capsys.readouterr().err
    for entry, count in (("cs-x-few", 2), ("cs-x-all", 4)):
        assert read_json(Path(f"data/utterances/{entry}/train/manifest.json"))["rows"] == count
        assert read_json(Path(f"data/teacher/{entry}/train/manifest.json"))["settings"]["language"] == "cs"
        facts = read_json(Path(f"models/{entry}/clsr-kd/training.json"))
        assert (facts["settings"]["language"], facts["training_utterances"], list(facts["data"])) == (
            "cs",
            count,
            ["cs"],
        )
        assert read_json(Path(f"models/{entry}/clsr-kd/experts.json"))["language"] == "cs"
        assert (Path(f"models/{entry}/teacher/training.json")).exists()
        metrics = read_json(Path(f"metrics/{entry}/clsr-kd.json"))
        assert (metrics["language"], metrics["token"]) == ("cs", "cs")
    report = Path("report/report.md").read_text(encoding="utf-8")
    assert "## Czech (cs), few" in report and "## Czech (cs), all" in report
    assert "## Gate use by training size: lines" in report
    capsys.readouterr()
    model = ("--lang", "cs-x-few", "--model", "models/cs-x-few/clsr-kd", "--device", "cpu")
    assert run(monkeypatch, "transcribe", "few/0.wav", *model) == 0, capsys.readouterr().err


def test_one_run_has_one_expert_for_each_language(project, monkeypatch, capsys):
    assert run(monkeypatch, "train-student", "--together", "--lang", "cs-x-few,cs-x-all") == 2
    assert "of cs-x-few, cs-x-all several are one language" in capsys.readouterr().err


# The preset


def test_the_preset_by_size_has_the_papers_sizes():
    sizes, paper = (load_params(ROOT / f"presets/{name}.yaml", {}) for name in ("paper-sizes", "paper"))
    corpora = {entry: own.corpus for entry, own in sizes.languages.items()}
    assert list(corpora) == [f"{code}-x-{size}" for code in ("ca", "ta", "th") for size in SIZES]
    for entry, corpus in corpora.items():
        assert (corpus.corpus, corpus.subset) == ("common-voice", entry.partition("-x-")[2])
        assert corpus.max_validation == (500 if corpus.subset == "3k" else 1000)
    assert sizes.train.max_validation == 1000
    assert (list(sizes.methods.from_transcripts), list(sizes.methods.from_teacher)) == (["clsr"], ["clsr-kd"])
    same = {name for name, value in sizes.model_dump().items() if value == paper.model_dump()[name]}
    assert type(sizes).model_fields.keys() - same == {"languages", "methods"}


@pytest.mark.parametrize("preset", ["paper", "paper-sizes", "published"])
def test_the_presets_decode_as_the_literature_does(preset):
    params = load_params(ROOT / f"presets/{preset}.yaml", {})
    assert (params.evaluate.cut_loops, params.audio_window_s, params.baselines) == (False, 30, {})
    assert (params.student, params.teacher.model, params.teacher.adapt) == (
        "openai/whisper-small", "openai/whisper-large-v2", None,
    )  # fmt: skip
