"""The layer of Conditional Language-Specific Routing (CLSR): a shared FFN, experts and gates.

After arXiv 2311.01070, section 3.1, and Zhang et al., ICLR 2021.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from stages.shared.student.config import DistilWhisperConfig
from stages.shared.student.forms import ExpertForm
from stages.shared.student.low_rank import LowRankLinear
from stages.shared.student.routing import Router, Routing

# Shapes: B rows of a batch, T positions, D model width
Rows = list[tuple[str, torch.Tensor | None]]  # an expert and the rows that use it: (B,) bool, or None for all rows


class FeedForward(nn.Module):
    """Whisper's feed-forward block, `fc2(act(fc1(x)))`."""

    def __init__(self, fc1: nn.Linear | LowRankLinear, fc2: nn.Linear | LowRankLinear, activation: Callable):
        super().__init__()
        self.fc1, self.fc2 = fc1, fc2
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Takes and returns (..., D)."""
        return self.fc2(self.activation(self.fc1(x)))

    def trained(self, rank: int | None, dropout: float) -> "FeedForward":
        """Returns a block that begins as this one and takes gradients. rank, dropout: see `LowRankLinear`.

        rank: None gives copies of the weights.
        """

        def begun(layer: nn.Linear) -> nn.Linear | LowRankLinear:
            return _copy(layer) if rank is None else LowRankLinear(layer, rank, dropout)

        assert isinstance(self.fc1, nn.Linear) and isinstance(self.fc2, nn.Linear)
        return FeedForward(begun(self.fc1), begun(self.fc2), self.activation).train(self.training)


def _copy(linear: nn.Linear) -> nn.Linear:
    weight = linear.weight
    new = nn.Linear(linear.in_features, linear.out_features, device=weight.device, dtype=weight.dtype)
    new.load_state_dict(linear.state_dict())
    return new


class Gate(nn.Module):
    """Computes the gate's logit `G = w2 . relu(W1 x + b1)`. w2 has no bias and begins as 0, so that G = 0.

    of_layer: the gate is the same for all inputs. W1 = 0 and b1 = 1 are fixed, and G is the sum of w2, which is trained.
    start: the value that the gate begins at. Other than 0.5 it takes b1 = 1 and equal w2: exact in a gate of a layer, else
    up to W1 x, which is small.
    """

    def __init__(self, dim: int, inner: int, dropout: float, of_layer: bool = False, start: float = 0.5):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.inner, self.outer = nn.Linear(dim, inner), nn.Linear(inner, 1, bias=False)
        nn.init.normal_(self.inner.weight, std=0.01)
        nn.init.zeros_(self.inner.bias)
        nn.init.constant_(self.outer.weight, math.log(start / (1 - start)) / inner)
        if of_layer or start != 0.5:
            nn.init.ones_(self.inner.bias)
        if of_layer:
            nn.init.zeros_(self.inner.weight)
            self.inner.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Takes (..., D), returns logits (...)."""
        return self.outer(torch.relu(self.inner(self.dropout(x)))).squeeze(-1)


