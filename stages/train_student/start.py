"""What a student begins as, where that is not fresh: an expert or an adapter that was trained for another language."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cache import storage
from cache.errors import PipelineError
from cache.files import sha256_file
from cache.storage import AnyPath
from stages.shared.methods import method_named
from stages.shared.student import adapters, experts
from stages.shared.student.metadata import check_base
from stages.shared.student.packing import Tensors, layers_in
from stages.shared.student.sources import find_expert
from stages.shared.whisper.models import Whisper
from stages.train_student.settings import TrainSettings

# What a method trains -> whether a folder holds that, what reads its metadata, and the names of the two files
KINDS = {
    "experts": (experts.is_experts_folder, experts.read_expert_metadata, experts.METADATA, experts.WEIGHTS),
    "adapter": (
        adapters.is_lora_folder,
        adapters.read_adapter_metadata,
        adapters.METADATA,
        adapters.WEIGHTS,
    ),
}


@dataclass(frozen=True)
class Start:
    """An expert or an adapter whose base has been compared. Its weights are not read yet."""

    folder: AnyPath
    metadata: Mapping[str, Any]
    weights: AnyPath  # the file

    def fingerprint(self) -> str:
        """Returns the sha256 of the weights' file."""
        return sha256_file(self.weights)


def find_start(source: str, method: str, base: Whisper, settings: TrainSettings) -> Start:
    """Finds the expert or the adapter at `source` (a folder or a URL; of an expert also a hub id).

    Raises PipelineError where there is none of the kind that `method` trains, where it was trained with another base or
    another audio window, or where an expert's rank or gates are not those of `settings`.
    """
    trains = method_named(method).trains
    if trains == "all":
        raise PipelineError(
            f"train.start_from {source}: method {method} trains a whole model, expected experts or an adapter: give the "
            "model that it begins as by `student`"
        )
    known, read, metadata_name, weights_name = KINDS[trains]
    folder = find_expert(source, None) if trains == "experts" else storage.path(source)
    if not known(folder):
        raise PipelineError(
            f"train.start_from {source}: no {metadata_name} in it, which method {method} can begin from"
        )
    metadata = read(folder)
    if trains == "experts":
        layers = chosen_layers(settings.expert_layers, experts.shared_of(base.model))
        _check_form(source, metadata, settings, layers)
    parameters = dict(base.model.named_parameters())
    check_base(metadata, folder / metadata_name, parameters, base.audio_window_s, base.fingerprint)
    return Start(folder, metadata, folder / weights_name)


def chosen_layers(chosen: str | list[str], shared: Tensors) -> tuple[str, ...] | None:
    """Returns the layers that `train.expert_layers` names; None for all. Raises PipelineError for one that there is not."""
    there = layers_in(shared)
    if isinstance(chosen, str):
        found = [name for name in there if chosen in ("all", name.split(".")[0])]
    elif unknown := set(chosen) - set(there):
        raise PipelineError(f"train.expert_layers: '{min(unknown)}' is no layer: expected some of {', '.join(there)}")
    else:
        found = [name for name in there if name in chosen]
    if not found:
        raise PipelineError("train.expert_layers is empty: expected at least one layer")
    return None if len(found) == len(there) else tuple(found)


def _check_form(
    source: str, metadata: Mapping[str, Any], settings: TrainSettings, layers: tuple[str, ...] | None
) -> None:
    """An expert of any rank can begin one of full rank: its change is added to the base's matrices."""
    rank, gates = metadata["rank"], metadata["gates"]
    if settings.expert_rank not in (None, rank):
        stored = "at full rank" if rank is None else f"of rank {rank}"
        raise PipelineError(
            f"train.start_from {source}: the expert there is {stored}, train.expert_rank is {settings.expert_rank}: they "
            "must agree, or train.expert_rank be null"
        )
    if (stored_layers := metadata["layers"]) != (layers and list(layers)):
        there = "all layers" if stored_layers is None else ", ".join(stored_layers)
        raise PipelineError(
            f"train.start_from {source}: the expert there is for {there}, train.expert_layers is {settings.expert_layers}: "
            "they must agree"
        )
    if settings.gates != gates:
        raise PipelineError(
            f"train.start_from {source}: the expert there has gates '{gates}', train.gates is '{settings.gates}': they must "
            "agree"
        )
