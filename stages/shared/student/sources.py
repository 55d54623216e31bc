"""Finds and reads an expert in any layout: ours, a LoRA adapter, or published experts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cache import storage
from cache.storage import AnyPath
from stages.shared.student import adapters, experts
from stages.shared.student.experts import StoredExpert, expert_language
from stages.shared.student.metadata import check_base
from stages.shared.student.packing import Tensors
from stages.shared.student.published import (
    check_published_base,
    file_name,
    published_languages,
    read_published,
)
from stages.shared.whisper.download import from_hub
from stages.shared.whisper.languages import LANGUAGES

NAMES = (experts.WEIGHTS, experts.METADATA, adapters.WEIGHTS, adapters.ADAPTER, adapters.METADATA)


class Base(NamedTuple):
    """The model that an expert is read for."""

    name: str
    parameters: Mapping[str, torch.Tensor]  # by the names of a plain Whisper
    audio_window_s: int
    fingerprint: str | None = None  # of its float32 weights, if it is known

    def check(self, metadata: Mapping[str, Any], path: AnyPath) -> None:
        """Raises PipelineError where the metadata that was read from `path` is of another base or another window."""
        check_base(metadata, path, self.parameters, self.audio_window_s, self.fingerprint)


def find_expert(source: str, language: str | None) -> AnyPath:
    """Returns `source` if it is a folder or a URL, else a local copy of the expert's files from the hub.

    Raises PipelineError where the hub does not give them.
    """
    folder = storage.path(source)
    if isinstance(folder, Path) and not folder.exists():
        published = [file_name(language)] if language and language in LANGUAGES else []
        return from_hub(source, [*NAMES, *published])
    return folder


def read_any_expert(folder: AnyPath, language: str | None, shared: Tensors, base: Base) -> StoredExpert:
    """Reads the expert in `folder`, in our layout, as an adapter or in the published layout, for `base`.

    language: its code; needed where the folder holds several. shared: the base's FFNs by the expert's names. Raises
    PipelineError where the expert does not fit the base, or was trained with other base weights or another audio window.
    """
    if not experts.is_experts_folder(folder):
        if adapters.is_adapter_folder(folder):
            return read_adapter_expert(folder, language, shared, base)
        if published_languages(folder):
            return read_published_expert(folder, shared, language)
    metadata = experts.read_expert_metadata(folder)
    expert = experts.read_expert(folder, metadata, shared, language)
    base.check(metadata, folder / experts.METADATA)
    return expert


def read_adapter_expert(folder: AnyPath, language: str | None, shared: Tensors, base: Base) -> StoredExpert:
    """Reads a LoRA adapter as an expert without gates.

    language: its code; needed for an adapter of several languages, and for one that another program wrote.
    Raises PipelineError where the adapter does not fit the base, or changes more of it than the FFNs.
    """
    ours = adapters.is_lora_folder(folder)
    metadata = (
        adapters.read_adapter_metadata(folder)
        if ours
        else adapters.foreign_metadata(folder, language, base.name, base.audio_window_s)
    )
    found = expert_language(folder, metadata["languages"], language)
    state = adapters.read_adapter(folder, shared)
    if ours:
        base.check(metadata, folder / adapters.METADATA)
    return StoredExpert(found, metadata["language_tokens"].get(found), state)


def read_published_expert(folder: AnyPath, shared: Tensors, language: str | None = None) -> StoredExpert:
    """Reads an expert in the published layout. Compares `shared` with the FFNs of the checkpoint there, if there is one.

    language: its code or name; needed where the folder holds several. Raises PipelineError where there is no such expert,
    or where it does not fit the base.
    """
    found = expert_language(folder, published_languages(folder), language)
    state = read_published(folder, found, shared)
    base = {f"model.{name.replace('.expert.', '.')}": tensor for name, tensor in shared.items()}
    check_published_base(folder, base, "this one")
    return StoredExpert(found, None, state)
