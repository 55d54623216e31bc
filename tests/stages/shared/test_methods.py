"""The table of methods is the only place that knows them, so that a method is added by a row."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from sources import MODULES, ROOT, module_name

from cache.errors import PipelineError
from pipeline.params import Paths, load_params
from stages.report.figures import COLOURS
from stages.report.results import SYSTEM_ORDER, system_order_key, system_title
from stages.shared.methods import METHODS, Method, learning_rates, method_named, without_teacher
from stages.shared.whisper.models import load_whisper
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee

NAMES = "full, full-kd, lora, lora-kd, clsr, clsr-kd"


def literals(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_other_source_names_a_method(path: Path):
    named = literals(path) & METHODS.keys()
    assert named == (METHODS.keys() if module_name(path) == "stages.shared.methods" else set())


def test_the_table():
    assert all(name == method.name for name, method in METHODS.items())
    assert {(m.name, m.trains, m.needs_teacher, m.learning_rate) for m in METHODS.values()} == {
        ("full", "all", False, 1e-5),
        ("full-kd", "all", True, 1e-5),
        ("lora", "adapter", False, 1e-4),
        ("lora-kd", "adapter", True, 1e-4),
        ("clsr", "experts", False, 1e-4),
        ("clsr-kd", "experts", True, 1e-4),
    }
    assert SYSTEM_ORDER == ("base", "teacher", "full", "full-kd", "lora", "lora-kd", "clsr", "clsr-kd")
    for name in ("full", "lora", "clsr"):  # methods and teachers are independent
        assert without_teacher(METHODS[f"{name}-kd"]) == METHODS[name]
    assert without_teacher(METHODS["lora"]) is None
    assert learning_rates() == "1e-05 for full and full-kd, 0.0001 for lora and lora-kd and clsr and clsr-kd"
    with pytest.raises(PipelineError, match=f"'clsr_kd' is no method: expected one of {NAMES}"):
        method_named("clsr_kd")


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_trains_and_how_fast(name: str, tiny_whisper: Path):
    trainee = Trainee(load_whisper(str(tiny_whisper), 1), name, "cs", TrainSettings())
    assert trainee.learning_rate == METHODS[name].learning_rate
    assert (trainee.adapter is not None, trainee.student is not None) == (
        METHODS[name].trains == "adapter",
        METHODS[name].trains == "experts",
    )
    given = Trainee(load_whisper(str(tiny_whisper), 1), name, "cs", TrainSettings(learning_rate=7e-4))
    assert given.learning_rate == 7e-4


@pytest.mark.parametrize(
    ("methods", "complaint"),
    [
        ("{from_transcripts: {clsr-kd: {}}}", "clsr-kd needs teacher shards: list it in methods.from_teacher"),
        ("{from_teacher: {lora: {}}}", "lora takes no teacher shards: list it in methods.from_transcripts"),
        (
            "{from_transcripts: {clsr: {}, clrs: {}}}",
            f"'clrs' is no method: expected one of {NAMES}",
        ),
    ],
)
def test_a_method_in_the_wrong_group_is_refused(methods: str, complaint: str, tmp_path: Path):
    """DVC would train it without the inputs that it needs."""
    path = tmp_path / "params.yaml"
    path.write_text(f"methods: {methods}\n")
    with pytest.raises(PipelineError, match=f"params.yaml: methods.*{complaint}") as error:
        load_params(path, {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", [*sorted((ROOT / "presets").glob("*.yaml")), ROOT / "params.yaml"], ids=str)
def test_the_presets_list_methods_where_they_belong(preset: Path):
    methods = load_params(preset, {}).methods
    assert methods.from_transcripts and methods.from_teacher
    for name in ("clsr", "lora", "full"):
        assert methods.changes(name) == methods.from_transcripts.get(name, {})
    assert methods.changes("full-kd") == {}


def test_a_new_row_is_a_new_method(monkeypatch: pytest.MonkeyPatch, tiny_whisper: Path, tmp_path: Path):
    row = Method("lora-fast", "LoRA, fast", "a made-up row", "adapter", True, 3e-4)
    monkeypatch.setitem(METHODS, row.name, row)
    trainee = Trainee(load_whisper(str(tiny_whisper), 1), row.name, "cs", TrainSettings())
    assert trainee.adapter is not None and trainee.learning_rate == 3e-4
    assert without_teacher(row) == METHODS["lora"]
    path = tmp_path / "params.yaml"
    path.write_text("methods: {from_teacher: {lora-fast: {seed: 3}}}\n")
    assert load_params(path, {}).methods.changes("lora-fast") == {"seed": 3}
    assert system_title("lora-fast") == "LoRA, fast"
    assert len(COLOURS) >= len(SYSTEM_ORDER) + 2


def test_the_command_line_offers_a_new_row():
    code = (
        "import stages.shared.methods as m\n"
        "m.METHODS['lora-fast'] = m.Method('lora-fast', 'LoRA, fast', 'a made-up row', 'adapter', True, 3e-4)\n"
        "from pipeline.cli import cli\ncli.main(['train-student', '--help'], standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    text = " ".join(done.stdout.split())
    assert "full|full-kd|lora|lora-kd|clsr|clsr-kd|lora-fast" in text and "lora-fast: a made-up row" in text


def test_systems_are_sorted_by_the_table():
    systems = ["clsr-kd", "own", "teacher", "lora-kd", "clsr", "base", "lora", "another", "full"]
    expected = ["base", "teacher", "full", "lora", "lora-kd", "clsr", "clsr-kd", "another", "own"]
    assert sorted(systems, key=system_order_key) == expected


# Paths


def test_the_layout_of_the_folders():
    paths = Paths()
    assert str(paths.split("cs", "validation")) == "data/utterances/cs/validation"
    assert str(paths.test_split("cs")) == "data/utterances/cs/test"
    assert str(paths.test_split("cs", "fleurs")) == "data/utterances/cs/test@fleurs"
    assert str(paths.teacher_shards("cs")) == "data/teacher/cs/train"
    assert str(paths.model(["cs"], "clsr")) == "models/cs/clsr"
    assert str(paths.model(["cs", "nl"], "clsr")) == "models/cs+nl/clsr"
    assert str(paths.adapted_teacher("cs")) == "models/cs/teacher"
    assert str(paths.metrics_file("cs", "base")) == "metrics/cs/base.json"
    assert str(paths.metrics_file("cs", "base", "fleurs")) == "metrics/cs/base@fleurs.json"
    assert str(Paths(models="memory://bucket/models").model(["cs"], "lora")) == "memory://bucket/models/cs/lora"
