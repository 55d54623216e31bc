"""Draws test and validation splits for a corpus that has none, and tells what the splits of a corpus share."""

import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations

from stages.prepare.items import SPLITS, Corpus, Item, split_by_group

MOST_LOST = 0.1  # of the training utterances that may be given up, so that no speaker is on both sides
MOST_DRAWN = 0.3  # of the training utterances, unless more was asked for: a corpus of so few is kept together
FEWEST = 0.5  # of a split's share: less is no split


@dataclass(frozen=True)
class _Draw:
    split_of: list[str]  # by item
    lost: list[str | None]  # by item: the split that has its sentence, where it can therefore not be trained on
    how: str


def with_all_splits(corpus: Corpus, shares: dict[str, float]) -> Corpus:
    """Returns `corpus` with the test and validation splits that it lacks, drawn from training.

    shares: by split, the fraction of the training utterances. No sentence is in two drawn splits. No speaker is either,
    where that costs little. Every machine draws the same; with more recordings a few utterances may change their split.
    """
    splits = {name: items for name, items in corpus.splits.items() if items}
    lacking = {split: share for split, share in shares.items() if share > 0 and split not in splits}
    if not lacking or "train" not in splits:
        return replace(corpus, splits=splits)
    draw = _draw(splits["train"], lacking)
    if draw is None:
        return replace(corpus, splits=splits, notes=[*corpus.notes, _not_drawn(splits["train"], lacking)])
    splits |= _divided(splits["train"], draw)
    facts = {**corpus.facts, "drawn": sorted(lacking)}
    return replace(corpus, splits=splits, facts=facts, notes=[*corpus.notes, _drawn(splits, draw, lacking)])


def sentence_key(text: str) -> str:
    """Returns the sentence's letters, marks and digits. Two sentences with the same key count as one."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split())


def shared(splits: dict[str, list[Item]]) -> list[str]:
    """Returns a line for each two splits that have sentences or speakers in common."""
    usable = {name: [item for item in items if item.excluded is None] for name, items in splits.items()}
    sentences = {name: {sentence_key(item.text) for item in items} - {""} for name, items in usable.items()}
    speakers = {name: {item.speaker for item in items} - {""} for name, items in usable.items()}
    lines = []
    for one, other in combinations([split for split in reversed(SPLITS) if split in splits], 2):
        both = len(sentences[one] & sentences[other]), len(speakers[one] & speakers[other])
        if any(both):
            lines.append(
                f"{one} and {other} share {both[0]} of {len(sentences[other])} sentences "
                f"and {both[1]} of {len(speakers[other])} speakers of {other}"
            )
    return lines


def _draw(items: list[Item], shares: dict[str, float]) -> _Draw | None:
    """Tries ways to draw, and returns the first that gives every split about its share; None where none does.

    Every way gives a sentence one split only.
    """
    keys = [sentence_key(item.text) for item in items]
    sentences = [key or f"\0{item.id}" for key, item in zip(keys, items, strict=True)]
    speakers = [item.speaker or f"\0{item.id}" for item in items]
    ways = [(sentences, "by whole sentences")]
    if any(item.speaker for item in items):
        strictly = "by whole sentences and whole speakers"
        ways = [(_islands(sentences, speakers), strictly), (speakers, strictly)]
        ways.append(
            (sentences, "by whole sentences; speakers are on both sides, since they are too few or read the same")
        )
    for groups, how in ways:
        split_of = _shared_out(groups, keys, shares)
        lost = _lost(sentences, split_of)
        if _useful(keys, split_of, lost, shares):
            return _Draw(split_of, lost, how)
    return None


def _islands(sentences: list[str], speakers: list[str]) -> list[str]:
    """Returns the island of each item. Who reads a sentence of an island belongs to it, with all that they read."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for sentence, speaker in zip(sentences, speakers, strict=True):
        one, other = root(f"sentence {sentence}"), root(f"speaker {speaker}")
        parent[max(one, other)] = min(one, other)
    return [root(f"sentence {sentence}") for sentence in sentences]


def _shared_out(groups: list[str], keys: list[str], shares: dict[str, float]) -> list[str]:
    """Returns the split of each item. Groups stay whole. Items without a text, which cannot be scored, do not count."""
    sizes = Counter(group for group, key in zip(groups, keys, strict=True) if key)
    at_least_one = {split: max(share, 1 / max(1, sizes.total())) for split, share in shares.items()}
    split_of = split_by_group(dict(sizes), at_least_one)
    return [split_of.get(group, "train") for group in groups]


def _useful(keys: list[str], split_of: list[str], lost: list[str | None], shares: dict[str, float]) -> bool:
    """Tells whether each split has enough of its share, and training keeps enough."""
    kept = Counter(split for key, split, owner in zip(keys, split_of, lost, strict=True) if key and owner is None)
    total = sum(map(bool, keys))
    few = any(kept[split] < max(1, FEWEST * share * total) for split, share in shares.items())
    drawn = sum(kept[split] for split in shares)
    most = max(MOST_DRAWN, 2 * sum(shares.values()))
    return not few and drawn <= most * total and total - kept.total() <= MOST_LOST * total


def _lost(sentences: list[str], split_of: list[str]) -> list[str | None]:
    """Returns for each item the other split that has its sentence, or None. Test comes before validation before train."""
    first: dict[str, str] = {}
    for sentence, split in zip(sentences, split_of, strict=True):
        first[sentence] = min(first.get(sentence, split), split, key=SPLITS.index)
    return [
        first[sentence] if first[sentence] != split else None
        for sentence, split in zip(sentences, split_of, strict=True)
    ]


def _divided(items: list[Item], draw: _Draw) -> dict[str, list[Item]]:
    splits: dict[str, list[Item]] = {split: [] for split in dict.fromkeys(draw.split_of)}
    for item, split, owner in zip(items, draw.split_of, draw.lost, strict=True):
        detail = f"{owner} has the same sentence, by another speaker"
        splits[split].append(item if owner is None else replace(item, excluded=(f"sentence_in_{owner}", detail)))
    return splits


def _drawn(splits: dict[str, list[Item]], draw: _Draw, lacking: dict[str, float]) -> str:
    parts = " and ".join(f"{split} ({len(splits[split])} utterances)" for split in lacking)
    lost = sum(owner is not None for owner in draw.lost)
    left_out = f"; {lost} utterances are left out, since their sentence is in another split" if lost else ""
    return f"the corpus has no {' and no '.join(lacking)} split: {parts} drawn from training, {draw.how}{left_out}"


def _not_drawn(items: list[Item], lacking: dict[str, float]) -> str:
    sentences = len({sentence_key(item.text) for item in items})
    return (
        f"the corpus has no {' and no '.join(lacking)} split, and {len(items)} training utterances with {sentences} "
        "different sentences are too few, or too uneven, to draw one from: train-student needs validation, evaluate test"
    )
