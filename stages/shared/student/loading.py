"""Any model that can transcribe: a Whisper, or a folder of experts or of an adapter with the base that it names."""

from dataclasses import dataclass, replace

from cache import storage
from cache.errors import PipelineError
from stages.shared.student.experts import CONFIG, is_experts_folder, load_experts, read_config
from stages.shared.student.lora import is_lora_folder, load_lora
from stages.shared.student.metadata import load_base
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.whisper.models import Whisper, load_whisper


@dataclass(frozen=True)
class Loaded:
    whisper: Whisper
    student: DistilWhisperForConditionalGeneration | None  # the whisper's model, where it has experts


def load_model(source: str, audio_window_s: int | None = None, base: str | None = None) -> Loaded:
    """Loads the Whisper, the experts or the adapter at `source` (a folder, a URL or a hub id).

    base: where the base of experts or of an adapter lies, instead of where they name it; its weights are compared.
    Raises PipelineError where `source` is none of them, or where the base has other weights than in training.
    """
    folder = storage.path(source)
    if is_lora_folder(folder):
        return Loaded(load_lora(folder, audio_window_s, base), None)
    if not is_experts_folder(folder):
        if base is not None:
            raise PipelineError(f"{source}: holds neither experts nor an adapter, so that --base {base} is of no use")
        return Loaded(load_whisper(source, audio_window_s), None)
    whisper = load_base(read_config(folder), folder / CONFIG, audio_window_s, base)
    student = DistilWhisperForConditionalGeneration.from_whisper(whisper.model)
    load_experts(student, folder, base_checked=True)
    return Loaded(replace(whisper, model=student.eval()), student)
