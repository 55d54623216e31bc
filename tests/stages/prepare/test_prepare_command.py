"""`pipeline prepare` itself: its options, and what it says of splits."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from prepare_makers import noise, record

from pipeline.cli import cli


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(20):
        record(tmp_path / f"{number}.wav", noise(0.3, number))
        rows.append(f"{number}.wav\t1.5\tFrase {number % 10}.\n")
    (tmp_path / "t.tsv").write_text("audio_file\tduration\ttranscription\n" + "".join(rows))
    return tmp_path


def prepare(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["prepare", "--lang", "gl", *arguments], catch_exceptions=True)
    return result.exit_code, f"{result.output} {result.exception}"


def test_columns_by_name_and_a_line_about_what_was_drawn(folder: Path):
    table = ["--corpus", "manifest", "--path", "t.tsv"]
    status, said = prepare(*table)
    assert status == 1 and "it has audio_file, duration, transcription: name them by --columns" in said
    status, said = prepare(*table, "--columns", "text=transcription, path=audio_file")
    assert status == 0, said
    assert "data/utterances/gl/test: 2 utterances" in said and "data/utterances/gl/train: 16 utterances" in said
    assert said.count("drawn from training, by whole sentences") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--columns", "text=x"], 2, "--columns goes with --corpus"),
        (["--corpus", "fleurs", "--columns", "text=x"], 2, "fleurs has columns of its own"),
        (["--corpus", "manifest", "--path", "t.tsv", "--columns", "text"], 2, "'text': expected OURS=THEIRS"),
        (["--corpus", "manifest", "--path", "t.tsv", "--columns", "words=x"], 1, "columns.words"),
        (["--corpus", "dataset", "--path", "t.tsv", "--columns", "path=x"], 2, "a dataset has audio, text, speaker"),
    ],
)
def test_columns_that_make_no_sense(folder: Path, arguments: list[str], status: int, message: str):
    found, said = prepare(*arguments)
    assert found == status and message in said, said
