"""A hypothesis as words that are right, wrong, missing or added, for readers."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from stages.shared.scoring import Stretch, alignment
from stages.shared.whisper.languages import WITHOUT_SPACES, code_of

WIDE = 30  # characters
SHOWN = 150  # marks of a hypothesis: a model in a loop writes thousands of words


@dataclass(frozen=True)
class Mark:
    """kind: equal, substitute, delete or insert."""

    kind: str
    said: str  # by the system; "" for a deletion
    meant: str  # in the reference; "" for an insertion

    @property
    def wide(self) -> bool:
        """Whether it may need more than a line."""
        return max(len(self.said), len(self.meant)) > WIDE


def marks(reference: str, hypothesis: str, language: str) -> list[Mark]:
    """Returns the words of both texts as they are scored, without case and punctuation, from left to right.

    Words that are right stand together in a mark; of the others each has its own. In a script without spaces between words
    a mark holds neighbouring letters.
    """
    code = code_of(language)
    joint = "" if code in WITHOUT_SPACES else " "
    return [mark for stretch in alignment(reference, hypothesis, code) for mark in _marks(stretch, joint)]


def _marks(stretch: Stretch, joint: str) -> Iterator[Mark]:
    if stretch.operation == "equal" or not joint:
        yield Mark(stretch.operation, joint.join(stretch.hypothesis), joint.join(stretch.reference))
        return
    for said, meant in zip_longest(stretch.hypothesis, stretch.reference, fillvalue=""):
        yield Mark(stretch.operation, said, meant)


def shown(all_marks: list[Mark]) -> tuple[list[Mark], int]:
    """Returns the first SHOWN marks, and the number of those that are left out."""
    return all_marks[:SHOWN], max(0, len(all_marks) - SHOWN)
