"""Counts the share of the tokens that each layer sent to the expert."""

# Shapes: B clips, T positions.

import math

import torch

from stages.shared.whisper.decode import Gates
from stages.shared.whisper.window import POSITIONS_PER_SECOND

PROMPT_TOKENS = 4


class GateUse:
    """Counts real positions only: none beyond the end of a clip, none after the end of its text."""

    def __init__(self) -> None:
        self.expert: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    def add(self, gates: Gates, seconds: list[float], generated: list[int]) -> None:
        """Adds a batch of B clips. gates: (B, T) for each call. seconds, generated: length and tokens of each clip."""
        audio = torch.tensor([math.ceil(length * POSITIONS_PER_SECOND) for length in seconds])
        # no layer reads the last token that was generated
        text = torch.tensor([PROMPT_TOKENS + count - 1 for count in generated])
        for layer, calls in gates.items():
            gate_BT = torch.cat(calls, dim=1).cpu()
            real = audio if layer.startswith("encoder") else text
            mask_BT = torch.arange(gate_BT.shape[1]) < real[:, None]
            self.expert[layer] = self.expert.get(layer, 0.0) + (gate_BT * mask_BT).sum().item()
            self.tokens[layer] = self.tokens.get(layer, 0) + int(mask_BT.sum())

    def shares(self) -> dict[str, float]:
        return {layer: self.expert[layer] / self.tokens[layer] for layer in self.expert}
