"""Reads LoRA adapter folders: their metadata, and their weights as experts without gates."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from cache import files
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.student.metadata import BASE_FIELDS, read_metadata
from stages.shared.student.packing import Tensors, not_finite
from stages.shared.whisper.weights import read_weights
from stages.shared.whisper.window import FULL_WINDOW_S

WEIGHTS, ADAPTER, METADATA = "adapter_model.safetensors", "adapter_config.json", "lora.json"
FORMAT_VERSION = 1
REQUIRED = {"languages": list, **BASE_FIELDS}
KEY = re.compile(r"base_model\.model\.model\.((?:en|de)coder\.layers\.\d+\.)(fc[12]\.)lora_([AB])\.weight")
# PEFT's variants of LoRA whose product is not lora_alpha / r B A, where the names of the tensors do not tell
VARIANT = re.compile(r"use_(?!rslora$)\w+|\w+_config|alpha_pattern|layer_replication|alora_invocation_tokens")
PLAIN_STARTS = (True, False, "gaussian")  # other values of init_lora_weights change the base as well


def is_lora_folder(folder: AnyPath) -> bool:
    return (folder / METADATA).exists()


def is_adapter_folder(folder: AnyPath) -> bool:
    """Tells whether PEFT, too, would read the folder: one of ours, or of any other program."""
    return (folder / ADAPTER).exists()


def read_adapter_metadata(folder: AnyPath) -> dict[str, Any]:
    """Reads `lora.json`. Raises PipelineError where it is of another format version, incomplete, or not sound."""
    metadata = read_metadata(folder / METADATA, (FORMAT_VERSION,), REQUIRED)
    tokens = metadata.get("language_tokens", {})
    if not isinstance(tokens, dict) or not all(isinstance(token, str) for token in tokens.values()):
        raise PipelineError(
            f"{folder / METADATA}: language_tokens is {tokens!r}, expected languages with a language each"
        )
    return {**metadata, "language_tokens": tokens}


def read_adapter(folder: AnyPath, shared: Tensors) -> dict[str, torch.Tensor]:
    """Returns the state of an expert without gates, in float32: the base's FFNs with the adapter merged into them.

    shared: the base's FFNs by the expert's names. An adapter may leave some of them as they are. Raises PipelineError where
    it is no plain LoRA, does not fit the base, or changes anything else of the model.
    """
    scale, rank = _scale(folder / ADAPTER)
    factors = _factors(folder / WEIGHTS, shared, rank)
    state = {name: tensor.detach().float().cpu() for name, tensor in shared.items()}
    for name, pair in factors.items():
        state[name] = state[name] + pair["B"] @ pair["A"] * scale  # as PEFT merges
    if infinite := not_finite(state):
        raise PipelineError(f"{folder / WEIGHTS}: tensor '{infinite}' has values that are not finite: damaged")
    return state


def adapter_rank(folder: AnyPath) -> int:
    """Returns the rank. Raises PipelineError where the adapter is no plain LoRA."""
    return _scale(folder / ADAPTER)[1]


def _scale(path: AnyPath) -> tuple[float, int]:
    """Returns what the product of the factors is multiplied with, and the rank."""
    settings = files.read_json(path)
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        raise PipelineError(f"{path}: not a LoRA configuration, expected peft_type 'LORA'")
    for name, value in settings.items():
        if VARIANT.fullmatch(name) and value:
            raise PipelineError(f"{path}: {name} is {value!r}: only plain LoRA can be an expert")
    if (start := settings.get("init_lora_weights", True)) not in PLAIN_STARTS:
        raise PipelineError(
            f"{path}: init_lora_weights is {start!r}, which changes the base: only plain LoRA can be an expert"
        )
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise PipelineError(f"{path}: r is {rank!r} and lora_alpha {alpha!r}, expected a whole number and a number")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank), rank


def _factors(path: AnyPath, shared: Tensors, rank: int) -> dict[str, dict[str, torch.Tensor]]:
    """Returns A (rank, in) and B (out, rank) of each matrix of the FFNs that the adapter changes, by the expert's names."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in sorted(read_weights(path).items()):
        match = KEY.fullmatch(key)
        name = f"{match[1]}expert.{match[2]}weight" if match else ""
        if not match or name not in shared:
            raise PipelineError(
                f"{path}: tensor '{key}': expected the factors of fc1 and fc2 in the base's layers alone"
            )
        rows, columns = shared[name].shape
        wanted = [rank, columns] if match[3] == "A" else [rows, rank]
        if list(tensor.shape) != wanted:
            raise PipelineError(f"{path}: tensor '{key}' has shape {list(tensor.shape)}, expected {wanted}")
        found.setdefault(name, {})[match[3]] = tensor.float()
    for name, pair in found.items():
        if len(pair) == 1:
            raise PipelineError(f"{path}: of '{name}' there is but the factor lora_{next(iter(pair))}: damaged")
    return found


def foreign_metadata(folder: AnyPath, language: str | None, base: str, audio_window_s: int) -> Mapping[str, Any]:
    """Returns the languages of an adapter that another program wrote, as `read_adapter_metadata` has them.

    base: the name of the model. The adapter's weights of the base cannot be compared: it must name this one.
    Raises PipelineError where it names another, where no language is given, or where the model's window is not Whisper's.
    """
    settings = files.read_json(folder / ADAPTER)
    named = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if language is None:
        raise PipelineError(f"{folder}: no {METADATA} in it that names a language: give the language with the folder")
    if not isinstance(named, str) or _last(named) != _last(base):
        raise PipelineError(
            f"{folder / ADAPTER}: base_model_name_or_path is {named!r}, the model is {base!r}: expected the same base model"
        )
    if audio_window_s != FULL_WINDOW_S:
        raise PipelineError(
            f"{folder}: no {METADATA} in it that says a window, so that it was trained with {FULL_WINDOW_S} s; the model has "
            f"audio_window_s {audio_window_s}: they must agree"
        )
    return {"languages": [language], "language_tokens": {}}


def _last(name: str) -> str:
    """Returns the last part of a hub id or a folder: one model has the same in both."""
    return name.rstrip("/").rpartition("/")[2]
