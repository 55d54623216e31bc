"""The CLSR layer (arXiv 2311.01070, section 3.1; after Zhang et al., ICLR 2021): shared FFN, expert and gate."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

GATE_DIM = 64
GATE_DROPOUT = 0.1


@dataclass
class Routing:
    """What one call of the model asks of its routed layers, and what they tell of it."""

    language: str | None  # None, or a language without an expert: the shared path
    noise: float = 0.0  # alpha: standard deviation of the noise on the gate's logits while training
    gates: dict[str, list[torch.Tensor]] = field(default_factory=dict)  # by layer, a (B, T) for each of its calls

    def record(self, layer: str, gate_BT: torch.Tensor) -> None:
        self.gates.setdefault(layer, []).append(gate_BT)


class FeedForward(nn.Module):
    """Whisper's feed-forward block, `fc2(act(fc1(x)))`."""

    def __init__(self, fc1: nn.Linear, fc2: nn.Linear, activation: Callable):
        super().__init__()
        self.fc1, self.fc2 = fc1, fc2
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Gate(nn.Module):
    """`G = w2 . relu(W1 x + b1)`: (..., D) -> (...); no bias on w2, and w2 = 0 at first, so that G = 0."""

    def __init__(self, dim: int):
        super().__init__()
        self.dropout = nn.Dropout(GATE_DROPOUT)
        self.inner, self.outer = nn.Linear(dim, GATE_DIM), nn.Linear(GATE_DIM, 1, bias=False)
        nn.init.normal_(self.inner.weight, std=0.01)
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.relu(self.inner(self.dropout(x)))).squeeze(-1)


class RoutedFeedForward(nn.Module):
    """`y = g * expert(x) + (1 - g) * shared(x)` per token: soft and noisy while training, one or the other afterwards.

    layer: its name among the gates; skip_gate: probability that a training step uses the shared block alone;
    expert_dropout: on the expert's output.
    """

    def __init__(self, layer: str, shared: FeedForward, skip_gate: float, expert_dropout: float):
        super().__init__()
        self.layer = layer
        self.shared = shared.requires_grad_(False)
        self.experts, self.gates = nn.ModuleDict(), nn.ModuleDict()
        self.skip_gate, self.expert_dropout = skip_gate, nn.Dropout(expert_dropout)
        self.routing = Routing(None)

    def add_expert(self, language: str) -> None:
        """The expert begins as a copy of the shared block."""
        fc1, fc2 = (nn.Linear(old.in_features, old.out_features) for old in (self.shared.fc1, self.shared.fc2))
        fc1.load_state_dict(self.shared.fc1.state_dict())
        fc2.load_state_dict(self.shared.fc2.state_dict())
        self.experts[language] = FeedForward(fc1, fc2, self.shared.activation).train(self.training)
        self.gates[language] = Gate(fc1.in_features).train(self.training)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        language = self.routing.language
        if language is None or language not in self.experts:
            return self.shared(x_BTD)
        expert, logits_BT = self.experts[language], self.gates[language](x_BTD).float()
        if self.training:
            return self._soft(x_BTD, expert, logits_BT)
        return self._hard(x_BTD, expert, logits_BT >= 0)

    def _soft(self, x_BTD: torch.Tensor, expert: nn.Module, logits_BT: torch.Tensor) -> torch.Tensor:
        gate_BT = torch.sigmoid(logits_BT + self.routing.noise * torch.randn_like(logits_BT))
        self.routing.record(self.layer, gate_BT)
        shared_BTD = self.shared(x_BTD)
        if torch.rand(()).item() < self.skip_gate:
            return shared_BTD
        expert_BTD = self.expert_dropout(expert(x_BTD))
        return torch.lerp(shared_BTD, expert_BTD, gate_BT.unsqueeze(-1).to(shared_BTD.dtype))

    def _hard(self, x_BTD: torch.Tensor, expert: nn.Module, chosen_BT: torch.Tensor) -> torch.Tensor:
        """Each token goes through one block only."""
        self.routing.record(self.layer, chosen_BT)
        if chosen_BT.all():
            return expert(x_BTD)
        if not chosen_BT.any():
            return self.shared(x_BTD)
        y_BTD = torch.empty_like(x_BTD)
        through_expert, through_shared = expert(x_BTD[chosen_BT]), self.shared(x_BTD[~chosen_BT])
        y_BTD = y_BTD.to(through_expert.dtype)
        y_BTD[chosen_BT], y_BTD[~chosen_BT] = through_expert, through_shared
        return y_BTD
