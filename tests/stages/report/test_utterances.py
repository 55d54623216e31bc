"""What the page of the utterances is made of: marked words, data files and recordings, from planted texts."""

import json
import re
from html.parser import HTMLParser

import pytest

from cache.errors import PipelineError
from cache.records import UTTERANCE_FIELDS
from stages.report.marks import Mark, marks

REFERENCE = "Jedna, dva tři čtyři pět."
# said: what each mark must be, and the errors
PLANTED = {
    "jedna dva tři čtyři pět": ["jedna dva tři čtyři pět"],
    "Jedna dvě tři, čtyři pět!": ["jedna", ["s", "dvě", "dva"], "tři čtyři pět"],
    "jedna tři čtyři pět": ["jedna", ["d", "", "dva"], "tři čtyři pět"],
    "no jedna dva tři čtyři pět šest": [["i", "no", ""], "jedna dva tři čtyři pět", ["i", "šest", ""]],
    "": [["d", "", word] for word in ("jedna", "dva", "tři", "čtyři", "pět")],
}
HOSTILE = [
    "</script><script>document.title='run'</script>",
    "<img src=x onerror=\"document.title='run'\">",
    "\"'`${document.title='run'}`'\" \\\" ]]> --> {{ 7*7 }}",
    "\u202eobrácené\u202c \u2066slovo\u2069 \u200f\u2028nový\u2029řádek",
    "👩\u200d👩\u200d👧 emoji 🇨🇿 a\u0301\u0301\u0301",
    "javascript:alert(1) %2e%2e/ ../../etc",
    "na " * 2_000,
    "a" * 5_000,
]


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found = set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.add(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]