class RoutedFeedForward(nn.Module):
    """Computes `y = g * expert(x) + (1 - g) * shared(x)` for each token. g is soft and noisy in training, else 0 or 1.

    An expert without a gate takes every token, in training as well.
    layer: the name under which gates are recorded. options: skip_gate, expert_dropout, gate_dropout, gate_dim,
    gate_training and lora_dropout, see `DistilWhisperConfig`.
    """

    def __init__(self, layer: str, shared: FeedForward, router: Router, options: DistilWhisperConfig):
        super().__init__()
        self.layer, self.router = layer, router
        self.shared = shared.requires_grad_(False)
        self.experts, self.gates = nn.ModuleDict(), nn.ModuleDict()
        self.skip_gate, self.expert_dropout = options.skip_gate, nn.Dropout(options.expert_dropout)
        self.hard_training = options.gate_training == "hard"
        self.gate_dropout, self.gate_dim, self.lora_dropout = (
            options.gate_dropout,
            options.gate_dim,
            options.lora_dropout,
        )
        # This block replaces fc1 of a plain Whisper. An empty tensor is saved under the name of fc1's weight. Loading a
        # routed checkpoint as a plain Whisper therefore fails on the shape, instead of dropping the experts.
        self.register_buffer("weight", torch.empty(0))

    def add_expert(self, language: str, form: ExpertForm) -> None:
        """Adds an expert, which begins as the shared block, and its gate."""
        self.experts[language] = self.shared.trained(form.rank, self.lora_dropout)
        if form.gates == "none":
            return
        fc1 = self.shared.fc1
        assert isinstance(fc1, nn.Linear)
        gate = Gate(fc1.in_features, self.gate_dim, self.gate_dropout, form.gates == "layer", form.gate_start)
        self.gates[language] = gate.to(fc1.weight.device, fc1.weight.dtype).train(self.training)

    def drop_expert(self, language: str) -> None:
        """Removes an expert and its gate."""
        for modules in (self.experts, self.gates):
            if language in modules:
                del modules[language]

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Takes and returns (B, T, D). Takes the experts from the current routing, and records the gates (B, T) there."""
        routing = self.router.current()
        if routing is None:
            return self.shared(x_BTD)
        rows = routing.rows(self.layer, self.experts.keys(), len(x_BTD))
        if not rows:
            routing.record(self.layer, torch.zeros(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device))
            return self.shared(x_BTD)
        rows = [(expert, None if asking is None else asking.to(x_BTD.device)) for expert, asking in rows]
        gated = any(expert in self.gates for expert, _ in rows)
        return self._soft(x_BTD, rows, routing) if self.training and gated else self._hard(x_BTD, rows, routing)

    def _soft(self, x_BTD: torch.Tensor, rows: Rows, routing: Routing) -> torch.Tensor:
        logits_BT = self._logits(x_BTD, rows)
        noisy_BT = logits_BT + routing.noise * torch.randn_like(logits_BT)
        gate_BT = torch.sigmoid(noisy_BT)
        if self.hard_training:  # straight-through: the value of the decision, the gradient of the sigmoid
            gate_BT = (noisy_BT >= 0).float() + (gate_BT - gate_BT.detach())
        gate_BT = gate_BT.masked_fill(logits_BT == -torch.inf, 0)
        routing.record(self.layer, gate_BT)
        shared_BTD = self.shared(x_BTD)
        if torch.rand(()).item() < self.skip_gate:
            rows = [(expert, asking) for expert, asking in rows if expert not in self.gates]
        if not rows:
            return shared_BTD
        expert_BTD = shared_BTD
        for expert, asking in rows:
            part = self._expert(expert, x_BTD if asking is None else x_BTD[asking])
            expert_BTD = part if asking is None else expert_BTD.index_put((asking,), part)
        return torch.lerp(shared_BTD, expert_BTD, gate_BT.unsqueeze(-1).to(shared_BTD.dtype))

    def _hard(self, x_BTD: torch.Tensor, rows: Rows, routing: Routing) -> torch.Tensor:
        """Sends each token through one block only."""
        chosen_BT = self._logits(x_BTD, rows) >= 0
        routing.record(self.layer, chosen_BT)
        count, tokens = int(chosen_BT.sum()), chosen_BT.numel()
        if count == 0:
            return self.shared(x_BTD)
        if count == tokens and len(rows) == 1:
            return self._expert(rows[0][0], x_BTD)
        blocks: list[tuple[Callable, torch.Tensor]] = [(self.shared, ~chosen_BT)] if count < tokens else []
        for expert, asking in rows:
            mask_BT = chosen_BT if asking is None else chosen_BT & asking[:, None]
            blocks.append((partial(self._expert, expert), mask_BT))
        parts = [(mask_BT, block(x_BTD[mask_BT])) for block, mask_BT in blocks]
        y_BTD = torch.empty_like(x_BTD, dtype=parts[0][1].dtype)
        for mask_BT, through in parts:
            y_BTD[mask_BT] = through
        return y_BTD

    def _expert(self, language: str, x: torch.Tensor) -> torch.Tensor:
        """Returns the expert's output, with its dropout in training."""
        return self.expert_dropout(self.experts[language](x))

    def _logits(self, x_BTD: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Returns the gates' logits, float32 (B, T); inf where the expert has no gate, -inf in rows without an expert."""
        logits_BT = x_BTD.new_full(x_BTD.shape[:2], -torch.inf, dtype=torch.float32)
        for expert, asking in rows:
            own_BTD = x_BTD if asking is None else x_BTD[asking]
            if expert in self.gates:
                found_BT = self.gates[expert](own_BTD).float()
            else:
                found_BT = own_BTD.new_full(own_BTD.shape[:2], torch.inf, dtype=torch.float32)
            if asking is None:
                return found_BT
            logits_BT = logits_BT.index_put((asking,), found_BT)
        return logits_BT


def shared_name(name: str) -> str:
    """Returns where a plain Whisper's parameter lies here: a layer's `fc1.weight` -> `fc1.shared.fc1.weight`."""
    place, _, rest = name.rpartition(".layers.")
    number, _, inner = rest.partition(".")
    routed = inner.startswith(("fc1.", "fc2."))
    return f"{place}.layers.{number}.fc1.shared.{inner}" if routed else name
