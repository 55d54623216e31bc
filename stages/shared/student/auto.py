"""Tells transformers' Auto classes and its speech recognition pipeline, on import, what a Whisper with experts is."""

from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutomaticSpeechRecognitionPipeline,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    WhisperFeatureExtractor,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.pipelines import PIPELINE_REGISTRY

from stages.shared.student.config import DistilWhisperConfig
from stages.shared.student.model import DistilWhisperForConditionalGeneration

TASK = "automatic-speech-recognition"


class SpeechRecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    """Makes transformers' pipeline treat a model with experts as a Whisper.

    The pipeline decides by `model_type` whether a model is a Whisper. It silently cuts the audio of all others at 30 s.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        self._routed = isinstance(model, DistilWhisperForConditionalGeneration)
        super().__init__(model, *args, **kwargs)

    @property
    def type(self) -> str:
        return self._type

    @type.setter
    def type(self, found: str) -> None:
        self._type = "seq2seq_whisper" if self._routed else found


AutoConfig.register(DistilWhisperConfig.model_type, DistilWhisperConfig)
AutoModelForSpeechSeq2Seq.register(DistilWhisperConfig, DistilWhisperForConditionalGeneration)
AutoTokenizer.register(DistilWhisperConfig, WhisperTokenizer)
AutoFeatureExtractor.register(DistilWhisperConfig, WhisperFeatureExtractor)
AutoProcessor.register(DistilWhisperConfig, WhisperProcessor)
PIPELINE_REGISTRY.supported_tasks[TASK]["impl"] = SpeechRecognitionPipeline
