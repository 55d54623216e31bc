"""Cues of subtitles, and each format read back by others' readers."""

import csv
import io
import json

import pysubs2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from stages.shared.whisper.decode import Transcript
from stages.shared.whisper.words import Word
from stages.transcribe.cues import COLUMNS, MOST_SECONDS, Cue, cues
from stages.transcribe.formats import rendered
from stages.transcribe.settings import FORMATS


def said(text: str, start: float = 0.0, each: float = 0.4) -> list[Word]:
    """One word after the other, `each` second."""
    return [Word(f" {word}", start + each * n, start + each * (n + 1), 0.5) for n, word in enumerate(text.split())]


def transcript(words: list[Word], language: str = "cs", **marks: bool) -> Transcript:
    text = "".join(word.text for word in words).strip()
    times = (words[0].start, words[-1].end) if words else (7.0, 9.0)
    given = {"looped": False, "unended": False, **marks}
    return Transcript(
        [], text, **given, compression_ratio=1.0, language=language, start=times[0], end=times[1], words=tuple(words)
    )


def test_a_short_sentence_is_one_line():
    assert cues(said("Co je to za divnou loď?")) == [Cue(0.0, pytest.approx(2.4), ("Co je to za divnou loď?",))]


def test_two_lines_are_about_equally_wide():
    (cue,) = cues(said("Tohle je věta, která se na jeden řádek titulků nevejde.", each=0.3))
    assert cue.lines == ("Tohle je věta, která se na", "jeden řádek titulků nevejde.")


def test_a_cue_ends_before_the_word_that_does_not_fit():
    words = said(" ".join(f"slovo{n:03d}" for n in range(20)), each=0.2)
    found = cues(words)
    assert [cue.lines for cue in found] == [
        ("slovo000 slovo001 slovo002 slovo003", "slovo004 slovo005 slovo006 slovo007"),
        ("slovo008 slovo009 slovo010 slovo011", "slovo012 slovo013 slovo014 slovo015"),
        ("slovo016 slovo017 slovo018 slovo019",),
    ]


def test_a_cue_ends_after_seven_seconds_in_a_pause_and_with_a_sentence_that_fills_a_line():
    assert [cue.start for cue in cues(said("a b c d e f", each=2))] == [0, 6]
    assert [cue.start for cue in cues([*said("Ano."), *said("Ne.", 1.6)])] == [0, 1.6]
    assert len(cues([*said("Ano."), *said("Ne.", 1.2)])) == 1
    long = "Tady je dost slov pro jeden řádek titulků."
    assert [cue.lines for cue in cues(said(f"{long} Další.", each=0.3))] == [(long,), ("Další.",)]


def test_a_word_is_never_cut():
    wide = "nej" + "ne" * 30
    assert [cue.lines for cue in cues(said(f"To {wide} je"))] == [("To",), (wide,), ("je",)]
    (cue,) = cues([Word(" Jéééé", 1.0, 11.0, 1.0)])
    assert (cue.start, cue.end) == (1.0, 8.0)


def test_a_cue_stands_a_second_if_the_next_one_leaves_the_time():
    first, second, third = cues([*said("Ano.", 0, 0.2), *said("Ne.", 1.3, 0.2), *said("Tak.", 3.0, 0.2)])
    assert (first.end, second.end, third.end) == (1.0, 2.3, 4.0)
    wide = "x" * 50
    first, second = cues([Word(f" {wide}", 0, 0.2, 1.0), Word(" ne", 0.5, 0.6, 1.0)])
    assert first.end == 0.5


def test_chinese_characters_take_two_columns():
    words = [
        Word(letter, 0.1 * n, 0.1 * n + 0.1, 1.0)
        for n, letter in enumerate("今日は良い天気ですから外へ行きましょう" * 3)
    ]
    found = cues(words)
    assert "".join(line for cue in found for line in cue.lines) == "".join(word.text for word in words)
    assert max(cell_len(line) for cue in found for line in cue.lines) <= COLUMNS