def data(tree, name="cs-fish"):
    """The index, and the rows of all files, in order."""
    folder = tree.out / "utterances" / name
    index = parsed((folder / "index.js").read_text("utf-8"), "explorer.takeIndex(")
    files = -(-len(index["utterances"]) // index["rows"])
    parts = [parsed((folder / f"rows-{n}.js").read_text("utf-8"), f"explorer.takeRows({n}, ") for n in range(files)]
    assert len(list(folder.iterdir())) == files + 1
    return index, [row for part in parts for row in part]


def parsed(script, call):
    assert script.startswith(call) and script.endswith(");\n")
    return json.loads(script.removeprefix(call).removesuffix(");\n"))


def test_words_are_marked_as_they_are_scored(tree):
    tree.system("base", None, texts=[(REFERENCE, text) for text in PLANTED])
    tree.write()
    index, rows = data(tree)
    found = {said(row["heard"][0]): row["heard"][0]["marks"] for row in rows}
    assert sorted(map(str, found.values())) == sorted(map(str, PLANTED.values()))
    for (_, _, words, [(errors, *kinds)]), row in [
        ((*u[:3], [s[:4] for s in u[3]]), row) for u, row in zip(index["utterances"], rows, strict=True)
    ]:
        counted = [sum(mark[0] == kind for mark in row["heard"][0]["marks"] if len(mark[0]) == 1) for kind in "sdi"]
        assert (kinds, errors, words) == (counted, sum(counted), 5)


def said(heard):
    return " ".join(mark if isinstance(mark, str) else mark[1] for mark in heard["marks"])


def test_in_a_script_without_spaces_letters_are_marked():
    assert marks("กขคง", "กขถง", "th") == [
        Mark("equal", "กข", "กข"),
        Mark("substitute", "ถ", "ค"),
        Mark("equal", "ง", "ง"),
    ]


def test_the_best_student_is_compared_with_the_base_and_its_gains_come_first(tree):
    tree.system("base", [1, 3, 5, 0])
    tree.system("lora", [2, 2, 1, 0])
    tree.system("clsr", [4, 4, 4, 4])
    tree.write()
    index, rows = data(tree)
    assert [index["systems"][system] for system in index["compared"]] == ["whisper-base", "LoRA"]
    assert [utterance[0] for utterance in index["utterances"]] == ["u02", "u01", "u03", "u00"]
    assert index["utterances"][2][3][0][5] == index["utterances"][2][3][1][5]  # u03: both are right, the same text
    assert index["utterances"][0][3][0][5] != index["utterances"][0][3][1][5]
    assert [len(row["heard"]) for row in rows] == [3] * 4


def test_many_utterances_are_many_files_and_the_pages_stay_as_small(tree):
    tree.system("base", [1] * 10)
    tree.write()
    small = [len((tree.out / page).read_bytes()) for page in ("index.html", "utterances/cs-fish.html")]
    tree.system("base", [1] * 250)
    tree.write()
    index, rows = data(tree)
    assert (len(rows), index["rows"]) == (250, 100)
    large = [len((tree.out / page).read_bytes()) for page in ("index.html", "utterances/cs-fish.html")]
    assert max(b - a for a, b in zip(small, large, strict=True)) < 20


def test_hostile_texts_are_data(tree):
    texts = [(text, other) for text in [*HOSTILE, "slovo"] for other in HOSTILE]
    tree.system("base", None, texts=texts)
    tree.system("clsr", None, texts=[(reference, "slovo") for reference, _ in texts])
    tree.write()
    _, rows = data(tree)
    assert {row["reference"] for row in rows} == {text for text, _ in texts}
    html = (tree.out / "index.html").read_text("utf-8")
    page = (tree.out / "utterances/cs-fish.html").read_text("utf-8")
    assert not Tags(html).found & {"script", "img"}
    assert "img" not in Tags(page).found
    assert re.findall(r"<script[^>]*>", page) == ['<script src="explorer.js">', '<script src="cs-fish/index.js">']
    for script in (tree.out / "utterances/cs-fish").iterdir():
        assert script.read_text("utf-8").count("\n") == 1  # no text ends a line, and so no statement


def test_a_long_loop_is_cut_and_counted(tree):
    tree.system("base", None, texts=[("ano", "na " * 2_000)])
    tree.write()
    _, [row] = data(tree)
    assert len(row["heard"][0]["marks"]) == 150
    assert row["heard"][0]["more"] == 2_000 - 150


def test_recordings_are_those_of_the_shards(tree):
    records = tree.recordings(["jedna dva tři čtyři pět"] * 6, speaker="Alena")
    tree.system("base", [0, 1, 2, 3, 4, 5])
    tree.write()
    index, rows = data(tree)
    assert {utterance[1] for utterance in index["utterances"]} == {"Alena"}
    audio = {
        utterance[0]: (tree.out / "audio/cs-fish" / row["audio"]).read_bytes()
        for utterance, row in zip(index["utterances"], rows, strict=True)
    }
    assert audio == {record["id"]: record["audio"] for record in records}
    assert set(records[0]) == set(UTTERANCE_FIELDS)


def test_with_little_room_recordings_are_of_utterances_that_systems_differ_on(tree):
    tree.recordings(["jedna dva tři čtyři pět"] * 6, seconds=1.0)
    tree.system("base", [0, 0, 5, 0, 3, 0])
    tree.system("clsr", [0, 1, 0, 0, 0, 0])
    tree.write(audio_minutes=2.5 / 60)
    index, rows = data(tree)
    heard = {u[0] for u, row in zip(index["utterances"], rows, strict=True) if "audio" in row}
    assert heard == {"u02", "u04"}
    assert len(list((tree.out / "audio/cs-fish").iterdir())) == 2
    for page in ("index.html", "utterances/cs-fish.html", "report.md"):
        text = (tree.out / page).read_text("utf-8").replace("\\", "")
        assert "4 of 6 recordings are left out, where systems differ least: report.audio_minutes is 0.0416" in text
    tree.write(audio_minutes=0)
    assert not (tree.out / "audio").exists()
    assert "<audio" not in (tree.out / "index.html").read_text("utf-8")


def test_a_recording_whose_transcript_has_changed_is_left_out_and_said(tree):
    tree.recordings(["jedna dva tři čtyři pět"] * 3 + ["jiná věta"])
    tree.system("base", [1] * 5)
    tree.write()
    index, rows = data(tree)
    assert [u[0] for u, row in zip(index["utterances"], rows, strict=True) if "audio" not in row] == ["u03", "u04"]
    html = (tree.out / "utterances/cs-fish.html").read_text("utf-8")
    assert "2 of 5 utterances have no recording here" in html


def test_a_report_without_shards_says_so(tree):
    tree.system("base", [1] * 5)
    tree.write()
    assert "holds no shards: the recordings are left out." in (tree.out / "index.html").read_text("utf-8")


@pytest.mark.parametrize(("corpus", "folder"), [("radio", "test@radio"), ("validation", "validation")])
def test_recordings_of_a_further_test_and_of_validation_are_their_own(tree, corpus, folder):
    tree.recordings(["jedna dva tři čtyři pět"] * 2)
    other = tree.recordings(["jedna dva tři čtyři pět"] * 2, split=folder, seconds=0.7)
    for further in (False, True):
        tree.system("base", [1, 2], corpus=corpus if further else "fish", further=further)
    tree.write()
    _, rows = data(tree, f"cs-{corpus}")
    found = {(tree.out / f"audio/cs-{corpus}" / row["audio"]).read_bytes() for row in rows}
    assert found == {record["audio"] for record in other}


def test_pages_of_tests_that_are_gone_go(tree):
    tree.recordings(["jedna dva tři čtyři pět"] * 2, split="test@radio")
    path = tree.system("base", [1, 2], corpus="radio", further=True)
    tree.system("base", [1, 2])
    tree.write()
    assert (tree.out / "utterances/cs-radio.html").exists() and (tree.out / "audio/cs-radio").exists()
    path.unlink()
    tree.write()
    assert {path.name for path in (tree.out / "utterances").iterdir()} == {"cs-fish.html", "cs-fish", "explorer.js"}
    assert not (tree.out / "audio").exists()


def test_two_tests_of_one_name_are_refused(tree):
    tree.system("base", [1, 2], corpus="a radio", further=True)
    tree.system("base", [1, 2], corpus="a-radio")
    with pytest.raises(PipelineError, match="'a-radio' and 'a radio' of cs would both be called cs-a-radio"):
        tree.write()


def test_the_use_of_the_expert_stands_by_the_words_as_written(tree):
    tree.system("base", None, texts=[("Ano, ne.", "Ano ne.")] * 2)
    tree.system("clsr", None, texts=[("Ano, ne.", "Ano, ne.")] * 2, rows=[{"expert_words": [40, 100]}, {}])
    tree.write()
    _, rows = data(tree)
    assert rows[0]["heard"][1]["expert"] == [["Ano,", 40], ["ne.", 100]]
    assert "expert" not in rows[1]["heard"][1] and "expert" not in rows[0]["heard"][0]
