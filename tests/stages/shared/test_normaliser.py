"""The golden files hold, for each language, texts as they are written, normalised by hand, and with one mark or letter wrong.

`\\uXXXX` in them is that character, where it would not be seen, or where an editor would replace it.
"""

import re
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.shared.normaliser import NORMALISER, SPLIT_BY_BASIC, basic, characters, normalise, words
from stages.shared.scoring import score, totals
from stages.shared.whisper.languages import WITHOUT_SPACES

GOLDEN = Path(__file__).parent / "normaliser"
AWKWARD = (
    "'’ʼ·ŀ\u200c\u200d\u0345ΐİIıßǰ\u0301\u0323\u034f\u00ad\ufe0f[]()<>【】（）ﾞｶ\"״א ا\u0640ﷺŉന്\u17b4\u20e3\u115fー۽กำ็ -"
)
FORMS = ("NFC", "NFD")


def golden():
    for path in sorted(GOLDEN.glob("*.tsv")):
        for line in path.read_text("utf-8").splitlines()[1:]:
            plain = re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), line)
            yield pytest.param(path.stem, *plain.split("\t"), id=f"{path.stem} {line.split()[0]}")


def test_every_language_has_its_texts():
    found = [each.values[0] for each in golden()]
    assert {language: found.count(language) >= 3 for language in found} == dict.fromkeys(
        ["ca", "cs", "gl", "hi", "hu", "km", "my", "nl", "pl", "ta", "th", "uk", "yo"], True
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("language", "written", "expected", "wrong"), list(golden()))
def test_golden(language, written, expected, wrong, form):
    expected = unicodedata.normalize("NFC", expected)
    assert normalise(unicodedata.normalize(form, written), language) == expected
    assert normalise(expected, language) == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("language", "written", "expected", "wrong"), list(golden()))
def test_a_wrong_vowel_sign_tone_or_accent_is_an_error(language, written, expected, wrong, form):
    right = score(written, unicodedata.normalize(form, expected), language)
    row = score(written, unicodedata.normalize(form, wrong), language)
    assert (right["word_errors"], right["character_errors"]) == (0, 0)
    assert (row["word_errors"], row["character_errors"]) == (1, 1)
    if language not in WITHOUT_SPACES:
        assert row["words"] == len(expected.split())
    else:
        assert row["characters"] == len(unicodedata.normalize("NFC", expected).replace(" ", ""))


@pytest.mark.parametrize(
    ("language", "written", "expected"),
    [
        ("fa", "او می\u200cرود\u200c، نه\u200c \u200cمن", "او می\u200cرود نه من"),  # the non-joiner, within a word only
        ("fa", "\u202bسلام\u202c \u200fدنیا\ufeff", "سلام دنیا"),
        ("ar", "الســـلام ﻋﻠﻴﻜﻢ ١٢٣", "السلام عليكم 123"),
        ("sd", "مان ۽ تون گھر ۾", "مان ۽ تون گھر ۾"),  # symbols by category, read as words
        ("si", "ශ්\u200dරී ලංකාව", "ශ්රී ලංකාව"),
        ("ml", "അവന്\u200d വന്നു", "അവ\u0d7b വന്നു"),  # as spelt before Unicode 5.1
        ("he", 'נשיא ארה"ב, "אמר" ג׳ירפה', "נשיא ארה״ב אמר ג'ירפה"),
        ("hy", "Ի՞նչ է, բարև՜", "ինչ է բարեւ"),  # the question mark stands over the vowel; և is a ligature
        ("tr", "IŞIK, İzmir'de I\u0307ki", "ışık izmir'de iki"),
        ("en", "IT IS 'it' - isn`t it? rock 'n' roll o´clock", "it is it isn't it rock n roll o'clock"),
        ("de", "STRASSE Straße", "strasse strasse"),
        ("el", "ΟΔΟΣ οδός· ΐ", "οδοσ οδόσ ΐ"),
        ("haw", "Hawaiʻi Hawai‘i", "hawai'i hawai'i"),
        ("zh", "约翰·史密斯（笑）【音乐】ＣＤ１５，好！", "约翰 史密斯 cd15 好"),
        ("ja", "ﾃﾞｰﾀ・センター「東京」です。", "データ センター 東京 です"),
        ("bo", "བོད་ཡིག །", "བོད ཡིག"),
        ("cs", "so\u00adft\u200b-hy\u2060phen a\u00b7b 1\u00b72 a/b a_b", "soft hyphen a·b 1 2 a b a b"),
        ("cs", "1\ufe0f\u20e3 \u2764\ufe0f \u0301 -\u0301a", "1 a"),
        ("cs", "a (b (c) d) e <smích> 3 < 5 > 4 [nezavřená", "a e 3 5 4 nezavřená"),
        ("cs", "a\x00b\x85c\u2028d\ud800e\ue000f", "a b c d e f"),
        ("cs", "[hudba]", ""),
        ("cs", " ...  ?! ", ""),
    ],
)  # fmt: skip
def test_each_rule(language, written, expected):
    assert normalise(written, language) == unicodedata.normalize("NFC", expected)
    assert NORMALISER == "marks-1"  # raise the number where an expected text above had to change


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters() | st.sampled_from(AWKWARD), max_size=12), st.sampled_from(["cs", "tr", "th"]))
def test_normalising_twice_changes_nothing(text, language):
    once = normalise(text, language)
    assert normalise(once, language) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once == " ".join(once.split())
    assert "".join(words(once, language)) == once.replace(" ", "")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters() | st.sampled_from(AWKWARD), max_size=12))
