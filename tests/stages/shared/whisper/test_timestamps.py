"""Targets with times: which utterances have them, and token by token what they are, by the tokenizer's own names."""

import json
import re
import shutil
from pathlib import Path

import pytest
from makers import make_tiny_whisper

from cache.errors import PipelineError
from stages.shared.subset import choose_groups
from stages.shared.whisper.models import Whisper, load_whisper
from stages.shared.whisper.targets import (
    Room,
    decoder_inputs,
    reason_against_transcript,
    target_form,
    target_positions,
)
from stages.shared.whisper.timestamps import is_timed, prompt_before

IDS = [f"clip-{number}" for number in range(4000)]


@pytest.fixture(scope="module")
def whisper(tiny_whisper: Path) -> Whisper:
    return load_whisper(str(tiny_whisper), 1)


def chosen(share: float, ids: list[str] = IDS) -> set[str]:
    return {name for name in ids if is_timed(name, share)}


# Which utterances


def test_the_choice_is_of_the_asked_share_and_a_larger_one_holds_a_smaller():
    sizes = {share: len(chosen(share)) / len(IDS) for share in (0.0, 0.1, 0.5, 0.9, 1.0)}
    assert (sizes[0.0], sizes[1.0]) == (0, 1)
    assert all(abs(size - share) < 0.03 for share, size in sizes.items())  # 3.8 standard deviations at 0.5
    assert chosen(0.1) < chosen(0.5) < chosen(0.9) < set(IDS)


def test_the_choice_is_the_same_everywhere_and_for_ever():
    """Caches on disk depend on it: a choice that moves makes them useless."""
    assert [number for number in range(24) if is_timed(f"clip-{number:03d}", 0.5)] == FIRST_HALF


# by `printf 'timestamps clip-000' | sha256sum`, and so on: those whose first digit is below 8
FIRST_HALF = [1, 5, 7, 8, 11, 12, 13, 16, 18, 19, 22, 23]


def test_the_choice_is_not_that_of_groups_by_their_names():
    """Where each utterance is a group of its own, a quarter of the groups has as many times as the whole."""
    quarter = choose_groups(IDS, 0.25)
    assert abs(len(chosen(0.5, sorted(quarter))) / len(quarter) - 0.5) < 0.06


# What they are


def names(whisper: Whisper, ids: list[int]) -> list[str]:
    return whisper.tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize(
    ("seconds", "end"), [(0.6, "<|0.60|>"), (0.609, "<|0.60|>"), (0.611, "<|0.62|>"), (1.0, "<|1.00|>")]
)
def test_times_stand_around_the_text(seconds, end, whisper):
    form = target_form(whisper, "cs", 1.0)
    targets = form.of_transcript({"id": "a", "text": "Ano.", "seconds": seconds})
    assert names(whisper, targets) == ["<|0.00|>", "\u0120", "A", "n", "o", ".", end, "<|endoftext|>"]
    before = names(whisper, prompt_before(form.prompt, targets))
    assert before == ["<|startoftranscript|>", "<|cs|>", "<|transcribe|>"]


def test_without_times_nothing_is_changed(whisper):
    form = target_form(whisper, "cs", 0.0)
    targets = form.of_transcript({"id": "a", "text": "Ano.", "seconds": 0.6})
    assert names(whisper, targets) == ["\u0120", "A", "n", "o", ".", "<|endoftext|>"]
    assert names(whisper, prompt_before(form.prompt, targets))[-1] == "<|notimestamps|>"


def test_words_that_look_like_times_stay_words(whisper):
    form = target_form(whisper, "cs", 0.0)
    targets = form.of_transcript({"id": "a", "text": "<|0.00|>", "seconds": 0.6})
    assert prompt_before(form.prompt, targets) == form.prompt
    assert names(whisper, targets) == ["\u0120", *"<|0.00|>", "<|endoftext|>"]


def test_rows_with_and_without_times_lie_in_one_batch():
    """The first token of a text is predicted where the prompt ends, one position earlier where there are times."""
    prompts, targets = [[1, 2, 3, 4], [1, 2, 3]], [[10, 11, 12], [5, 10, 11, 6, 12]]
    assert decoder_inputs(prompts, targets, 0).tolist() == [[1, 2, 3, 4, 10, 11, 0], [1, 2, 3, 5, 10, 11, 6]]
    rows, columns = target_positions(prompts, targets)
    assert (rows.tolist(), columns.tolist()) == ([0, 0, 0, 1, 1, 1, 1, 1], [3, 4, 5, 2, 3, 4, 5, 6])


