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


def functions() -> Iterator[tuple[str, int]]:
    """(name, lines) of every function; a signature that is spread over lines counts from its body."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", (node.end_lineno or 0) - node.body[0].lineno + 1


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
    lengths = dict(functions())
    long = {name: lines for name, lines in lengths.items() if lines > 45}
    assert len(long) <= 0.03 * len(lengths), long
    assert max(lengths.values()) <= 90, max(lengths, key=lambda name: lengths[name])
    assert sorted(lengths.values())[len(lengths) // 2] <= 15
