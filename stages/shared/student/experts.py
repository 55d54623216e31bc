"""An expert on disk: `experts.safetensors` and `experts.json`, never a copy of the frozen model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cache import files, storage
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.student.metadata import BASE_FACTS, check_base, read_facts
from stages.shared.student.packing import Precision, Progress, Tensors, pack, silent, unpack
from stages.shared.student.published import (
    check_published_base,
    file_name,
    from_hub,
    published_languages,
    read_published,
)
from stages.shared.whisper.languages import LANGUAGES, language_code
from stages.shared.whisper.targets import token_of, use_token
from stages.shared.whisper.weights import read_weights, write_weights

if TYPE_CHECKING:
    from stages.shared.student.model import DistilWhisperForConditionalGeneration

WEIGHTS, CONFIG = "experts.safetensors", "experts.json"
FORMAT_VERSION = 2
READABLE = (1, 2)  # version 1 knew float16 at full rank alone, and is stored the same
REQUIRED = {"language": str, **BASE_FACTS}


def is_experts_folder(folder: AnyPath) -> bool:
    return (folder / CONFIG).exists()


def find_expert(source: str, language: str | None) -> AnyPath:
    """The folder or URL `source`, or a copy of what is needed of it where it is a hub id. Raises PipelineError."""
    folder = storage.path(source)
    if isinstance(folder, Path) and not folder.exists():
        return from_hub(
            source, [WEIGHTS, CONFIG, *([file_name(language)] if language and language in LANGUAGES else [])]
        )
    return folder


def save_experts(
    student: "DistilWhisperForConditionalGeneration",
    language: str,
    folder: AnyPath,
    config: dict[str, Any],
    precision: Precision = "fp16",
    rank: int | None = None,
) -> None:
    """Writes the expert of `language`, see `pack`; `config` (base, base_weights, audio_window_s, ...) goes beside it."""
    facts = {**config, "token": token_of(student, language)}
    write_expert(folder, language, student.expert_state(language), student.shared_state(), facts, precision, rank)


def write_expert(
    folder: AnyPath,
    language: str,
    state: Tensors,
    shared: Tensors,
    config: dict[str, Any],
    precision: Precision = "fp16",
    rank: int | None = None,
    progress: Progress = silent,
) -> None:
    """Raises PipelineError where the expert cannot be stored so, before anything is written."""
    write_weights(folder / WEIGHTS, pack(state, shared, precision, rank, progress))
    header = {
        "format_version": FORMAT_VERSION,
        "language": language,
        "token": config.get("token", language),
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "precision": precision,
        "rank": rank,
    }
    files.write_json(folder / CONFIG, header | {name: value for name, value in config.items() if name not in header})


def read_config(folder: AnyPath) -> dict[str, Any]:
    """Raises PipelineError where the folder holds no expert, or one of another format version, or its facts are not sound."""
    facts = read_facts(folder / CONFIG, READABLE, REQUIRED)
    if not isinstance(facts.get("token", ""), str):
        raise PipelineError(f"{folder / CONFIG}: token is {facts['token']!r}, expected text")
    return {"precision": "fp16", "rank": None, "token": facts["language"], **facts}


def read_expert(folder: AnyPath, shared: Tensors) -> dict[str, torch.Tensor]:
    """The folder's expert in float32. Raises PipelineError where it does not fit the base whose FFNs are `shared`."""
    config = read_config(folder)
    return unpack(read_weights(folder / WEIGHTS), shared, config["precision"], config["rank"], str(folder))


def load_experts(
    student: "DistilWhisperForConditionalGeneration",
    folder: AnyPath,
    language: str | None = None,
    base_checked: bool = False,
) -> str:
    """Adds the expert in `folder`, one of ours or of the published ones, to `student`; returns its language's code.

    language: code or name, which one of a published folder if it has several. base_checked: `load_base` has loaded the base.
    Raises PipelineError where it does not fit, where `student` has another audio window or other base weights than the
    expert was trained with, or where a published folder's checkpoint has other shared FFNs; then nothing is added.
    """
    shared = student.shared_state()
    published, token = [] if is_experts_folder(folder) else published_languages(folder), None
    if published:
        language = _chosen(folder, published, language)
        state = read_published(folder, language, shared)
        base = {f"model.{name.replace('.expert.', '.')}": tensor for name, tensor in shared.items()}
        check_published_base(folder, base, "this one")
    else:
        config = read_config(folder)
        language = _chosen(folder, [config["language"]], language)
        if not base_checked:
            check_base(config, folder / CONFIG, student.base_parameters(), student.audio_window_s)
        state = read_expert(folder, shared)
        token = config["token"] if config["token"] != language else None
    use_token(student, language, token)
    student.load_expert_state(language, state, str(folder))
    return language


def _chosen(folder: AnyPath, there: list[str], wanted: str | None) -> str:
    wanted = wanted and language_code(wanted)
    if (wanted is None and len(there) > 1) or wanted not in (None, *there):
        raise PipelineError(f"{folder}: holds experts for {', '.join(there)}: expected one of them, found {wanted}")
    return wanted or there[0]


def shared_of(whisper: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The FFNs of a plain Whisper under the experts' names: 'encoder.layers.0.expert.fc1.weight' and so on."""
    return {
        name.removeprefix("model.").replace(".fc", ".expert.fc"): tensor.detach()
        for name, tensor in whisper.named_parameters()
        if ".layers." in name and name.rsplit(".", 2)[1] in ("fc1", "fc2")
    }
