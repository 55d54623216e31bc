"""Loads any model that can transcribe: a Whisper, or experts, an adapter or a bundle of both with their base.

`locate` reads the metadata at a source once. `load_model` loads what `locate` found.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from cache import storage
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.student import adapters, bundles, experts, lora
from stages.shared.student.experts import StoredExpert
from stages.shared.student.metadata import find_base, load_base
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.student.sources import Base
from stages.shared.transcription import Transcription, decode_windows
from stages.shared.whisper.languages import language_code
from stages.shared.whisper.models import Whisper, WhisperSource, find_folder, find_model, load_whisper

Kind = Literal["whisper", "experts", "adapter", "bundle"]

# Kind -> the file that describes it, what tells it from the others, and what reads the file
BESIDE_A_BASE: Mapping[Kind, tuple[str, Callable[[AnyPath], bool], Callable[[AnyPath], dict[str, Any]]]] = {
    "experts": (experts.METADATA, experts.is_experts_folder, experts.read_expert_metadata),
    "adapter": (adapters.METADATA, adapters.is_lora_folder, adapters.read_adapter_metadata),
    "bundle": (bundles.METADATA, bundles.is_bundle_folder, bundles.read_bundle_metadata),
}


@dataclass(frozen=True)
class ModelSource:
    """A model that a user named. Its weights are not loaded yet."""

    name: str  # as the user gave it: a folder, a URL or a hub id
    kind: Kind
    folder: AnyPath
    whisper: WhisperSource  # the model itself, or the base of the others
    metadata: Mapping[str, Any] = field(default_factory=dict)  # of what is beside the base; {} for a Whisper

    @property
    def languages(self) -> list[str]:
        """Returns the codes of the languages that the metadata names."""
        return [self.metadata["language"]] if self.kind == "experts" else list(self.metadata.get("languages", []))

    @property
    def lines(self) -> list[str]:
        """Returns lines for the user: what the model is, and where its Whisper comes from."""
        named = ", ".join(self.languages)
        what = {"experts": f"experts for {named}", "adapter": "a LoRA adapter", "bundle": f"a bundle for {named}"}
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
    """Finds the Whisper, the experts, the adapter or the bundle at `source` (a folder, a URL or a hub id).

    Reads its metadata.

    base: folder, URL or hub id of the base; None takes the one that the metadata names.
    Raises PipelineError where `source` is none of these, or where the base cannot be found.
    """
    folder, _ = find_folder(source)
    for kind, (_, known, read) in BESIDE_A_BASE.items():
        if known(folder):
            metadata = read(folder)
            return ModelSource(source, kind, folder, find_base(metadata, folder, base), metadata)
    if adapters.is_adapter_folder(folder):
        raise PipelineError(
            f"{source}: an adapter of another program: no {adapters.METADATA} in it names its language, its base's weights and "
            "its window; in Python, load_expert(folder, language) takes it, and save_expert writes it with these"
        )
    if base is not None:
        raise PipelineError(
            f"{source}: holds neither experts nor an adapter: --base {base} has no effect, leave it out"
        )
    found = find_model(source)
    return ModelSource(source, "whisper", found.folder, found)


def described_in(found: ModelSource) -> AnyPath:
    """Returns the file that the metadata was read from. `found` must not be a Whisper."""
    return found.folder / BESIDE_A_BASE[found.kind][0]


def load_model(source: str | ModelSource, audio_window_s: int | None = None, base: str | None = None) -> LoadedModel:
    """Loads the model at `source`, in float32 on the CPU. An adapter is merged into its base.

    source: what `locate` returned, or its argument. audio_window_s: seconds; None takes the window of the training.
    Raises PipelineError where the model cannot be loaded, or where the base has other weights than in training.
    """
    found = locate(source, base) if isinstance(source, str) else source
    if found.kind == "whisper":
        return LoadedModel(load_whisper(found.whisper, audio_window_s), None)
    whisper = load_base(found.whisper, found.metadata, described_in(found), audio_window_s)
    if found.kind == "adapter":
        return LoadedModel(lora.merge_lora(whisper, found.folder, found.metadata), None, found.languages)
    student = DistilWhisperForConditionalGeneration.from_whisper(whisper.model)
    for expert in _experts(found, student, whisper):
        student.add_stored_expert(expert, source=found.name)
    return LoadedModel(replace(whisper, model=student.eval()), student, found.languages)


def _experts(
    found: ModelSource, student: DistilWhisperForConditionalGeneration, whisper: Whisper
) -> Iterable[StoredExpert]:
    """Returns the experts at `found`, whose base has been compared."""
    shared = student.shared_state()
    if found.kind == "experts":
        return [experts.read_expert(found.folder, found.metadata, shared)]
    base = Base(whisper.model_id, student.base_parameters(), whisper.audio_window_s, whisper.fingerprint)
    return bundles.read_bundle(found.folder, found.metadata, shared, base)
