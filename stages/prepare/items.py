"""The result of reading a corpus: items, which hold paths and text but never audio."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cache.errors import PipelineError
from cache.storage import AnyPath

SPLITS = ("test", "validation", "train")  # the order of preparation: of two equal recordings the first is kept


@dataclass(frozen=True)
class Item:
    id: str
    audio: AnyPath | Callable[[], bytes]  # a callable returns the bytes when they are needed
    text: str
    speaker: str  # "" where the corpus does not say
    group: str  # items that a subset must keep together: a scene, a speaker
    source: str  # path or address of the audio within the corpus
    version: str = ""  # changes with the bytes that a callable returns; "" where the corpus does not know
    excluded: tuple[str, str] | None = None  # reason and detail, if the item must be left out of its split


@dataclass(frozen=True)
class Corpus:
    splits: dict[str, list[Item]]  # in the corpus's order, after selection; a corpus may lack a split
    not_selected: dict[str, int] = field(default_factory=dict)  # by split: number of items outside the selected subset
    facts: dict[str, object] = field(default_factory=dict)  # for the manifest: versions, which splits were drawn
    notes: list[str] = field(default_factory=list)  # for the user: which splits were drawn, what the splits share


def unique_ids(items: list[Item]) -> list[Item]:
    """Returns `items` with "#2", "#3" … added to repeated ids: one recording read twice is a duplicate, not an error."""
    taken = {item.id for item in items}
    copies: Counter[str] = Counter()
    result = []
    for item in items:
        copies[item.id] += 1
        new_id = item.id
        while copies[item.id] > 1 and new_id in taken:
            new_id = f"{item.id}#{copies[item.id]}"
            copies[item.id] += new_id in taken
        taken.add(new_id)
        result.append(replace(item, id=new_id))
    return result


def transcripts_sha256(items: list[Item]) -> str:
    """Returns a hash of all but the audio: ids, texts, speakers, groups, sources, exclusions, and the order of items."""
    digest = hashlib.sha256()
    for item in items:
        row = [item.id, item.text, item.speaker, item.group, item.source, item.excluded]
        try:
            digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        except UnicodeEncodeError:
            raise PipelineError(
                f"item {item.id!r}: text or name is not valid Unicode, correct it in the corpus"
            ) from None
    return digest.hexdigest()


def split_by_group(sizes: dict[str, int], shares: dict[str, float], largest: float = math.inf) -> dict[str, str]:
    """Returns the split of each group, 'train' where no other split takes it. The same groups give the same result anywhere.

    sizes: items per group. shares: fraction of the items that each further split should get. largest: the most that one
    group may take of a further split's share.
    Groups are taken in the order of their names' sha256. Each goes to the first split that it does not dominate and brings
    nearer to its share. With groups of uneven size a random choice could miss a share of a twentieth.
    """
    targets = {split: share * sum(sizes.values()) for split, share in shares.items()}
    wanted = dict(targets)
    split_of = {}
    for group in sorted(sizes, key=stable_hash):
        fits = (s for s in targets if sizes[group] <= 2 * wanted[s] and sizes[group] <= largest * targets[s])
        split = next(fits, "train")
        split_of[group] = split
        if split != "train":
            wanted[split] -= sizes[group]
    return split_of


def stable_hash(text: str) -> int:
    """Returns a uniform 64-bit number, the same on any machine. Python's own hash differs between processes."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
