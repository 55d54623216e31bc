"""How long work tells how far it is."""

from collections.abc import Callable
from typing import TypeVar

Detail = TypeVar("Detail")
# Called with what is done, what there is in all, and a detail: seconds of audio done, a step's losses, or a note.
Progress = Callable[[int, int, Detail], None]


def silent(done: int, total: int, detail: object) -> None:
    """Reports to nobody."""
