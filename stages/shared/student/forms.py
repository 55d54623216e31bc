"""What a new expert is made of."""

from dataclasses import dataclass
from typing import Literal

Gates = Literal["token", "layer", "none"]


@dataclass(frozen=True)
class ExpertForm:
    """rank: of the change of each FFN matrix; None: full copies of the matrices.

    gates: they decide for each token, or for the whole of their layer; none: the expert takes every token. gate_start: the
    value of a fresh gate, between 0 and 1; at 0.5 it begins as published. layers: those that have the expert, such as
    `decoder.layers.0`; None: all.
    """

    rank: int | None = None
    gates: Gates = "token"
    gate_start: float = 0.5
    layers: tuple[str, ...] | None = None


FULL_EXPERT = ExpertForm()
