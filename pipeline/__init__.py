"""The command line, and the names that Python code imports:

    from pipeline import DistilWhisperForConditionalGeneration, load_model, transcribe

They are loaded at their first use, so that the command line starts without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.shared.student.auto import DistilWhisperForConditionalGeneration
    from stages.shared.student.loading import LoadedModel, load_model, transcribe
    from stages.shared.transcription import Transcription
    from stages.shared.whisper.decode import Transcript

# Name -> the module that has it. Importing `auto` also registers the model with transformers' Auto classes.
_LOADED_FROM = {
    "DistilWhisperForConditionalGeneration": "stages.shared.student.auto",
    "LoadedModel": "stages.shared.student.loading",
    "Transcript": "stages.shared.whisper.decode",
    "Transcription": "stages.shared.transcription",
    "load_model": "stages.shared.student.loading",
    "transcribe": "stages.shared.student.loading",
}

__all__ = [
    "DistilWhisperForConditionalGeneration",
    "LoadedModel",
    "Transcript",
    "Transcription",
    "load_model",
    "transcribe",
]


def __getattr__(name: str) -> Any:
    if name not in _LOADED_FROM:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    importlib.import_module("stages.shared.student.auto")
    return getattr(importlib.import_module(_LOADED_FROM[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
