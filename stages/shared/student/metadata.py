"""The facts beside an expert or an adapter, and the base it was trained with: it must be the same where it is used."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cache import files, storage
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.whisper.models import Whisper, find_model, load_whisper, parameter_count, weights_fingerprint

BASE_FACTS = {"base": str, "base_weights": str, "audio_window_s": int}  # what `load_base` reads
# A base in half precision has other values: these hold the fingerprint of the weights after rounding to that type.
ROUNDED = {torch.bfloat16: "base_weights_bf16", torch.float16: "base_weights_fp16"}
LEVELS = 4  # folders above models/LANGUAGE/METHOD in which a relative base is looked for
KINDS = {str: "text", int: "a whole number", list: "a list"}


def read_facts(path: AnyPath, versions: tuple[int, ...], required: Mapping[str, type]) -> dict[str, Any]:
    """The facts that lie beside an expert or an adapter; `required`: name -> type, of KINDS; `versions`, the newest last.

    Raises PipelineError where the file is of another format version, incomplete, or holds something else.
    """
    facts = files.read_json(path)
    found = facts.get("format_version") if isinstance(facts, dict) else None
    if found not in versions:
        raise PipelineError(f"{path}: format_version is {found!r}, expected {versions[-1]}")
    if missing := [name for name in required if name not in facts]:
        raise PipelineError(f"{path}: no {', '.join(missing)} in it, expected {', '.join(required)}")
    for name, kind in required.items():
        if type(facts[name]) is not kind:
            raise PipelineError(f"{path}: {name} is {facts[name]!r}, expected {KINDS[kind]}")
    return facts


def base_facts(
    name: str, parameters: Mapping[str, torch.Tensor], audio_window_s: int, fingerprint: str | None = None
) -> dict[str, Any]:
    """Returns what is written beside an expert or an adapter of the base `name`, so that `check_base` can compare.

    parameters: the base's, in float32, or in the half precision in which it was loaded. fingerprint: that of float32
    weights, where it is known: a gigabyte need not be hashed again.
    """
    dtype = _coarsest(parameters)
    fingerprints = {half: weights_fingerprint(parameters, half) for half in ROUNDED if dtype in (torch.float32, half)}
    if Path(name).is_dir() and not name.startswith((".", "/", "~")):
        name = f"./{name}"  # else a folder `a/b` reads like a model of the hub
    return {
        "base": name,
        "base_dtype": _short(dtype),
        "base_weights": fingerprints.get(dtype) or fingerprint or weights_fingerprint(parameters),
        **{ROUNDED[half]: rounded for half, rounded in fingerprints.items()},
        "base_parameters": parameter_count(parameters),
        "audio_window_s": audio_window_s,
    }


def check_base(
    facts: Mapping[str, Any], path: AnyPath, parameters: Mapping[str, torch.Tensor], audio_window_s: int
) -> None:
    """Compares a model with the base that the expert or adapter at `path` was trained on, by `facts` of its folder.

    Raises PipelineError where the window or the weights differ. Warns where the precisions do not allow to compare.
    """
    if facts["audio_window_s"] != audio_window_s:
        raise PipelineError(
            f"{path} was trained with audio_window_s {facts['audio_window_s']}, the model has {audio_window_s}: they "
            "must agree; `load_model` of stages.shared.student.loading loads the base with the right window"
        )
    trained, here = facts.get("base_dtype", _short(torch.float32)), _coarsest(parameters)
    halves = {_short(half): half for half in ROUNDED}
    common = here if here != torch.float32 else halves.get(trained, torch.float32)
    wanted = facts["base_weights"] if _short(common) == trained else facts.get(ROUNDED[common])
    if wanted is None:
        warnings.warn(
            f"{path} was trained on {trained} weights; whether a model in {_short(here)} has the same ones cannot be "
            "compared: load the base in float32 to be sure",
            stacklevel=3,
        )
    elif (found := weights_fingerprint(parameters, common)) != wanted:
        raise PipelineError(
            f"{path}: trained on base weights {wanted[:12]}, but this model has {found[:12]}: expected the same base "
            f"model, {facts['base']}"
        )


def _coarsest(parameters: Mapping[str, torch.Tensor]) -> torch.dtype:
    found = {tensor.dtype for tensor in parameters.values()}
    return next((half for half in ROUNDED if half in found), torch.float32)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def find_base(facts: Mapping[str, Any], folder: AnyPath, base: str | None = None) -> str:
    """Returns where the base of the expert or adapter in `folder` lies: `base`, or what its facts name.

    A relative name is looked for from the folders above `folder` (models/LANGUAGE/METHOD lies in the training's working
    folder), then from the working folder. Raises PipelineError where there is none.
    """
    named = str(base or facts["base"])
    place = storage.path(named)
    if base is None and isinstance(place, Path) and isinstance(folder, Path) and not place.is_absolute():
        above = list(folder.absolute().parents)[:LEVELS]
        named = next((str(parent / place) for parent in above if (parent / place).is_dir()), named)
    try:
        find_model(named)
    except PipelineError as error:
        raise PipelineError(f"{folder}: its base is not to be had: {error}; say where it lies with --base") from None
    return named


def load_base(
    config: dict[str, Any], path: AnyPath, audio_window_s: int | None = None, base: str | None = None
) -> Whisper:
    """The Whisper that `config`, read from `path`, names by `base`, `base_weights` and `audio_window_s`.

    base: where it lies instead. Raises PipelineError where another window is asked for, or where its weights are not those
    of the training.
    """
    trained = config["audio_window_s"]
    if audio_window_s not in (None, trained):
        raise PipelineError(
            f"{path.parent} was trained with audio_window_s {trained}, asked for {audio_window_s}: they must agree"
        )
    source = find_base(config, path.parent, base)
    whisper = load_whisper(source, trained)
    if whisper.fingerprint != config["base_weights"]:
        try:
            check_base(config, path, dict(whisper.model.named_parameters()), trained)
        except PipelineError as error:
            raise PipelineError(f"{error}, not {source}; where it lies elsewhere, give --base") from None
    return whisper
