"""Whisper with experts: the feed-forward blocks replaced, nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import WhisperForConditionalGeneration

from cache.errors import PipelineError
from stages.student.clsr import FeedForward, RoutedFeedForward, Routing


class Student:
    """A Whisper model with routed feed-forward blocks.

    The transformers model is changed in place and stays what it was otherwise: its attention, cache, `generate` and
    processors. Without a route around a call (see `route`) it computes exactly what the base model does.
    """

    def __init__(self, model: WhisperForConditionalGeneration, skip_gate: float = 0.2, expert_dropout: float = 0.3):
        self.model = model.requires_grad_(False)
        self.skip_gate, self.expert_dropout = skip_gate, expert_dropout
        self.routed: dict[str, RoutedFeedForward] = {}
        for side, part in (("encoder", model.model.encoder), ("decoder", model.model.decoder)):
            for number, layer in enumerate(part.layers):
                self._replace(f"{side}.layers.{number}", layer)

    def _replace(self, name: str, layer: Any) -> None:
        """A Whisper layer computes `fc2(dropout(activation_fn(fc1(x))))`, in every released model without dropout."""
        if layer.activation_dropout:
            raise PipelineError(
                f"activation_dropout is {layer.activation_dropout}, expected 0 as in every released Whisper"
            )
        shared = FeedForward(layer.fc1, layer.fc2, layer.activation_fn)
        routed = RoutedFeedForward(name, shared, self.skip_gate, self.expert_dropout)
        routed.train(layer.training)
        layer.fc1, layer.activation_fn, layer.fc2 = routed, nn.Identity(), nn.Identity()
        self.routed[name] = routed

    def add_expert(self, language: str) -> list[nn.Parameter]:
        """Adds a fresh expert, a copy of the shared blocks, and returns its parameters (they alone take gradients)."""
        if language in self.languages:
            raise PipelineError(f"there is already an expert for '{language}'")
        for routed in self.routed.values():
            routed.add_expert(language)
        return list(self.expert_state(language).values())

    @property
    def languages(self) -> list[str]:
        return list(next(iter(self.routed.values())).experts)

    def expert_state(self, language: str) -> dict[str, nn.Parameter]:
        """The parameters of one expert by name, such as `encoder.layers.0.expert.fc1.weight`."""
        state: dict[str, nn.Parameter] = {}
        for place, routed in self.routed.items():
            for kind, module in (("expert", routed.experts[language]), ("gate", routed.gates[language])):
                state |= {f"{place}.{kind}.{name}": parameter for name, parameter in module.named_parameters()}
        return state

    def load_expert_state(self, language: str, state: dict[str, torch.Tensor], source: str) -> None:
        """Adds the expert and copies `state` into it. Raises PipelineError naming the first tensor that does not fit."""
        self.add_expert(language)
        wanted = self.expert_state(language)
        if misfit := _misfit(state, wanted):
            self.drop_expert(language)
            raise PipelineError(f"{source}: {misfit}: made for another base model, or damaged")
        for name, parameter in wanted.items():
            parameter.data.copy_(state[name])

    def drop_expert(self, language: str) -> None:
        for routed in self.routed.values():
            del routed.experts[language], routed.gates[language]

    @contextmanager
    def route(self, language: str | None, noise: float = 0.0) -> Iterator[Routing]:
        """Within the block, calls of the model use the expert of `language`; what the gates did is in the result.

        The language lives as long as the block and no longer. None, or a language without an expert, is the shared path.
        """
        routing, before = Routing(language, noise), self._routing
        try:
            self._routing = routing
            yield routing
        finally:
            self._routing = before

    @property
    def _routing(self) -> Routing:
        return next(iter(self.routed.values())).routing

    @_routing.setter
    def _routing(self, routing: Routing) -> None:
        for routed in self.routed.values():
            routed.routing = routing


def _misfit(state: dict[str, torch.Tensor], wanted: dict[str, nn.Parameter]) -> str:
    """What the first tensor that does not fit has wrong, '' where all fit."""
    for name in sorted(wanted.keys() | state.keys()):
        if name not in state:
            return f"tensor '{name}' is missing"
        if name not in wanted:
            return f"tensor '{name}' is not expected"
        if state[name].shape != wanted[name].shape:
            return f"tensor '{name}' has shape {list(state[name].shape)}, expected {list(wanted[name].shape)}"
    return ""