def test_times_take_one_position_more(whisper):
    """Of the decoder: two tokens, less `<|notimestamps|>`."""
    utterance = {"id": "a", "text": "Ano.", "seconds": 0.6}
    for share, needed in ((0.0, 4 + 6 - 1), (1.0, 3 + 8 - 1)):
        form = target_form(whisper, "cs", share)
        assert reason_against_transcript(form, Room(1, needed), utterance) is None
        reason = reason_against_transcript(form, Room(1, needed - 1), utterance)
        assert reason is not None and reason[0] == "too_many_tokens"
        reason = reason_against_transcript(form, Room(1, needed), {**utterance, "seconds": 45.0})
        assert reason == ("too_long", "45.00 s in a window of 1 s")


def test_an_english_model_has_times_without_a_language(tmp_path):
    english = load_whisper(str(make_tiny_whisper(tmp_path, multilingual=False)), 1)
    form = target_form(english, "en", 1.0)
    targets = form.of_transcript({"id": "a", "text": "No", "seconds": 0.5})
    assert names(english, [*prompt_before(form.prompt, targets), *targets]) == [
        *("<|startoftranscript|>", "<|0.00|>", "\u0120", "N", "o", "<|0.50|>", "<|endoftext|>"),
    ]


# Models without them


def without_names(whisper: Whisper, folder: Path, pattern: str) -> Path:
    """A copy whose tokenizer does not know the tokens that match `pattern`."""
    shutil.copytree(whisper.folder, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    kept = [token for token in tokenizer["added_tokens"] if not re.fullmatch(pattern, token["content"])]
    assert len(kept) < len(tokenizer["added_tokens"])
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": kept}))
    return folder


def test_tokenizers_that_do_not_name_times_have_them_all_the_same(whisper, tmp_path):
    """The released whisper-base of 2022 is one."""
    unnamed = load_whisper(str(without_names(whisper, tmp_path / "unnamed", r"<\|\d+\.\d\d\|>")), 1)
    utterance = {"id": "a", "text": "Ano.", "seconds": 0.6}
    assert len(unnamed.tokenizer) == len(whisper.tokenizer) - 1501
    own, other = (target_form(one, "cs", 1.0).of_transcript(utterance) for one in (unnamed, whisper))
    assert own == other


def test_a_vocabulary_that_ends_before_the_times_is_refused(whisper, tmp_path):
    """Of 1 s there must be all, and no more."""
    folder = without_names(whisper, tmp_path / "cut", r"<\|\d+\.\d\d\|>")
    last = whisper.tokenizer.convert_tokens_to_ids("<|1.00|>")
    for size in (last + 1, last):
        cut = load_whisper(str(folder), 1)
        cut.model.config.vocab_size = size
        if size > last:
            assert target_form(cut, "cs", 0.5)
            continue
        with pytest.raises(PipelineError) as caught:
            target_form(cut, "cs", 0.5)
        assert str(caught.value) == (
            f"{folder}: no token <|1.00|> at {last}, where Whisper has it: a model without tokens of time cannot learn them; "
            "set train.timestamps and teacher.adapt.timestamps to 0"
        )
        assert target_form(cut, "cs", 0.0)


def test_times_at_other_places_are_refused(whisper, tmp_path):
    """Here without the first: each other one would stand for 0.02 s more."""
    folder = without_names(whisper, tmp_path / "shifted", r"<\|0\.00\|>")
    names_of = json.loads((folder / "tokenizer.json").read_text())
    start = whisper.tokenizer.convert_tokens_to_ids("<|0.00|>")
    for token in names_of["added_tokens"]:
        token["id"] -= token["id"] > start
    (folder / "tokenizer.json").write_text(json.dumps(names_of))
    shifted = load_whisper(str(folder), 1)
    with pytest.raises(PipelineError, match=r"no token <\|1\.00\|> at \d+, where Whisper has it"):
        target_form(shifted, "cs", 0.5)
