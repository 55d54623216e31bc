"""Which share of the tokens each layer sent to the expert."""

import math

import torch

from stages.shared.whisper.decode import Gates
from stages.shared.whisper.window import POSITIONS_PER_SECOND

PROMPT_TOKENS = 4


class GateUse:
    """Counts real positions only: no silence beyond a clip's end, nothing after its end of text."""

    def __init__(self) -> None:
        self.expert: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    def add(self, gates: Gates, seconds: list[float], generated: list[int]) -> None:
        """Adds one batch: its gates, (B, T) for each call, and the seconds and the generated tokens of each of its B clips."""
        audio = torch.tensor([math.ceil(length * POSITIONS_PER_SECOND) for length in seconds])
        # the last token that was generated is read by no layer
        text = torch.tensor([PROMPT_TOKENS + count - 1 for count in generated])
        for layer, calls in gates.items():
            gate_BT = torch.cat(calls, dim=1).cpu()
            real = audio if layer.startswith("encoder") else text
            mask_BT = torch.arange(gate_BT.shape[1]) < real[:, None]
            self.expert[layer] = self.expert.get(layer, 0.0) + (gate_BT * mask_BT).sum().item()
            self.tokens[layer] = self.tokens.get(layer, 0) + int(mask_BT.sum())

    def shares(self) -> dict[str, float]:
        return {layer: self.expert[layer] / self.tokens[layer] for layer in self.expert}
