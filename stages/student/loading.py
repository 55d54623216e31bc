"""Any model that can transcribe: a Whisper, or a folder of experts or of an adapter with the base that it names."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from cache import storage
from stages.student.base import load_base
from stages.student.experts import CONFIG, is_experts_folder, load_experts, read_config
from stages.student.lora import is_lora_folder, load_lora
from stages.student.model import DistilWhisperForConditionalGeneration
from stages.student.routing import Routing
from stages.whisper.models import Whisper, load_whisper


@dataclass(frozen=True)
class Loaded:
    whisper: Whisper
    student: DistilWhisperForConditionalGeneration | None  # the whisper's model, where it has experts

    def route(self, language: str) -> AbstractContextManager[Routing]:
        """See the student's `route`; for a plain Whisper nothing is routed."""
        return self.student.route(language) if self.student else nullcontext(Routing())


def load_model(source: str, audio_window_s: int | None = None) -> Loaded:
    """Raises PipelineError where `source` is neither, or where the experts were trained on other base weights."""
    folder = storage.path(source).expanduser()
    if is_lora_folder(folder):
        return Loaded(load_lora(folder, audio_window_s), None)
    if not is_experts_folder(folder):
        return Loaded(load_whisper(source, audio_window_s), None)
    whisper = load_base(read_config(folder), folder / CONFIG, audio_window_s)
    student = DistilWhisperForConditionalGeneration.from_whisper(whisper.model)
    load_experts(student, folder)
    return Loaded(replace(whisper, model=student.eval()), student)
