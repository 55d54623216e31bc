"""Tables as programs, spreadsheets and releases write them: each is read as it was meant, or refused with its line."""

import csv
import io
import json

import pytest

from cache.errors import PipelineError
from stages.prepare.corpora import common_voice, manifest
from stages.prepare.corpora.common_voice import CommonVoiceSettings
from stages.prepare.corpora.manifest import ManifestSettings
from stages.prepare.corpora.tables import TAB, read_table

# Openings, closings, doubled, alone, nothing but quotes.
QUOTES = [
    '"Ola", dixo ela.',
    'Leu "Follas novas" onte.',
    "Sen comiñas.",
    'Ela contestou: "vou"',
    '""',
    '5" de alto',
    "",
]


def written(rows, delimiter, quoting=csv.QUOTE_MINIMAL):
    """By Python's csv, as pandas writes."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=quoting).writerows(rows)
    return text.getvalue()


def texts(path, content, delimiters=TAB):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row["text"] for row in read_table(path, delimiters, ["path", "text"]).rows]


def rows_of(values):
    return [["path", "text", "split"], *([f"a{i}.wav", value, "train"] for i, value in enumerate(values))]


@pytest.mark.parametrize("delimiter", [TAB, ",", ";"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_what_a_writer_of_csv_quotes_is_read_as_it_was(tmp_path, delimiter, quoting):
    values = [*QUOTES, "with, comma; and\ttab", "two\nlines", '"', "12"]
    assert texts(tmp_path / "t", written(rows_of(values), delimiter, quoting), f"{TAB},;") == values


@pytest.mark.parametrize(
    "values",
    [
        QUOTES,
        [
            "Bo día.",
            '"Boas noites, dixo ela.',
            "Chove.",
            'Ela contestou: vou"',
            "Adeus.",
        ],  # one opens, a later one closes
        ['"Boas noites."', "Bo día."],  # needless for a writer of CSV: the sentence's own
        ['"', '"a'],
        ['"a" e "b"', '"'],
    ],
)
def test_tabs_alone_part_what_nobody_has_quoted(tmp_path, values):
    raw = "".join("\t".join(row) + "\n" for row in rows_of(values))
    assert texts(tmp_path / "t", raw) == values
    assert texts(tmp_path / "t", raw.replace("\n", "\r\n")) == values


def test_neither_way_to_read_it_names_the_line(tmp_path):
    good = "path\ttext\tsplit\na.wav\tOla.\ttrain\n"
    with pytest.raises(PipelineError, match=r"t, line 3: 2 columns, expected 3$"):
        texts(tmp_path / "t", good + "b.wav\tOla\nela.\ttrain\n")
    # A quote that swallows whole rows is no field over several lines, even where another row is broken.
    broken = good + 'b.wav\t"Boas.\ttrain\nc.wav\tChove.\ttrain\nd.wav\nvou"\ttrain\n'
    with pytest.raises(
        PipelineError, match=r"line 5: 1 columns, expected 3; with quotes read as in CSV, line 3: a quote"
    ):
        texts(tmp_path / "t", broken)
    swallowed = 'path,text\na.wav,"Boas.\nb.wav,Chove.\nc.wav,vou"\nd.wav,Adeus.\n'
    with pytest.raises(
        PipelineError, match=r"line 2: a quote opens a field that is closed at line 4 only.*double each"
    ):
        texts(tmp_path / "t", swallowed, ",;")
    for text in ('path,text\na.wav,"Boas\n', 'path,text\na.wav,Ola.\nb.wav,"Boas" noites.\n'):
        with pytest.raises(PipelineError, match=r"t, line [23]: .*put the field in quotes and double each quote in it"):
            texts(tmp_path / "t", text, ",")


def test_spreadsheets(tmp_path):
    """Semicolons, UTF-16, rows and columns of nothing, an index without a name."""
    expected, place = ["Camión 0, mañá.", "Camión 1, mañá."], tmp_path / "t"
    rows = rows_of(expected)
    semicolons = written(rows, ";")
    for content in (
        semicolons.encode("utf-8-sig"),
        semicolons.encode("utf-16"),
        semicolons.replace("\n", "\r").encode(),
    ):
        assert texts(place, content, ",;\t") == expected
    assert texts(place, written(rows, TAB).encode("utf-16"), ",;\t") == expected
    assert texts(place, written(rows, ",") + ",,\r\n , ,\r\n,,,,,\r\n\r\n", ",;") == expected
    assert texts(place, written([[*row, "", ""] for row in rows], ","), ",;") == expected
    indexed = [["", *rows[0]], *([i, *row] for i, row in enumerate(rows[1:]))]
    assert texts(place, written(indexed, ",", csv.QUOTE_NONNUMERIC), ",;") == expected


def test_what_is_not_utf8_is_said_with_the_way_out(tmp_path):
    with pytest.raises(PipelineError, match=r"t, line 2: not UTF-8 text.*Windows-1252.*convert it to UTF-8"):
        texts(tmp_path / "t", "path,text\na,mañá\n".encode("cp1252"), ",")
    with pytest.raises(PipelineError, match=r"t: holds zero bytes, as UTF-16 without a mark"):
        texts(tmp_path / "t", "path,text\na,b\n".encode("utf-16-le"), ",")


def test_two_columns_of_one_name_and_a_field_without_end(tmp_path):
    with pytest.raises(PipelineError, match="two columns are called text"):
        texts(tmp_path / "t", "path,text,text\na,b,c\n", ",")
    with pytest.raises(PipelineError, match=r"line 2: field larger than field limit"):
        texts(tmp_path / "t", f'path,text\na,"{"x" * 200_000}"\n', ",")


# Manifests


def read_manifest(path, text, **options):
    path.write_text(text, encoding="utf-8")
    corpus = manifest.read(ManifestSettings(corpus="manifest", path=path, **options), "gl")
    return [item for items in corpus.splits.values() for item in items]


def test_a_manifest_with_another_tool_s_columns(tmp_path):
    names = {"path": "audio_filepath", "text": "transcription", "speaker": "client"}
    table = "audio_filepath,duration,transcription,client\na.wav,1.5,Ola.,7\n"
    line = {"audio_filepath": "a.wav", "duration": 1.5, "transcription": "Ola.", "client": 7}
    for name, text in (("m.csv", table), ("m.tsv", table.replace(",", "\t")), ("m.json", json.dumps(line))):
        (item,) = read_manifest(tmp_path / name, text, columns=names)
        assert (item.audio, item.text, item.speaker) == (tmp_path / "a.wav", "Ola.", "7")
        with pytest.raises(
            PipelineError, match=r"no column path, text; it has audio_filepath, dur.*: name them by --col"
        ):
            read_manifest(tmp_path / name, text)
        with pytest.raises(PipelineError, match="no column who; it has audio_filepath"):
            read_manifest(tmp_path / name, text, columns={**names, "speaker": "who"})


def test_numbers_as_speakers_and_ids(tmp_path):
    lines = [{"path": "a.wav", "text": "Ola.", "speaker": 3, "id": 17}, {"path": "b.wav", "text": "Boas.", "id": "x"}]
    first, second = read_manifest(tmp_path / "m.jsonl", "\n".join(map(json.dumps, lines)))
    assert (first.speaker, first.id, second.speaker, second.id) == ("3", "17", "", "x")
    for wrong, said in (
        (True, "speaker is True"),
        ([1], r"speaker is \[1\]"),
        ("\udce9", "speaker is not valid Unicode"),
    ):
        with pytest.raises(PipelineError, match=f"line 1: {said}"):
            read_manifest(tmp_path / "m.jsonl", json.dumps({"path": "a", "text": "b", "speaker": wrong}))


@pytest.mark.parametrize("line", ["[" * 100_000, '{"id": ' + "9" * 5000 + "}"])
def test_json_that_python_refuses_is_a_line(tmp_path, line):
    with pytest.raises(PipelineError, match=r"m\.jsonl, line 1: not valid JSON"):
        read_manifest(tmp_path / "m.jsonl", line)


# Common Voice

HEADER = ["client_id", "path", "sentence", "up_votes", "down_votes", "locale"]


def write_release(folder, splits, doubled=False, audio="clips"):
    """doubled: as the releases do, not quoted and yet each quote twice."""
    (folder / audio).mkdir(parents=True)
    for name, sentences in splits.items():
        rows = [[f"s{name}{i}", f"{name}{i}.mp3", text, 2, 0, "gl"] for i, text in enumerate(sentences)]
        if doubled:
            lines = ["\t".join(map(str, row)).replace('"', '""') + "\n" for row in [HEADER, *rows]]
        (folder / f"{name}.tsv").write_text("".join(lines) if doubled else written([HEADER, *rows], TAB))
    return folder


def read_cv(path, language="gl", **options):
    return common_voice.read(CommonVoiceSettings(corpus="common-voice", path=path, **options), language)


def test_a_release_written_again_by_pandas_has_the_same_sentences(tmp_path):
    sentences = {"train": QUOTES, "dev": ['"Si."'], "test": ["Non."]}
    for doubled in (False, True):
        corpus = read_cv(write_release(tmp_path / str(doubled), sentences, doubled))
        assert [item.text for item in corpus.splits["train"]] == QUOTES
        assert [item.text for item in corpus.splits["validation"]] == ['"Si."']


def test_a_broken_row_of_a_release_is_named(tmp_path):
    write_release(tmp_path, {"train": ["Ola."], "dev": ["Si."], "test": ["Non."]})
    with (tmp_path / "train.tsv").open("a") as file:
        file.write("s\tx.mp3\tDúas\tmetades.\t2\t0\tgl\n")
    with pytest.raises(PipelineError, match=r"train\.tsv, line 3: 7 columns, expected 6"):
        read_cv(tmp_path)


def many(count, word="Frase"):
    return [f"{word} {number}." for number in range(count)]


@pytest.mark.parametrize("lacking", ["header only", "missing"])
def test_a_release_without_validation(tmp_path, lacking):
    write_release(tmp_path, {"train": many(40), "dev": [], "test": many(5, "Proba")})
    if lacking == "missing":
        (tmp_path / "dev.tsv").unlink()
    corpus = read_cv(tmp_path)
    assert {split: len(items) for split, items in corpus.splits.items()} == {"train": 38, "validation": 2, "test": 5}
    assert "no validation split: validation (2 utterances) drawn from training" in " ".join(corpus.notes)
    assert read_cv(tmp_path, validation_fraction=0).splits.keys() == {"train", "test"}


def test_a_release_of_validated_utterances_alone(tmp_path):
    write_release(tmp_path, {"validated": many(60), "invalidated": many(3)})
    corpus = read_cv(tmp_path)
    assert {split: len(items) for split, items in corpus.splits.items()} == {"train": 51, "validation": 3, "test": 6}
    assert "training is the 60 of" in corpus.notes[0] and "validated.tsv" in corpus.notes[0]


def test_validated_stands_in_for_training_without_the_other_splits(tmp_path):
    write_release(tmp_path, {"train": [], "dev": [], "test": many(4), "validated": many(40)})
    rows = (tmp_path / "validated.tsv").read_text().replace("validated0.mp3", "test0.mp3")
    (tmp_path / "validated.tsv").write_text(rows)
    corpus = read_cv(tmp_path)
    assert len(corpus.splits["train"]) + len(corpus.splits["validation"]) == 39 and len(corpus.splits["test"]) == 4
    with pytest.raises(PipelineError, match=r"no utterances in train\.tsv, dev\.tsv, test\.tsv or validated\.tsv"):
        read_cv(write_release(tmp_path / "none", {"train": [], "test": []}))


def test_one_of_several_variants_is_chosen_by_the_user(tmp_path):
    for code in ("zh-CN", "zh-HK"):
        write_release(tmp_path / code, {"train": many(3), "dev": many(1), "test": many(1)})
    with pytest.raises(PipelineError, match=r"zh-CN, zh-HK are all 'zh': let `path` name one of them"):
        read_cv(tmp_path, "zh")
    assert read_cv(tmp_path / "zh-HK", "zh").splits["train"][0].audio.is_relative_to(tmp_path / "zh-HK")
    (tmp_path / "zh-CN").rename(tmp_path / "sv-SE")
    assert read_cv(tmp_path, "sv").facts["folder"] == "sv-SE"


SPONTANEOUS = ["client_id", "audio_id", "audio_file", "duration_ms", "prompt", "transcription", "votes", "split"]


def write_spontaneous(folder, splits, language="gl"):
    (folder / "audios").mkdir(parents=True, exist_ok=True)
    rows = [[f"k{i}", i, f"s{i}.mp3", 1000, "Que?", f"Fago pan {i}.", 1, split] for i, split in enumerate(splits)]
    (folder / f"ss-corpus-{language}.tsv").write_text(written([SPONTANEOUS, *rows], TAB))
    (folder / f"ss-reported-audios-{language}.tsv").write_text("x\ty\n")


def test_spontaneous_speech(tmp_path):
    write_spontaneous(tmp_path / "gl", ["train", "train", "dev", "test", ""])
    corpus = read_cv(tmp_path)
    assert {split: len(items) for split, items in corpus.splits.items()} == {"train": 2, "validation": 1, "test": 1}
    item = corpus.splits["test"][0]
    assert (item.id, item.text, item.speaker, item.source) == ("s3", "Fago pan 3.", "k3", "audios/s3.mp3")
    assert item.audio == tmp_path / "gl/audios/s3.mp3" and corpus.not_selected["train"] == 1
    write_spontaneous(tmp_path / "none", [""] * 40)
    assert {split: len(items) for split, items in read_cv(tmp_path / "none").splits.items()} == {
        "train": 34, "validation": 2, "test": 4,
    }  # fmt: skip


def test_spontaneous_speech_that_is_not_right(tmp_path):
    write_spontaneous(tmp_path, ["train", "eval"])
    with pytest.raises(
        PipelineError, match=r"ss-corpus-gl\.tsv: split of s1\.mp3 is 'eval', expected train, dev, test"
    ):
        read_cv(tmp_path)
    with pytest.raises(PipelineError, match="subset '3k' is by votes"):
        read_cv(tmp_path, subset="3k")
    for code in ("ca", "es"):
        write_spontaneous(tmp_path, ["train"], code)
    with pytest.raises(PipelineError, match=r"ss-corpus-ca\.tsv, .*expected the table of one language"):
        read_cv(tmp_path, "pt")
    (tmp_path / "audios").rmdir()
    with pytest.raises(PipelineError, match="audios/ missing"):
        read_cv(tmp_path)