@st.composite
def speech(draw) -> list[Word]:
    at, found = 0.0, []
    for _ in range(draw(st.integers(0, 60))):
        at += draw(st.sampled_from([0.0, 0.0, 0.1, 2.0]))
        length, sign = draw(st.floats(0.0, 1.0)), draw(st.sampled_from(["", "", ",", ".", "?"]))
        found.append(Word(" " + "x" * draw(st.integers(1, 50)) + sign, at, at + length, 1.0))
        at += length
    return found


@settings(max_examples=100, deadline=None)
@given(speech())
def test_cues_hold_all_words_in_order_and_fit(words):
    found = cues(words)
    assert " ".join(line for cue in found for line in cue.lines).split() == [word.text.strip() for word in words]
    for cue in found:
        assert len(cue.lines) <= 2
        assert all(cell_len(line) <= COLUMNS or " " not in line for line in cue.lines)
        assert cue.start <= cue.end <= cue.start + MOST_SECONDS
    assert all(before.end <= after.start for before, after in zip(found, found[1:], strict=False))


# Formats

WINDOWS = [
    transcript(said("Co je to? Tom & <b>Jerry</b> {a} --> ven!", 1.0)),
    transcript([]),
    transcript(said("Ano.", 3700.5), looped=True),
]


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_subtitles_read_back(format):
    text = rendered(WINDOWS, format, "m")
    if format == "vtt":
        assert text.startswith("WEBVTT\n\n")
        assert "Tom &amp; &lt;b&gt;Jerry&lt;/b&gt; {a} --&gt; ven!" in text
        assert "00:00:01.000 --> 00:00:04.600" in text
    else:
        assert "00:00:01,000 --> 00:00:04,600\nCo je to? Tom & <b>Jerry</b> {a} --> ven!" in text
    found = pysubs2.SSAFile.from_string(text, format, keep_html_tags=True)
    assert [(event.start, event.end) for event in found] == [(1000, 4600), (3_700_500, 3_701_500)]
    assert found[1].plaintext == "Ano."


def test_json_has_segments_and_words():
    found = json.loads(rendered(WINDOWS, "json", "models/cs/lora"))
    assert (found["language"], found["model"]) == ("cs", "models/cs/lora")
    assert found["text"] == "Co je to? Tom & <b>Jerry</b> {a} --> ven! Ano."
    assert [segment["text"] for segment in found["segments"]] == [WINDOWS[0].text, "Ano."]
    assert [(one["id"], one["start"], one["end"], one["looped"]) for one in found["segments"]] == [
        (0, 1.0, 4.6, False),
        (1, 3700.5, 3700.9, True),
    ]
    assert found["segments"][1]["words"] == [{"start": 3700.5, "end": 3700.9, "word": " Ano.", "probability": 0.5}]


def test_a_table_reads_back():
    rows = list(csv.reader(io.StringIO(rendered(WINDOWS, "tsv", "m")), delimiter="\t"))
    assert rows == [["start", "end", "text"], ["1000", "4600", WINDOWS[0].text], ["3700500", "3700900", "Ano."]]


def test_text_has_a_line_for_each_window():
    assert rendered(WINDOWS, "text", "m") == f"{WINDOWS[0].text}\nAno.\n"


@pytest.mark.parametrize("format", list(FORMATS))
def test_where_nothing_is_said(format):
    text = rendered([transcript([])], format, "m")
    if format in ("srt", "vtt"):
        assert len(pysubs2.SSAFile.from_string(text, format)) == 0
    elif format == "json":
        assert json.loads(text)["segments"] == []
    else:
        assert text == ("start\tend\ttext\n" if format == "tsv" else "")


def test_a_language_without_spaces_is_joined_without():
    windows = [transcript([Word(text, start, start + 1, 1.0)], "ja") for start, text in enumerate(("今日は", "良い"))]
    assert json.loads(rendered(windows, "json", "m"))["text"] == "今日は良い"
