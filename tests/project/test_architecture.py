"""The contracts on imports and size, read from the sources themselves."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sources import LAYERS, MODULES, NAMES, ROOT, imported, module_name, module_of

FORBIDDEN_IN_CACHE = {"torch", "transformers", "click", "stages", "pipeline"}


def part_of_stages(name: str) -> str | None:
    """The folder of stages/ that holds the module: a stage, or `shared`."""
    parts = name.split(".")
    return parts[1] if parts[0] == "stages" and len(parts) > 1 else None


MOST_LINES, MOST_PARAMETERS = 45, 8
# transformers sets this signature.
LONG_SIGNATURES = {"stages/shared/student/model.py:DistilWhisperForConditionalGeneration.forward"}


def functions() -> Iterator[tuple[str, int, int]]:
    """(file:qualified name, lines, parameters) of every function.

    Lines count from the body, however many the signature takes. Parameters count without `self` and `cls`.
    """
    for path in MODULES:
        yield from functions_in(ast.parse(path.read_text(encoding="utf-8")), f"{path.relative_to(ROOT).as_posix()}:")


def functions_in(node: ast.AST, where: str) -> Iterator[tuple[str, int, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from functions_in(child, f"{where}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            given = child.args
            names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            lines = (child.end_lineno or 0) - child.body[0].lineno + 1
            yield f"{where}{child.name}", lines, len([name for name in names if name not in ("self", "cls")])
            yield from functions_in(child, f"{where}{child.name}.")
        else:
            yield from functions_in(child, where)


def test_the_sources_are_where_they_are_looked_for():
    tops = {module_name(path).split(".")[0] for path in MODULES}
    assert tops == set(LAYERS)
    assert len(MODULES) > 40
    assert "cache.errors.PipelineError" in set(imported(ROOT / "cache/shards.py"))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_from_pipeline_to_stages_to_cache(path: Path):
    top = module_name(path).split(".")[0]
    upward = {name for name in imported(path) if name.split(".")[0] in LAYERS.keys() - LAYERS[top]}
    assert not upward
    if top == "cache":
        assert not {name.split(".")[0] for name in imported(path)} & FORBIDDEN_IN_CACHE


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "stages")], ids=module_name)
def test_a_stage_imports_itself_and_what_is_shared(path: Path):
    """`shared` therefore imports no stage."""
    others = {part_of_stages(name) for name in imported(path)} - {part_of_stages(module_name(path)), "shared", None}
    assert not others


def test_stages_holds_nothing_but_folders():
    """Each is a stage, or `shared`."""
    lying_about = {path.name for path in (ROOT / "stages").glob("*.py")} - {"__init__.py"}
    assert not lying_about
    assert (ROOT / "stages/shared/__init__.py").exists()


def test_no_import_circle():
    """Among modules; an import inside a function or for type checking counts."""
    imports = {name: {module_of(full) for full in imported(path)} - {None, name} for name, path in NAMES.items()}
    while leaves := [name for name, found in imports.items() if not found & imports.keys()]:
        for name in leaves:
            del imports[name]
    assert not imports


def test_cache_loads_neither_torch_nor_anything_above_it():
    """Also by way of a library: a machine that only verifies or converts shards needs no torch."""
    modules = ", ".join(module_name(path) for path in MODULES if path.is_relative_to(ROOT / "cache"))
    code = f"import {modules}, sys; print(*sorted({FORBIDDEN_IN_CACHE!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_module_is_longer_than_300_lines(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_functions_are_short():
    lengths = {name: lines for name, lines, _ in functions()}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}
    assert sorted(lengths.values())[len(lengths) // 2] <= 15


def test_functions_have_few_parameters():
    """What many would share is an object, such as `Execution`."""
    many = {name: count for name, _, count in functions() if count > MOST_PARAMETERS}
    assert many.keys() == LONG_SIGNATURES


def test_the_limits_find_what_is_beyond_them():
    source = f"class A:\n    def f(self, {', '.join('abcdefgh')}, *, i):\n" + "        pass\n" * 46
    assert list(functions_in(ast.parse(source), "x.py:")) == [("x.py:A.f", 46, 9)]


@pytest.mark.parametrize("rule", ["XDG_CACHE_HOME", "PIPELINE_CACHE"])
def test_one_place_knows_where_downloads_lie(rule: str):
    knowing = {module_name(path) for path in MODULES if rule in path.read_text(encoding="utf-8")}
    assert knowing == {"cache.files"}


def test_settings_have_one_base():
    """Only there is it said that a name which is not known is refused."""
    saying = {module_name(path) for path in MODULES if "ConfigDict(" in path.read_text(encoding="utf-8")}
    assert saying == {"stages.shared.settings"}
