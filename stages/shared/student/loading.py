"""Loads any model that can transcribe: a Whisper, or experts or an adapter with their base.

`locate` reads the metadata at a source once. `load_model` loads what `locate` found.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from cache import storage
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.student import adapters, experts, lora
from stages.shared.student.metadata import find_base, load_base
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.transcription import Transcription, decode_windows
from stages.shared.whisper.languages import language_code
from stages.shared.whisper.models import Whisper, WhisperSource, find_folder, find_model, load_whisper

Kind = Literal["whisper", "experts", "adapter"]


@dataclass(frozen=True)
class ModelSource:
    """A model that a user named. Its weights are not loaded yet."""

    name: str  # as the user gave it: a folder, a URL or a hub id
    kind: Kind
    folder: AnyPath
    whisper: WhisperSource  # the model itself, or the base of experts or of an adapter
    metadata: Mapping[str, Any] = field(default_factory=dict)  # the JSON file of experts or an adapter; else empty

    @property
    def languages(self) -> list[str]:
        """Returns the codes of the languages that the metadata names."""
        return [self.metadata["language"]] if self.kind == "experts" else list(self.metadata.get("languages", []))

    @property
    def lines(self) -> list[str]:
        """Returns lines for the user: what the model is, and where its Whisper comes from."""
        what = {"experts": f"experts for {', '.join(self.languages)}", "adapter": "a LoRA adapter"}
        return [*([f"{self.name}: {what[self.kind]}"] if self.kind in what else []), self.whisper.line]


@dataclass(frozen=True)
class LoadedModel:
    """A model that can transcribe."""

    whisper: Whisper
    student: DistilWhisperForConditionalGeneration | None  # the same as `whisper.model`, if it has experts
    languages: Sequence[str] = ()  # codes of the languages of its training, if its folder names them

    def transcribe(
        self,
        path: str | AnyPath,
        language: str | None = None,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        cut_loops: bool = True,
        warn: Callable[[str], None] = lambda message: None,
    ) -> Transcription:
        """Returns the windows of a recording, to be iterated over: each is a Transcript with its text, start, end, and words
        with their times in seconds. A silent window has an empty text. `.text` of the result is the text of all windows.

        path: a file or a URL. language: a code or a name; None takes the language that the model was trained for, or else
        the one that is heard first, of several languages of training among these. device: auto, cpu, cuda, ... dtype: auto,
        fp32, bf16 or fp16. cut_loops: stop a text that repeats itself. warn: called with a line for each repair of the
        recording, if its end is missing, and for a language that was detected.
        The model is moved to the device and cast in place. Raises PipelineError for an unknown language; and, at the first
        window, where there is no audio, or where nothing is heard that tells the language.
        """
        place = storage.path(path) if isinstance(path, str) else path
        known = [language_code(language)] if language else self._trained_for()
        return Transcription(decode_windows(self.whisper, place, known, device, dtype, cut_loops, warn))

    def _trained_for(self) -> list[str]:
        """Returns the languages of the experts or of the training, [] if the model does not say them."""
        return list(self.student.languages if self.student else self.languages)


transcribe = LoadedModel.transcribe


def locate(source: str, base: str | None = None) -> ModelSource:
    """Finds the Whisper, the experts or the adapter at `source` (a folder, a URL or a hub id), and reads its metadata.

    base: folder, URL or hub id of the base; None takes the one that the metadata names.
    Raises PipelineError where `source` is none of these, or where the base cannot be found.
    """
    folder, _ = find_folder(source)
    if experts.is_experts_folder(folder):
        metadata = experts.read_expert_metadata(folder)
        return ModelSource(source, "experts", folder, find_base(metadata, folder, base), metadata)
    if adapters.is_lora_folder(folder):
        metadata = adapters.read_adapter_metadata(folder)
        return ModelSource(source, "adapter", folder, find_base(metadata, folder, base), metadata)
    if base is not None:
        raise PipelineError(
            f"{source}: holds neither experts nor an adapter: --base {base} has no effect, leave it out"
        )
    found = find_model(source)
    return ModelSource(source, "whisper", found.folder, found)


def load_model(source: str | ModelSource, audio_window_s: int | None = None, base: str | None = None) -> LoadedModel:
    """Loads the model at `source`, in float32 on the CPU. An adapter is merged into its base.

    source: what `locate` returned, or its argument. audio_window_s: seconds; None takes the window of the training.
    Raises PipelineError where the model cannot be loaded, or where the base has other weights than in training.
    """
    found = locate(source, base) if isinstance(source, str) else source
    if found.kind == "whisper":
        return LoadedModel(load_whisper(found.whisper, audio_window_s), None)
    beside = experts.METADATA if found.kind == "experts" else adapters.METADATA
    whisper = load_base(found.whisper, found.metadata, found.folder / beside, audio_window_s)
    if found.kind == "adapter":
        return LoadedModel(lora.merge_lora(whisper, found.folder, found.metadata), None, found.languages)
    student = DistilWhisperForConditionalGeneration.from_whisper(whisper.model)
    student.add_stored_expert(
        experts.read_expert(found.folder, found.metadata, student.shared_state()), source=found.name
    )
    return LoadedModel(replace(whisper, model=student.eval()), student, found.languages)
