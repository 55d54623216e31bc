"""The words of windows that overlap, joined: each word of the recording once, whole, and in order."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.shared.audio import SAMPLE_RATE
from stages.shared.whisper.decode import Transcript
from stages.shared.whisper.joining import join, join_windows
from stages.shared.whisper.words import Word
from stages.shared.windows import Window


def words(*given: tuple[str, float, float]) -> tuple[Word, ...]:
    return tuple(Word(f" {text}", start, end, 1.0) for text, start, end in given)


def joined(earlier: tuple[Word, ...], later: tuple[Word, ...], start: float = 3, end: float = 4) -> str:
    first, second = join(earlier, later, start, end, "cs")
    return "".join(word.text for word in first) + " |" + "".join(word.text for word in second)


def test_a_word_that_both_heard_is_there_once():
    earlier = words(("Dej", 2.2, 2.8), ("pokoj", 3.2, 3.6))
    later = words(("pokoj,", 3.3, 3.7), ("prosím", 4.1, 4.5))
    assert joined(earlier, later) == " Dej pokoj | prosím"
    assert (
        joined(earlier, words(("Pokoj!", 3.5, 3.8), ("prosím", 4.1, 4.5))) == " Dej | Pokoj! prosím"
    )  # from its middle


def test_words_that_were_cut_at_the_edges_go():
    earlier = words(("to", 2.5, 2.7), ("je", 3.1, 3.3), ("vrak", 3.4, 3.6), ("přij", 3.8, 4.0))
    later = words(("dě", 3.0, 3.2), ("vrak", 3.4, 3.6), ("přijde", 3.8, 4.3))
    assert joined(earlier, later).split() == ["to", "je", "vrak", "|", "přijde"]


def test_without_a_common_word_the_middle_parts_them():
    earlier = words(("jedna", 2.5, 2.9), ("dvě", 3.1, 3.3), ("čty", 3.8, 4.0))
    later = words(("vě", 3.0, 3.2), ("čtyři", 3.8, 4.3))
    assert joined(earlier, later) == " jedna dvě | čtyři"


@pytest.mark.parametrize("shift", [-0.04, 0.04, 0.15])
def test_a_word_in_the_middle_that_each_heard_otherwise_is_there_once(shift):
    """Its times differ, too: by the middle alone both windows would give it, or neither."""
    earlier = words(("kde", 2.6, 2.9), ("loďa", 3.4 + shift, 3.6 + shift))
    later = words(("lodě", 3.4 - shift, 3.6 - shift), ("jsou", 4.1, 4.4))
    said = joined(earlier, later).replace("|", "").split()
    assert (len(said), said[0], said[2]) == (3, "kde", "jsou")


def test_what_one_window_alone_heard_is_kept():
    assert joined(words(("ano", 3.6, 3.8)), words(("ne", 4.5, 4.8))) == " ano | ne"
    assert joined(words(("ano", 1.0, 1.3)), words(("ne", 3.1, 3.3))) == " ano | ne"


def test_a_word_said_twice_is_there_twice():
    earlier = words(("ne", 2.7, 2.9), ("ne", 3.2, 3.4), ("ne", 3.7, 3.9))
    later = words(("ne", 3.2, 3.4), ("ne", 3.7, 3.9), ("ne", 4.2, 4.4))
    assert joined(earlier, later).count("ne") == 4


def test_times_never_go_back():
    first, second = join(words(("ano", 3.0, 3.7)), words(("ne", 3.5, 4.2)), 3, 4, "cs")
    assert first[-1].end == second[0].start == pytest.approx(3.6)


SYLLABLES = ["ba", "ce", "di", "fi", "gu"]


@st.composite
def recordings(draw) -> list[Word]:
    """Words of 0.1 to 0.5 s, few enough texts that they come again, with pauses between some."""
    at, found = 0.0, []
    for _ in range(draw(st.integers(5, 40))):
        length, pause = draw(st.floats(0.1, 0.5)), draw(st.sampled_from([0.0, 0.0, 0.3]))
        text = "".join(draw(st.lists(st.sampled_from(SYLLABLES), min_size=1, max_size=3)))
        found.append(Word(f" {text}", at, at + length, 1.0))
        at += length + pause
    return found


def heard(recording: list[Word], start: float, end: float, jitter: float) -> Transcript:
    """What a window from `start` to `end` hears: whole words, and at its edges parts of words with another text."""
    found = []
    for word in recording:
        inside = min(word.end, end) - max(word.start, start)
        if inside > (word.end - word.start) / 2:
            whole = inside > word.end - word.start - 1e-9
            text = word.text if whole else f" {word.text[-1]}x"
            shift = jitter if whole else 0.0
            times = max(word.start - start + shift, 0.0), min(word.end, end) - start + shift
            found.append(replace(word, text=text, start=times[0], end=times[1]))
    return Transcript(
        [], "".join(word.text for word in found).strip(), False, False, 1.0, language="cs", words=tuple(found)
    )


@settings(max_examples=100, deadline=None)
@given(recordings(), st.lists(st.floats(1.5, 3.0), min_size=20, max_size=20), st.floats(-0.04, 0.04))
def test_planted_recordings_come_back(recording, lengths, jitter):
    """Windows overlap by a second wherever they are cut, also within words; their times are off by some hundredths."""
    total, start, decoded = recording[-1].end, 0.0, []
    for number, length in enumerate(lengths):
        end = min(start + length + 1, total)
        samples = np.zeros(round((end - start) * SAMPLE_RATE), np.float32)
        before = SAMPLE_RATE if number else 0
        found = heard(recording, start, end, jitter if number % 2 else -jitter)
        decoded.append((Window(samples, round(start * SAMPLE_RATE), before), found))
        if end == total:
            break
        start = end - 1
    windows = list(join_windows(decoded))
    assert " ".join(one.text for one in windows if one.text).split() == [word.text.strip() for word in recording]
    times = [time for one in windows for word in one.words for time in (word.start, word.end)]
    assert times == sorted(times)
    for one in windows:
        if one.words:
            assert (one.start, one.end) == (one.words[0].start, one.words[-1].end)


def test_windows_that_do_not_overlap_are_as_they_were():
    first = Transcript([1], "Ano.", True, False, 1.0, language="cs")
    second = Transcript([2], "Ano.", False, True, 1.0, language="cs")
    blank = np.zeros(2 * SAMPLE_RATE, np.float32)
    found = list(join_windows([(Window(blank, 0), first), (Window(blank, 2 * SAMPLE_RATE), second)]))
    assert found == [replace(first, end=2.0), replace(second, start=2.0, end=4.0)]


def test_a_language_without_spaces_is_joined_by_its_letters():
    letters = [Word(letter, 2.6 + 0.2 * n, 2.8 + 0.2 * n, 1.0) for n, letter in enumerate("今日は良い天気です")]
    earlier, later = tuple(letters[:7]), tuple(letters[2:])
    first, second = join(earlier, later, 3, 4, "ja")
    assert "".join(word.text for word in (*first, *second)) == "今日は良い天気です"
