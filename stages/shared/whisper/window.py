"""The encoder's audio window: 30 s in Whisper. Its cost is proportional to it: for short clips a shorter one is cheaper."""

import torch
from torch import nn
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import sinusoids

FULL_WINDOW_S = 30
POSITIONS_PER_SECOND = 50  # 16 kHz, a hop of 160 samples, and a convolution of stride 2
FRAMES_PER_SECOND = 100  # log-mel frames


def cut_audio_window(model: WhisperForConditionalGeneration, seconds: int) -> None:
    """Keeps the first `seconds` of the encoder's positions, in place. It then takes features (B, mels, 100*seconds)."""
    positions = seconds * POSITIONS_PER_SECOND
    weight = model.model.encoder.embed_positions.weight
    if positions != weight.shape[0]:
        _set_positions(model, weight[:positions].detach().clone())


def restore_audio_window(model: WhisperForConditionalGeneration) -> None:
    """Sets the encoder's window back to 30 s, in place. All positions are fixed sinusoids: the rest is computed."""
    positions = FULL_WINDOW_S * POSITIONS_PER_SECOND
    weight = model.model.encoder.embed_positions.weight
    if positions != weight.shape[0]:
        full = sinusoids(positions, weight.shape[1]).to(weight)
        full[: weight.shape[0]] = weight.detach()
        _set_positions(model, full)


def _set_positions(model: WhisperForConditionalGeneration, weight: torch.Tensor) -> None:
    encoder = model.model.encoder
    encoder.embed_positions = nn.Embedding.from_pretrained(weight, freeze=True)
    # the encoder and generate() take the length of the window from the configuration
    for part in (model, model.model, encoder, model.model.decoder):
        part.config.max_source_positions = weight.shape[0]
    encoder.max_source_positions = model.model.decoder.max_source_positions = weight.shape[0]


def recorded_window(config) -> int | None:
    """Returns the window of the training in seconds; None if none is recorded, as in a released Whisper."""
    return getattr(config, "audio_window_s", None)
