"""An expert on disk: `experts.safetensors` and `experts.json`, never a copy of the frozen model."""

from typing import Any

import torch

from cache import files
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.student.model import DistilWhisperForConditionalGeneration
from stages.whisper.weights import read_weights, write_weights

WEIGHTS, CONFIG = "experts.safetensors", "experts.json"
FORMAT_VERSION = 1
REQUIRED = ("language", "base", "base_weights", "audio_window_s")


def is_experts_folder(folder: AnyPath) -> bool:
    return (folder / CONFIG).exists()


def save_experts(
    student: DistilWhisperForConditionalGeneration, language: str, folder: AnyPath, config: dict[str, Any]
) -> None:
    """Writes the expert of `language` in float16; `config` (base, language, window, ...) goes beside it."""
    state = {name: parameter.to(torch.float16) for name, parameter in student.expert_state(language).items()}
    write_weights(folder / WEIGHTS, state)
    parameters = sum(tensor.numel() for tensor in state.values())
    header = {"format_version": FORMAT_VERSION, "language": language, "parameters": parameters}
    files.write_json(folder / CONFIG, {**header, **config})


def read_config(folder: AnyPath) -> dict[str, Any]:
    """Raises PipelineError where the folder holds no expert, or one of another format version."""
    config = files.read_json(folder / CONFIG)
    found = config.get("format_version") if isinstance(config, dict) else None
    if found != FORMAT_VERSION:
        raise PipelineError(f"{folder / CONFIG}: format_version is {found!r}, expected {FORMAT_VERSION}")
    if missing := [name for name in REQUIRED if name not in config]:
        raise PipelineError(f"{folder / CONFIG}: no {', '.join(missing)} in it, expected {', '.join(REQUIRED)}")
    return config


def load_experts(student: DistilWhisperForConditionalGeneration, folder: AnyPath, language: str | None = None) -> str:
    """Adds the folder's expert to `student`; returns its language. Raises PipelineError where it does not fit."""
    found = read_config(folder)["language"]
    if language not in (None, found):
        raise PipelineError(f"{folder}: an expert for '{found}', asked for '{language}'")
    language = found
    student.load_expert_state(language, read_weights(folder / WEIGHTS), str(folder))
    return language
