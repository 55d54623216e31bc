"""What a new expert is made of."""

from dataclasses import dataclass
from typing import Literal

Gates = Literal["token", "layer", "none"]


@dataclass(frozen=True)
class ExpertForm:
    """rank: of the change of each FFN matrix; None: full copies of the matrices.

    gates: they decide for each token, or for the whole of their layer; none: the expert takes every token.
    """

    rank: int | None = None
    gates: Gates = "token"


FULL_EXPERT = ExpertForm()