def test_the_form_of_the_accents_does_not_matter(text):
    assert normalise(unicodedata.normalize("NFD", text), "cs") == normalise(unicodedata.normalize("NFC", text), "cs")


def test_scripts_without_spaces_are_split_into_clusters():
    assert words(normalise("น้ำ ไก่", "th"), "th") == ["น้ำ", "ไ", "ก่"]
    assert words(normalise("កំពុង។", "km"), "km") == ["កំ", "ពុ", "ង"]
    assert words("น้ำ ไก่", "cs") == ["น้ำ", "ไก่"]
    assert characters("น้ำ ไก่", "th") == "น้ำไก่"
    assert characters("a b", "cs") == "a b"
    row = score("កខគឃ", "កខគង", "km")
    assert (row["words"], row["word_errors"], row["characters"], row["character_errors"]) == (4, 1, 4, 1)
    assert score("กข คง", "กขคง", "th")["character_errors"] == 0
    assert WITHOUT_SPACES > SPLIT_BY_BASIC


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Příliš, ŽLUŤOUČKÝ kůň! [smích] (ha)", "cs", "příliš žluťoučký kůň"),
        ("L'àvia és-hi: col·legi.", "ca", "l àvia és hi col legi"),
        ("மேசை மீது", "ta", "ம ச ம த"),
        ("สวัสดี", "th", "ส ว ส ด"),
        ("ភាសាខ្មែរ", "km", "ភ ស ខ ម រ"),
        ("こんにちは。", "ja", "こ ん に ち は"),
        ("  ...  ", "cs", ""),
    ],
)
def test_basic_is_whispers_own(text, language, expected):
    assert basic(text, language) == expected


def test_both_and_the_raw_text_are_counted_side_by_side():
    row = score("மேசை மீது!", "மேசை மேது", "ta")
    assert (row["words"], row["word_errors"], row["characters"], row["character_errors"]) == (2, 1, 9, 1)
    assert (row["basic_words"], row["basic_word_errors"]) == (4, 0)  # blind to the vowel
    assert (row["raw_words"], row["raw_word_errors"]) == (2, 1)
    found = totals([row])
    assert (found["wer"], found["basic_wer"], found["raw_wer"]) == (0.5, 0.0, 0.5)


def test_a_rate_without_anything_to_count_is_none():
    row = score("၏", "၏", "my")
    assert (row["words"], row["basic_words"]) == (1, 0)
    found = totals([row])
    assert (found["wer"], found["basic_wer"], found["basic_cer"], found["raw_wer"]) == (0, None, None, 0)


def test_a_row_is_cheap():
    text = "Příliš žluťoučký kůň úpěl ďábelské ódy, a co to tam je? " * 4
    normalise(text, "cs")
    started = time.process_time()
    for _ in range(200):
        normalise(text, "cs")
    assert time.process_time() - started < 1
    deep = "(" * 2000 + ")" * 2000
    started = time.process_time()
    assert normalise(deep, "cs") == ""
    assert time.process_time() - started < 3
