"""Reads and writes experts on disk: `experts.safetensors` and `experts.json`, without the frozen model."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, get_args

import torch

from cache import files
from cache.errors import PipelineError
from cache.progress import Progress, silent
from cache.storage import AnyPath
from stages.shared.student.forms import Gates
from stages.shared.student.metadata import BASE_FIELDS, read_metadata
from stages.shared.student.packing import (
    Precision,
    Tensors,
    expert_shapes,
    gates_in,
    in_layers,
    layers_in,
    merged,
    pack,
    rank_of,
    unpack,
)
from stages.shared.whisper.languages import language_code
from stages.shared.whisper.weights import read_weights, write_weights

WEIGHTS, METADATA = "experts.safetensors", "experts.json"
FORMAT_VERSION = 2
READABLE = (1, 2)  # version 1 has float16 at full rank only, stored in the same way
REQUIRED = {"language": str, **BASE_FIELDS}


class StoredExpert(NamedTuple):
    """An expert that was read from disk."""

    language: str
    token: str | None  # the language whose token stands for it in prompts; None: its own
    state: dict[str, torch.Tensor]


def is_experts_folder(folder: AnyPath) -> bool:
    return (folder / METADATA).exists()


def write_expert(
    folder: AnyPath,
    language: str,
    state: Tensors,
    shared: Tensors,
    metadata: Mapping[str, Any],
    precision: Precision = "fp16",
    rank: int | None = None,
    progress: Progress[str] = silent,
) -> None:
    """Writes an expert's weights, as `pack` stores them, and `metadata` (its base, window, training) beside them.

    state: the expert's tensors by name. shared: the base's FFNs, by the same names. rank: None stores the factors of an
    expert that has them, else full matrices.
    Raises PipelineError, before anything is written, where `pack` refuses.
    """
    layers = layers_in(state)
    whole = set(layers) >= set(layers_in(shared))
    shared = in_layers(shared, layers)
    own = rank_of(state)
    if rank is None:
        rank = own
    elif rank != own:
        state = merged(state, shared)
    gates = gates_in(state)
    write_weights(folder / WEIGHTS, pack(state, shared, precision, rank, progress))
    header = {
        "format_version": FORMAT_VERSION,
        "language": language,
        "token": metadata.get("token", language),
        "parameters": sum(map(prod, expert_shapes(shared, gates != "none").values())),
        "precision": precision,
        "rank": rank,
        "gates": gates,
        "layers": None if whole else list(layers),
    }
    files.write_json(
        folder / METADATA, header | {name: value for name, value in metadata.items() if name not in header}
    )


def read_expert_metadata(folder: AnyPath) -> dict[str, Any]:
    """Reads `experts.json`. Raises PipelineError where it is missing, of another format version, or not sound."""
    metadata = read_metadata(folder / METADATA, READABLE, REQUIRED)
    if not isinstance(metadata.get("token", ""), str):
        raise PipelineError(f"{folder / METADATA}: token is {metadata['token']!r}, expected text")
    if (gates := metadata.get("gates", "token")) not in get_args(Gates):
        raise PipelineError(f"{folder / METADATA}: gates is {gates!r}, expected one of {', '.join(get_args(Gates))}")
    layers = metadata.get("layers")
    if layers is not None and not (layers and isinstance(layers, list) and all(isinstance(one, str) for one in layers)):
        raise PipelineError(f"{folder / METADATA}: layers is {layers!r}, expected names of layers")
    return {
        "precision": "fp16",
        "rank": None,
        "gates": "token",
        "layers": None,
        "token": metadata["language"],
        **metadata,
    }


def read_expert(
    folder: AnyPath,
    metadata: Mapping[str, Any],
    shared: Tensors,
    language: str | None = None,
    factors: bool = False,
) -> StoredExpert:
    """Reads an expert in our layout, in float32.

    metadata: what `read_expert_metadata` returned. shared: the base's FFNs by the expert's names. language: the expected
    code; None allows any. factors: leave the matrices of an expert of low rank as their factors, to be trained further.
    Raises PipelineError where the expert is for another language, or does not fit the base.
    """
    found = expert_language(folder, [metadata["language"]], language)
    stored = (metadata["precision"], metadata["rank"])
    weights = read_weights(folder / WEIGHTS)
    if metadata["layers"] is not None:
        if unknown := set(metadata["layers"]) - set(layers_in(shared)):
            raise PipelineError(f"{folder}: it is for {min(unknown)}, a layer that this model does not have")
        shared = in_layers(shared, metadata["layers"])
    state = unpack(weights, shared, *stored, str(folder), metadata["gates"] != "none", factors)
    return StoredExpert(found, metadata["token"] if metadata["token"] != found else None, state)


def expert_language(folder: AnyPath, there: Sequence[str], wanted: str | None) -> str:
    """Returns the code of `wanted`; if it is None, of the only language that is there.

    Raises PipelineError where `wanted` is not there, or where it is None and several languages are there.
    """
    wanted = wanted and language_code(wanted)
    if (wanted is None and len(there) > 1) or wanted not in (None, *there):
        raise PipelineError(f"{folder}: holds experts for {', '.join(there)}: expected one of them, found {wanted}")
    return wanted or there[0]


def shared_of(whisper: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the FFNs of a plain Whisper under the experts' names, such as `encoder.layers.0.expert.fc1.weight`."""
    return {
        name.removeprefix("model.").replace(".fc", ".expert.fc"): tensor.detach()
        for name, tensor in whisper.named_parameters()
        if ".layers." in name and name.rsplit(".", 2)[1] in ("fc1", "fc2")
    }
