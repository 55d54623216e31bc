"""The project's own sources, read as text: where they lie and what they import."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = {"pipeline": {"pipeline", "stages", "cache"}, "stages": {"stages", "cache"}, "cache": {"cache"}}
MODULES = sorted(path for top in LAYERS for path in (ROOT / top).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Every module that `path` imports, at its top or inside a function, by its full name."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str | None:
    """The module that an import's full name lies in: `cache.errors` for `cache.errors.PipelineError`."""
    while name and name not in NAMES:
        name = name.rpartition(".")[0]
    return name or None


NAMES = {module_name(path): path for path in MODULES}
