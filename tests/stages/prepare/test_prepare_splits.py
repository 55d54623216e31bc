"""Splits drawn for a corpus that has none: no sentence on two sides, no speaker where that can be, nothing lost unsaid."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from prepare_makers import noise, record

from cache.errors import PipelineError
from cache.files import read_jsonl
from cache.shards import ShardReader
from stages.prepare.corpora.manifest import ManifestSettings
from stages.prepare.corpora.splits import sentence_key, shared, with_all_splits
from stages.prepare.items import SPLITS, Corpus, Item
from stages.prepare.run import prepare
from stages.prepare.settings import PrepareSettings

SHARES = {"test": 0.1, "validation": 0.05}


def items_of(rows):
    """rows: (text, speaker)."""
    return [
        Item(str(i), Path(f"{i}.wav"), text, speaker, speaker, f"{i}.wav") for i, (text, speaker) in enumerate(rows)
    ]


def draw(rows, **shares):
    return with_all_splits(Corpus({"train": items_of(rows)}), shares or SHARES)


def sizes(corpus):
    return {split: len(items) for split, items in corpus.splits.items()}


def used(corpus, split, key):
    return {key(item) for item in corpus.splits.get(split, []) if item.excluded is None}


def overlap(corpus, key):
    found = [used(corpus, split, key) - {""} for split in SPLITS]
    return sum(map(len, found)) - len(set.union(*found))


def sentence(item):
    return sentence_key(item.text)


def speaker(item):
    return item.speaker


def test_a_prompt_list_read_by_all_is_split_by_its_sentences():
    """Six people, the same twenty sentences: whole speakers would cost most of the recordings."""
    corpus = draw([(f"Esta é a frase número {i}.", f"falante{s}") for s in range(6) for i in range(20)])
    assert sizes(corpus) == {"train": 102, "test": 12, "validation": 6}
    assert overlap(corpus, sentence) == 0 and all(item.excluded is None for item in corpus.splits["train"])
    assert "by whole sentences; speakers are on both sides" in corpus.notes[0]
    assert "train and test share 0 of 2 sentences and 6 of 6 speakers of test" in shared(corpus.splits)


def test_speakers_with_sentences_of_their_own_are_kept_whole():
    corpus = draw([(f"Frase {s} {i}", f"s{s}") for s in range(20) for i in range(5)])
    assert sizes(corpus) == {"train": 85, "test": 10, "validation": 5}
    assert overlap(corpus, sentence) == overlap(corpus, speaker) == 0 and shared(corpus.splits) == []
    assert corpus.facts == {"drawn": ["test", "validation"]}
    assert corpus.notes == [
        "the corpus has no test and no validation split: test (10 utterances) and validation (5 utterances) drawn from "
        "training, by whole sentences and whole speakers"
    ]


def test_a_sentence_that_everyone_says_is_left_out_of_training_by_name():
    corpus = draw([("Si!" if i == 0 else f"Frase {s} {i}", f"s{s}") for s in range(30) for i in range(12)])
    assert overlap(corpus, sentence) == overlap(corpus, speaker) == 0
    excluded = [item for items in corpus.splits.values() for item in items if item.excluded]
    assert {item.text for item in excluded} == {"Si!"} and 20 < len(excluded) <= 36
    assert Counter(item.excluded[0] for item in excluded).keys() == {"sentence_in_test"}
    assert f"; {len(excluded)} utterances are left out, since their sentence is in another split" in corpus.notes[0]
    assert sum(sizes(corpus).values()) == 360


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_corpus_no_sentence_is_on_two_sides_and_no_item_is_lost(seed):
    chance = random.Random(seed)
    people, words = chance.choice([1, 3, 8, 40, 400]), chance.choice([2, 30, 300, 5000])
    rows = [
        (chance.choice(["Frase {}.", "frase  {}", "FRASE, {}!"]).format(chance.randrange(words)),
         chance.choice(["", f"s{chance.randrange(people)}", f"s{int(people * chance.random() ** 3)}"]))
        for _ in range(chance.choice([40, 500]))
    ]  # fmt: skip
    corpus = draw(rows)
    assert overlap(corpus, sentence) == 0
    assert sorted(int(item.id) for items in corpus.splits.values() for item in items) == list(range(len(rows)))
    if len(corpus.splits) == 1:
        assert words == 2 and "too few, or too uneven" in corpus.notes[0]
        return
    kept = {split: len(used(corpus, split, lambda item: item.id)) for split in SPLITS}
    assert 0.05 * len(rows) <= kept["test"] <= 0.2 * len(rows) + 1
    assert 0.025 * len(rows) <= kept["validation"] <= 0.1 * len(rows) + 1
    assert sum(kept.values()) >= 0.9 * len(rows)
    if "whole speakers" in corpus.notes[0]:
        assert overlap(corpus, speaker) == 0
    chance.shuffle(order := items_of(rows))
    again = with_all_splits(Corpus({"train": order}), SHARES)
    assert {split: {item.id for item in items} for split, items in again.splits.items()} == {
        split: {item.id for item in items} for split, items in corpus.splits.items()
    }


def test_a_sentence_is_the_same_whatever_its_case_punctuation_and_spaces():
    assert len({sentence_key(text) for text in ("Bo  día!", "bo día", "«Bo di\u0301a…»", "BO\u00a0DÍA")}) == 1
    assert sentence_key("कि") != sentence_key("की") and sentence_key("… ?!") == ""


def test_what_has_no_text_is_trained_on_and_never_drawn():
    corpus = draw([(f"Frase {i}" if i % 4 == 0 else "…", "") for i in range(400)])
    assert {split: sum(map(bool, map(sentence, items))) for split, items in corpus.splits.items()} == {
        "train": 85, "test": 10, "validation": 5,
    }  # fmt: skip
    assert all(map(sentence, corpus.splits["test"] + corpus.splits["validation"]))


def test_what_cannot_be_drawn_is_said():
    for rows in ([("Frase.", "")] * 40, [(f"Frase {i}", "") for i in range(5)], []):
        corpus = draw(rows)
        assert corpus.splits.keys() <= {"train"}
        assert not rows or "no test and no validation split, and" in corpus.notes[0]
    assert draw([(f"Frase {i}", "") for i in range(100)], test=0, validation=0).notes == []


def test_the_corpus_own_splits_stay_and_what_they_share_is_said():
    own = {"train": items_of([("Ola.", "a"), ("Si.", "b")] + [(f"Frase {i}", "c") for i in range(60)])}
    own["test"] = items_of([("OLA", "b"), ("Non.", "d"), ("Vou", "")])
    corpus = with_all_splits(Corpus(own), SHARES)
    assert corpus.splits["test"] == own["test"] and len(corpus.splits["validation"]) >= 2
    assert shared(own) == ["train and test share 1 of 3 sentences and 1 of 2 speakers of test"]


# By way of the whole stage


@pytest.fixture
def folder(tmp_path):
    """30 people of 12 sentences, one of which all of them say."""
    rows = []
    for number in range(360):
        text = "Si!" if number % 12 == 0 else f"Frase {number}"
        rows.append({"path": f"{number}.wav", "text": text, "speaker": f"s{number // 12}"})
        record(tmp_path / f"{number}.wav", noise(0.25, number))
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def run(folder, suffix="", **shares):
    corpus = ManifestSettings(corpus="manifest", path=folder / "m.jsonl", **shares)
    return prepare(corpus, PrepareSettings(), "gl", folder / "gl", 2.0, split_suffix=suffix)


def test_drawn_splits_are_prepared_listed_and_recorded(folder):
    summary = {split.split: split for split in run(folder)}
    assert summary.keys() == {"test", "validation", "train"}
    lost = summary["train"].left_out["sentence_in_test"]
    rows = [row for row in read_jsonl(folder / "gl/train/left_out.jsonl") if row["reason"] == "sentence_in_test"]
    assert len(rows) == lost > 0 and rows[0]["detail"] == "test has the same sentence, by another speaker"
    assert ShardReader(folder / "gl/test", "utterances").manifest["corpus_facts"]["drawn"] == ["test", "validation"]
    assert sum(split.utterances + sum(split.left_out.values()) for split in summary.values()) == 360
    assert "drawn from training" in summary["test"].notes[0]
    (further,) = run(folder, "@other")
    assert further.split == "test@other" and further.utterances == summary["test"].utterances


def test_who_asks_for_a_split_that_was_not_made_is_not_sent_back_to_prepare(folder):
    assert {split.split for split in run(folder, validation_fraction=0)} == {"test", "train"}
    with pytest.raises(
        PipelineError, match="no validation split, and `pipeline prepare` drew none .*validation_fraction"
    ):
        ShardReader(folder / "gl/validation", "utterances")
    with pytest.raises(PipelineError, match="expected finished utterances shards, which `pipeline prepare` makes"):
        ShardReader(folder / "gl/test@other", "utterances")
