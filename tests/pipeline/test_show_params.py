"""`pipeline params`: the values that count, and where each comes from."""

import json
from pathlib import Path

import pytest

from pipeline.cli import main

FILE = """
languages: {cs: {corpus: {corpus: manifest, path: cs.csv}}, nl: {token: german}}
train: {epochs: 2, seed: 5, label_smoothing: 0.2}
methods:
  from_transcripts: {lora: {betas: [0.9, 0.999], epochs: 4}, clsr: {}}
teacher: {adapt: {epochs: 1}}
"""


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs `pipeline params` beside FILE, and returns what it prints on stdout, or on stderr where it fails."""
    (tmp_path / "params.yaml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIPELINE_PARAMS", raising=False)

    def run(*arguments: str, before: tuple[str, ...] = (), status: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["pipeline", *before, "params", *arguments])
        capsys.readouterr()
        found = 0
        try:
            main()
        except SystemExit as end:
            found = end.code
        out, err = capsys.readouterr()
        assert found == status, err
        return err if status else out

    return run


def found(text: str) -> dict[str, tuple[object, str]]:
    return {name: (one["value"], one["from"]) for name, one in json.loads(text).items()}


def test_the_file_and_the_defaults(show):
    values = found(show("--json"))
    assert values["train.epochs"] == (2.0, "params.yaml")
    assert values["train.betas"] == ([0.9, 0.98], "default")
    assert values["train.learning_rate"] == (None, "default")
    assert values["teacher.adapt.epochs"] == (1.0, "params.yaml")
    assert values["teacher.adapt.seed"] == (0, "default")
    assert values["languages.cs.corpus.path"] == ("cs.csv", "params.yaml")
    assert values["languages.cs.corpus.test_fraction"] == (0.1, "default")
    assert values["languages.nl.token"] == ("de", "params.yaml")
    assert values["methods.from_transcripts.lora.epochs"] == (4, "params.yaml")
    assert values["methods.from_teacher.clsr-kd"] == ({}, "default")
    assert values["paths.models"] == ("models", "default")


def test_a_method_has_its_changes_and_its_learning_rate(show):
    values = found(show("--json", "--method", "lora"))
    assert values["train.betas"] == ([0.9, 0.999], "methods.from_transcripts.lora")
    assert values["train.epochs"] == (4.0, "methods.from_transcripts.lora")
    assert values["train.seed"] == (5, "params.yaml")
    assert values["train.learning_rate"] == (1e-4, "default")
    assert not any(name.startswith("methods") for name in values)
    other = found(show("--json", "--method", "full"))
    assert (other["train.epochs"], other["train.learning_rate"]) == ((2.0, "params.yaml"), (1e-5, "default"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train.epochs=9"], {"epochs": (9.0, "--set"), "betas": ([0.9, 0.999], "methods.from_transcripts.lora")}),
        (["methods.from_transcripts.lora.epochs=7"], {"epochs": (7.0, "methods.from_transcripts.lora")}),
        (
            ["methods.from_transcripts.lora.epochs=7", "train.epochs=9"],
            {"epochs": (7.0, "methods.from_transcripts.lora")},
        ),
        # a whole section: what the file says of it is gone
        (["train={epochs: 3}"], {"epochs": (3.0, "--set"), "seed": (0, "default")}),
        (["train.learning_rate=2e-3"], {"learning_rate": (2e-3, "--set")}),
    ],
)
def test_set_counts_more_than_the_file(show, given, expected):
    before = tuple(part for text in given for part in ("--set", text))
    values = found(show("--json", "--method", "lora", before=before))
    assert {name: values[f"train.{name}"] for name in expected} == expected


def test_one_language_whether_it_is_listed_or_not(show):
    values = found(show("--json", "--lang", "nl"))
    assert {name for name in values if name.startswith("languages")} == {"languages.nl.corpus", "languages.nl.token"}
    assert found(show("--json", "--lang", "galician"))["languages.gl.token"] == (None, "default")


def test_the_table_has_a_line_for_each_and_names_its_file(show, tmp_path):
    (tmp_path / "other.yaml").write_text("device: cpu\n")
    lines = show(before=("--params", "other.yaml")).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert len(rows) == len(lines)
    assert rows["device"] == ['"cpu"', "other.yaml"]
    assert rows["student"] == ['"openai/whisper-small"', "default"]


def test_what_is_wrong_is_one_line(show):
    message = show(before=("--set", "train.epoch=3"), status=1)
    assert message.count("\n") == 1 and "train.epoch" in message
    assert "is not one of" in show("--method", "lora-kb", status=2)


def test_all_values_are_written_as_the_file_groups_them(show, tmp_path: Path):
    assert show("--out", "values.json", before=("--set", "train.epochs=3")) == ""
    values = json.loads((tmp_path / "values.json").read_text())
    assert values["train"]["epochs"] == 3 and values["train"]["seed"] == 5 and values["train"]["betas"] == [0.9, 0.98]
    assert values["further_tests"] == {} and values["report"] == {"audio_minutes": 30}
    (tmp_path / "params.yaml").write_text("train: {epochs: none}")
    assert show("--out", "values.json", status=1).startswith("pipeline: params.yaml: train.epochs: ")
    assert json.loads((tmp_path / "values.json").read_text()) == values


def test_a_file_of_all_values_is_not_of_one_method(show, tmp_path: Path):
    assert "--out writes all parameters" in show("--out", "values.json", "--method", "lora", status=2)
    assert not (tmp_path / "values.json").exists()


def test_a_file_to_write_that_is_a_folder_is_named_and_left(show):
    Path("taken").mkdir()
    assert show("--out", "taken", status=1).splitlines() == [
        "pipeline: taken: is a directory, expected the name of a file to write"
    ]
    assert list(Path("taken").iterdir()) == [] and not list(Path().glob(".tmp-*"))
