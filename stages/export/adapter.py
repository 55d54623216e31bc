"""Writes an adapter folder for PEFT: of an adapter, or of experts of low rank without gates."""

from pathlib import Path

import torch
from peft import LoraConfig

from cache import files
from cache.errors import PipelineError
from stages.shared.card.stored import tokens_of
from stages.shared.student import adapters, experts
from stages.shared.student.experts import StoredExpert
from stages.shared.student.loading import ModelSource
from stages.shared.student.lora import TARGETS, write_lora
from stages.shared.student.metadata import BASE_FIELDS, ROUNDED, load_base
from stages.shared.student.packing import Tensors, layers_in
from stages.shared.whisper.weights import read_weights, write_weights

OF_BASE = (*BASE_FIELDS, *ROUNDED.values(), "base_dtype", "base_parameters", "validation_wer")


def check_form(found: ModelSource) -> None:
    """Raises PipelineError, naming the format that fits, where the model is no change of low rank of its base."""
    if found.kind == "whisper":
        raise PipelineError(
            f"{found.name}: a whole Whisper, expected an adapter or experts of low rank: --to whisper fits"
        )
    if found.kind == "experts" and (found.metadata["gates"] != "none" or found.metadata["rank"] is None):
        gates = "no gates" if found.metadata["gates"] == "none" else f"gates for each {found.metadata['gates']}"
        rank = "full rank" if found.metadata["rank"] is None else f"rank {found.metadata['rank']}"
        raise PipelineError(
            f"{found.name}: experts of {rank} with {gates}, expected experts of low rank without gates: --to whisper fits"
        )


def write_adapter(found: ModelSource, folder: Path, dtype: torch.dtype) -> None:
    """Writes what `PeftModel.from_pretrained(base, folder)` reads, and `lora.json` for this project.

    Raises PipelineError where the expert does not fit its base.
    """
    if found.kind == "adapter":
        for name in (adapters.ADAPTER, adapters.METADATA):
            files.write_json(folder / name, files.read_json(found.folder / name))
        state = read_weights(found.folder / adapters.WEIGHTS)
        write_weights(folder / adapters.WEIGHTS, _cast(state, dtype), {"format": "pt"})
        return
    base = load_base(found.whisper, found.metadata, found.folder / experts.METADATA)
    shared = experts.shared_of(base.model)
    expert = experts.read_expert(found.folder, found.metadata, shared, factors=True)
    rank, own = found.metadata["rank"], layers_in(expert.state)
    whole = set(own) >= set(layers_in(shared))
    state = _lora_state(expert, shared)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # the product of the factors is not scaled
        target_modules=TARGETS if whole else [f"{layer}.{target}" for layer in own for target in TARGETS],
        lora_bias=any(name.endswith(".lora_B.bias") for name in state),
    )
    kept = {name: found.metadata[name] for name in OF_BASE if name in found.metadata}
    write_lora(
        folder,
        _cast(state, dtype),
        config,
        {"languages": [expert.language], "language_tokens": tokens_of(found), **kept},
    )


def _lora_state(expert: StoredExpert, shared: Tensors) -> dict[str, torch.Tensor]:
    """Returns the factors A (rank, in) and B (out, rank) by PEFT's names, and what is added to the biases, if anything."""
    factors, biases = {}, {}
    for name, tensor in expert.state.items():
        place, _, kind = f"base_model.model.model.{name.replace('.expert.', '.')}".rpartition(".")
        if kind == "bias":
            biases[f"{place}.lora_B.bias"] = tensor - shared[name].detach().float().cpu()
        else:
            factors[f"{place.removesuffix('.weight')}.lora_{'B' if kind == 'left' else 'A'}.weight"] = tensor
    return factors | (biases if any(change.any() for change in biases.values()) else {})


def _cast(state: Tensors, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.to(dtype) for name, tensor in state.items()}
