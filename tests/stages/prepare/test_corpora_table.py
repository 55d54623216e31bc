"""The table of corpora: its names, their settings and readers, and that listing them loads nothing."""

import inspect
import subprocess
import sys
from typing import get_args

import pytest
from pydantic import TypeAdapter
from sources import ROOT

from pipeline.params import checked
from stages.prepare.corpora import CORPORA, settings_class
from stages.prepare.settings import CorpusSettings

LEAST = {"path": "somewhere/table.csv"}


@pytest.mark.parametrize("name", CORPORA)
def test_the_table_agrees_with_the_modules(name: str):
    chosen = settings_class(name)
    assert get_args(chosen.model_fields["corpus"].annotation) == (name,)
    module = sys.modules[chosen.__module__]
    assert module.__name__ == f"stages.prepare.corpora.{name.replace('-', '_')}"
    assert list(inspect.signature(module.read).parameters) == ["settings", "language", "wanted"]
    found = checked(TypeAdapter(CorpusSettings), {"corpus": name, **LEAST}, "here")
    assert type(found) is chosen and found.name


def test_every_reader_is_in_the_table():
    readers = [path for path in (ROOT / "stages/prepare/corpora").glob("*.py") if "\ndef read(" in path.read_text()]
    assert {path.stem for path in readers} == {name.replace("-", "_") for name in CORPORA}


@pytest.mark.parametrize("arguments", [["--help"], ["prepare", "--help"], ["train-student", "--help"]])
def test_help_lists_names_and_loads_no_library(arguments: list[str]):
    heavy = ("torch", "transformers", "datasets", "soundfile", "numpy", "pydantic", "pyarrow")
    code = (
        f"from pipeline.cli import cli\ncli.main({arguments!r}, standalone_mode=False)\n"
        f"import sys; print('loaded:', sorted(set({heavy!r}) & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("loaded: []\n")
    if "prepare" in arguments:
        assert "|".join(CORPORA) in "".join(done.stdout.split())


def test_the_parameters_are_read_without_the_libraries_of_any_corpus():
    code = (
        "import pipeline.params, sys; print(sorted({'torch', 'datasets', 'soundfile', 'pyarrow'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
