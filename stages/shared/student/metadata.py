"""The metadata of an expert or an adapter. It names the base of the training, so that no other base is used."""

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

# The fields that `load_base` reads, and their types.
BASE_FIELDS = {"base": str, "base_weights": str, "audio_window_s": int}
# A base in half precision has other values: these fields hold the fingerprint of the weights rounded to that type.
ROUNDED = {torch.bfloat16: "base_weights_bf16", torch.float16: "base_weights_fp16"}
LEVELS = 4  # a relative base is looked for in so many folders above models/LANGUAGE/METHOD
KINDS = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


def read_metadata(path: AnyPath, versions: tuple[int, ...], required: Mapping[str, type]) -> dict[str, Any]:
    """Reads the JSON file `path` beside an expert or an adapter.

    versions: the format versions that can be read, the newest last. required: field -> type, one of KINDS.

    Raises PipelineError where the file has another format version, lacks a field, or has one of another type.
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
    """Returns the metadata of the base `name`, which `check_base` compares with.

    parameters: the base's, in float32, or in the half precision in which it was loaded. fingerprint: the fingerprint of
    float32 weights, if it is known: hashing a gigabyte again takes time.
    """
    dtype = _coarsest(parameters)
    fingerprints = {half: weights_fingerprint(parameters, half) for half in ROUNDED if dtype in (torch.float32, half)}
    if Path(name).is_dir() and not name.startswith((".", "/", "~")):
        name = f"./{name}"  # a folder `a/b` would read like a hub id
    return {
        "base": name,
        "base_dtype": dtype_name(dtype),
        "base_weights": fingerprints.get(dtype) or fingerprint or weights_fingerprint(parameters),
        **{ROUNDED[half]: rounded for half, rounded in fingerprints.items()},
        "base_parameters": parameter_count(parameters),
        "audio_window_s": audio_window_s,
    }


def check_base(
    metadata: Mapping[str, Any],
    path: AnyPath,
    parameters: Mapping[str, torch.Tensor],
    audio_window_s: int,
    fingerprint: str | None = None,
) -> None:
    """Compares a model with the base that an expert or an adapter was trained with.

    metadata: of the expert or the adapter, read from `path`. fingerprint: of `parameters` as they are, if it is known:
    hashing a gigabyte again takes time. Raises PipelineError where the window or the weights differ.
    Warns where the precisions are too different to compare the weights.
    """
    if metadata["audio_window_s"] != audio_window_s:
        raise PipelineError(
            f"{path} was trained with audio_window_s {metadata['audio_window_s']}, the model has {audio_window_s}: they "
            "must agree; `load_model` loads the base with the right window"
        )
    if fingerprint == metadata["base_weights"]:
        return
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
    """Finds the base of the expert or adapter in `folder`: at `base`, or where the metadata names it.

    A relative name is looked for in the folders above `folder`, then in the working folder: models/LANGUAGE/METHOD lies in
    the working folder of the training. Raises PipelineError where there is none.
    """
    named = str(base or metadata["base"])
    place = storage.path(named)
    if base is None and isinstance(place, Path) and isinstance(folder, Path) and not place.is_absolute():
        above = list(folder.absolute().parents)[:LEVELS]
        named = next((str(parent / place) for parent in above if (parent / place).is_dir()), named)
    try:
        return find_model(named)
    except PipelineError as error:
        raise PipelineError(
            f"{folder}: its base cannot be found: {error}; give its folder or hub id with --base"
        ) from None


def load_base(
    found: WhisperSource, metadata: Mapping[str, Any], path: AnyPath, audio_window_s: int | None = None
) -> Whisper:
    """Loads the base that `find_base` found, with the window of the training, and checks its weights.

    metadata: of the expert or the adapter, read from `path`. Raises PipelineError where `audio_window_s` (seconds) is not
    the window of the training, or where the weights differ from the training's.
    """
    trained = metadata["audio_window_s"]
    if audio_window_s not in (None, trained):
        raise PipelineError(
            f"{path.parent} was trained with audio_window_s {trained}, asked for {audio_window_s}: they must agree"
        )
    whisper = load_whisper(found, trained)
    try:
        check_base(metadata, path, dict(whisper.model.named_parameters()), trained, whisper.fingerprint)
    except PipelineError as error:
        raise PipelineError(f"{error}, not {found.name}; if that base lies elsewhere, give --base") from None
    return whisper
