"""pipeline params"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.files import write_json
from cache.storage import AnyPath
from pipeline.options import print_json, printable
from pipeline.params import Language, file_values, load_params, method_settings
from stages.shared.methods import METHODS

WIDEST = 40  # characters of a value's column; a longer value is shown whole, out of line


@dataclass(frozen=True)
class Resolved:
    """A parameter's value, and where it comes from: "default", the file, "--set", or "methods.GROUP.METHOD"."""

    value: Any
    origin: str


def show_params(
    path: Path, overrides: dict[str, Any], method: str | None, languages: Sequence[str], as_json: bool
) -> None:
    found = resolved(path, overrides, method, languages)
    if as_json:
        print_json({name: {"value": one.value, "from": one.origin} for name, one in found.items()})
        return
    texts = {name: json.dumps(one.value, ensure_ascii=False) for name, one in found.items()}
    name_width, value_width = max(map(len, texts)), min(WIDEST, max(map(len, texts.values())))
    for name, text in texts.items():
        print(printable(f"{name:<{name_width}}  {text:<{value_width}}  {found[name].origin}"))


def write_params(path: Path, overrides: dict[str, Any], out: AnyPath) -> None:
    """Writes all parameters as JSON, grouped as in the file, the defaults included: DVC compares these values."""
    write_json(out, load_params(path, overrides).model_dump(mode="json"))


def resolved(
    path: Path, overrides: dict[str, Any], method: str | None = None, languages: Sequence[str] = ()
) -> dict[str, Resolved]:
    """Returns all parameters by their dotted names.

    method: `train` is what this method is trained with, and `methods` is left out. languages: only these are shown.
    Raises PipelineError where the parameters are wrong.
    """
    params = load_params(path, overrides)
    values, origins = params.model_dump(mode="json"), _origins(path, overrides)
    if languages:
        chosen = {code: params.languages.get(code, Language()) for code in languages}
        values["languages"] = {code: own.model_dump(mode="json") for code, own in chosen.items()}
    if method is not None:
        del values["methods"]
        settings = method_settings(params, method, {})
        values["train"] = settings.model_dump(mode="json")
        group = f"methods.{METHODS[method].group}.{method}"
        origins |= {f"train.{name}": group for name in params.methods.changes(method)}
        if settings.learning_rate is None:
            values["train"]["learning_rate"] = METHODS[method].learning_rate
            origins["train.learning_rate"] = "default"
    return {name: Resolved(value, origins.get(name, "default")) for name, value in _leaves(values)}


def _origins(path: Path, overrides: dict[str, Any]) -> dict[str, str]:
    """Returns where each given parameter comes from, by its dotted name. An override replaces all below its name."""
    origins = {name: str(path) for name, _ in _leaves(file_values(path, overrides))}
    for name, value in overrides.items():
        origins = {leaf: origin for leaf, origin in origins.items() if not f"{leaf}.".startswith(f"{name}.")}
        origins |= {leaf: "--set" for leaf, _ in _leaves(value, name)}
    return origins


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of all that is not itself names with values."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, value
