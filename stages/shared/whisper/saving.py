"""Writes a plain Whisper folder, which transformers and whatever reads its layout take."""

import torch
from transformers import WhisperFeatureExtractor

from cache.files import local_folder
from cache.storage import AnyPath
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.weights import write_weights
from stages.shared.whisper.window import cut_audio_window, restore_audio_window

WEIGHTS = "model.safetensors"


def save_whisper(whisper: Whisper, folder: AnyPath, dtype: torch.dtype) -> None:
    """Writes weights, configurations, tokenizer and feature extractor.

    The encoder's positions are written for the whole 30 s, whatever the window: other readers run such a model alone.
    `audio_window_s` in config.json names the window of the training.
    """
    model, window = whisper.model, whisper.audio_window_s
    restore_audio_window(model)
    model.config.audio_window_s = window
    # the output projection is the embedding's own tensor
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    with local_folder(folder) as local:
        write_weights(local / WEIGHTS, state, {"format": "pt"})
        for part in (model.config, model.generation_config, whisper.tokenizer):
            part.save_pretrained(local)
        WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(local)
    cut_audio_window(model, window)
