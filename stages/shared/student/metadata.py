"""What lies beside an expert or an adapter: which base it was trained with, so that it is never used with another."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cache import files, storage
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.student.packing import dtype_name
from stages.shared.whisper.models import (
    Whisper,
    WhisperSource,
    find_model,
    load_whisper,
    parameter_count,
    weights_fingerprint,
)

BASE_FIELDS = {"base": str, "base_weights": str, "audio_window_s": int}  # what `load_base` reads: field -> type
# A base in half precision has other values: these hold the fingerprint of the weights after rounding to that type.
ROUNDED = {torch.bfloat16: "base_weights_bf16", torch.float16: "base_weights_fp16"}
LEVELS = 4  # folders above models/LANGUAGE/METHOD in which a relative base is looked for
KINDS = {str: "text", int: "a whole number", list: "a list"}


def read_metadata(path: AnyPath, versions: tuple[int, ...], required: Mapping[str, type]) -> dict[str, Any]:
    """Reads the JSON file `path` beside an expert or an adapter.

    versions: the format versions that can be read, the newest last. required: field -> type, one of KINDS.

    Raises PipelineError where the file is of another format version, incomplete, or holds something else.
    """
    metadata = files.read_json(path)
    found = metadata.get("format_version") if isinstance(metadata, dict) else None
    if found not in versions:
        raise PipelineError(f"{path}: format_version is {found!r}, expected {versions[-1]}")
    if missing := [name for name in required if name not in metadata]:
        raise PipelineError(f"{path}: no {', '.join(missing)} in it, expected {', '.join(required)}")
    for name, kind in required.items():
        if type(metadata[name]) is not kind:
            raise PipelineError(f"{path}: {name} is {metadata[name]!r}, expected {KINDS[kind]}")
    return metadata


def base_metadata(
    name: str, parameters: Mapping[str, torch.Tensor], audio_window_s: int, fingerprint: str | None = None
) -> dict[str, Any]:
    """Returns what an expert or an adapter records of its base `name`, so that `check_base` can compare.

    parameters: the base's, in float32, or in the half precision in which it was loaded. fingerprint: that of float32
    weights, where it is known: a gigabyte need not be hashed again.
    """
    dtype = _coarsest(parameters)
    fingerprints = {half: weights_fingerprint(parameters, half) for half in ROUNDED if dtype in (torch.float32, half)}
    if Path(name).is_dir() and not name.startswith((".", "/", "~")):
        name = f"./{name}"  # else a folder `a/b` reads like a model of the hub
    return {
        "base": name,
        "base_dtype": dtype_name(dtype),
        "base_weights": fingerprints.get(dtype) or fingerprint or weights_fingerprint(parameters),
        **{ROUNDED[half]: rounded for half, rounded in fingerprints.items()},
        "base_parameters": parameter_count(parameters),
        "audio_window_s": audio_window_s,
    }


def check_base(
    metadata: Mapping[str, Any], path: AnyPath, parameters: Mapping[str, torch.Tensor], audio_window_s: int
) -> None:
    """Compares a model with the base that an expert or adapter was trained on, by its `metadata`, read from `path`.

    Raises PipelineError where the window or the weights differ. Warns where the precisions do not allow to compare.
    """
    if metadata["audio_window_s"] != audio_window_s:
        raise PipelineError(
            f"{path} was trained with audio_window_s {metadata['audio_window_s']}, the model has {audio_window_s}: they "
            "must agree; `load_model` loads the base with the right window"
        )
    trained, here = metadata.get("base_dtype", dtype_name(torch.float32)), _coarsest(parameters)
    halves = {dtype_name(half): half for half in ROUNDED}
    common = here if here != torch.float32 else halves.get(trained, torch.float32)
    wanted = metadata["base_weights"] if dtype_name(common) == trained else metadata.get(ROUNDED[common])
    if wanted is None:
        warnings.warn(
            f"{path} was trained on {trained} weights; whether a model in {dtype_name(here)} has the same ones cannot be "
            "compared: load the base in float32 to be sure",
            stacklevel=3,
        )
    elif (found := weights_fingerprint(parameters, common)) != wanted:
        raise PipelineError(
            f"{path}: trained on base weights {wanted[:12]}, but this model has {found[:12]}: expected the same base "
            f"model, {metadata['base']}"
        )


def _coarsest(parameters: Mapping[str, torch.Tensor]) -> torch.dtype:
    found = {tensor.dtype for tensor in parameters.values()}
    return next((half for half in ROUNDED if half in found), torch.float32)


def find_base(metadata: Mapping[str, Any], folder: AnyPath, base: str | None = None) -> WhisperSource:
    """Finds the base of the expert or adapter in `folder`: at `base`, or where its metadata says.

    A relative name is looked for from the folders above `folder` (models/LANGUAGE/METHOD lies in the training's working
    folder), then from the working folder. Raises PipelineError where there is none.
    """
    named = str(base or metadata["base"])
    place = storage.path(named)
    if base is None and isinstance(place, Path) and isinstance(folder, Path) and not place.is_absolute():
        above = list(folder.absolute().parents)[:LEVELS]
        named = next((str(parent / place) for parent in above if (parent / place).is_dir()), named)
    try:
        return find_model(named)
    except PipelineError as error:
        raise PipelineError(f"{folder}: its base is not to be had: {error}; say where it lies with --base") from None


def load_base(
    found: WhisperSource, metadata: Mapping[str, Any], path: AnyPath, audio_window_s: int | None = None
) -> Whisper:
    """Loads the base that `find_base` found, with the window of the training, and compares its weights.

    metadata: read from `path`. Raises PipelineError where another window is asked for, or where the weights are not those
    of the training.
    """
    trained = metadata["audio_window_s"]
    if audio_window_s not in (None, trained):
        raise PipelineError(
            f"{path.parent} was trained with audio_window_s {trained}, asked for {audio_window_s}: they must agree"
        )
    whisper = load_whisper(found, trained)
    if whisper.fingerprint != metadata["base_weights"]:
        try:
            check_base(metadata, path, dict(whisper.model.named_parameters()), trained)
        except PipelineError as error:
            raise PipelineError(f"{error}, not {found.name}; where it lies elsewhere, give --base") from None
    return whisper
