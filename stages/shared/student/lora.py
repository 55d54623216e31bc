"""LoRA on the feed-forward blocks (the published baseline), stored as a PEFT adapter folder with `lora.json` in it."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from cache import files
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.student.adapters import ADAPTER, FORMAT_VERSION, METADATA, WEIGHTS
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.targets import use_token
from stages.shared.whisper.weights import read_weights, write_weights

TARGETS = ["fc1", "fc2"]  # of every encoder and decoder layer


def add_lora(whisper: Whisper, rank: int, alpha: float, dropout: float) -> tuple[PeftModel, dict[str, nn.Parameter]]:
    """Adds new adapters to the model, in place. Returns the model with them, and the parameters to train, by name.

    The adapters change nothing at first: their product is 0. No `task_type` is given: PEFT's type for sequence-to-sequence
    models passes `input_ids`, which Whisper does not take.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=TARGETS, bias="none")  # type: ignore[arg-type]
    adapter = _adapted(whisper, config)
    return adapter, {name: p for name, p in whisper.model.named_parameters() if p.requires_grad}


def save_lora(adapter: PeftModel, folder: AnyPath, metadata: Mapping[str, Any]) -> None:
    """Writes a folder for `PeftModel.from_pretrained(base, folder)`, and `metadata` (base, languages, ...) to `lora.json`."""
    write_lora(folder, _state(adapter), adapter.peft_config["default"], metadata)


def write_lora(
    folder: AnyPath, state: Mapping[str, torch.Tensor], config: PeftConfig, metadata: Mapping[str, Any]
) -> None:
    """Does what `save_lora` does, from the adapter's tensors by PEFT's names."""
    write_weights(folder / WEIGHTS, dict(state), {"format": "pt"})
    settings = {**config.to_dict(), "inference_mode": True}
    settings["base_model_name_or_path"] = metadata["base"]  # PEFT records the folder that the base was read from
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    files.write_json(folder / ADAPTER, plain)
    files.write_json(folder / METADATA, {"format_version": FORMAT_VERSION, **metadata})


def merge_lora(whisper: Whisper, folder: AnyPath, metadata: Mapping[str, Any]) -> Whisper:
    """Merges the adapter in `folder` into its base, in place. The result is a plain Whisper and runs as fast as one.

    Raises PipelineError where the adapter does not fit the base.
    """
    for language, token in metadata["language_tokens"].items():
        use_token(whisper.model, language, token)
    adapter = _adapter(whisper, folder)
    load_lora_weights(adapter, folder)
    adapter.merge_and_unload()
    whisper.model.requires_grad_(False).eval()
    return whisper


def load_lora_weights(adapter: PeftModel, folder: AnyPath) -> None:
    """Copies the weights of the adapter in `folder` into `adapter`. Raises PipelineError where their shapes differ."""
    state, wanted = read_weights(folder / WEIGHTS), _state(adapter)
    for name in sorted(state.keys() | wanted.keys()):
        found, expected = (list(tensors[name].shape) if name in tensors else None for tensors in (state, wanted))
        if found != expected:
            raise PipelineError(f"{folder / WEIGHTS}: tensor '{name}' has shape {found}, expected {expected}")
    set_peft_model_state_dict(adapter, state)


def _adapter(whisper: Whisper, folder: AnyPath) -> PeftModel:
    settings = files.read_json(folder / ADAPTER)
    try:
        return _adapted(whisper, LoraConfig(**settings))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise PipelineError(f"{folder / ADAPTER}: not a LoRA configuration for this model ({error})") from None


def _adapted(whisper: Whisper, config: LoraConfig) -> PeftModel:
    with warnings.catch_warnings():
        # PEFT uses names that transformers has renamed, and expects a base from a folder
        warnings.simplefilter("ignore")
        return get_peft_model(whisper.model, config)


def _state(adapter: PeftModel) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(adapter, save_embedding_layers=False)
