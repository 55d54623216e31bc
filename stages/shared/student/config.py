"""The configuration and the output of a Whisper with experts."""

from dataclasses import dataclass

import torch
from transformers import WhisperConfig
from transformers.modeling_outputs import Seq2SeqLMOutput

GATE_DIM = 64  # inner width of the gates, as published


class DistilWhisperConfig(WhisperConfig):
    """Adds to Whisper's configuration the languages with an expert, and the options of `RoutedFeedForward`.

    language_tokens: language -> the other language whose token stands for it in prompts. expert_ranks: language -> rank, of
    the experts that are held as a change of low rank. ungated: the languages whose expert has no gates. expert_layers:
    language -> layers, of the experts that not all layers have.
    skip_gate: probability that a training step uses the shared block alone. expert_dropout: on the expert's output.
    gate_dropout: on the gate's input. gate_dim: the gate's inner width. lora_dropout: on the input of an expert's factors.
    gate_training: soft mixes the blocks while it trains; hard takes one of them, as at inference.
    """

    model_type = "distilwhisper"

    languages: list | None = None
    language_tokens: dict | None = None
    expert_ranks: dict | None = None
    ungated: list | None = None
    expert_layers: dict | None = None
    gate_dim: int = GATE_DIM
    skip_gate: float | int = 0.2
    expert_dropout: float | int = 0.3
    gate_dropout: float | int = 0.1
    gate_training: str = "soft"
    lora_dropout: float | int = 0.05


@dataclass
class DistilWhisperOutput(Seq2SeqLMOutput):
    """encoder_gates, decoder_gates: (B, T) for each layer. 1 where a token went through the expert; soft in training."""

    encoder_gates: tuple[torch.Tensor, ...] | None = None
    decoder_gates: tuple[torch.Tensor, ...] | None = None
