import json
import sys
from dataclasses import replace

import pyarrow as pa
import pytest
from prepare_makers import RATE, noise, record
from pyarrow import parquet
from pydantic import TypeAdapter, ValidationError

from cache.errors import PipelineError
from stages.prepare.corpora import common_voice, dataset, fleurs, manifest, read_corpus
from stages.prepare.corpora import rows as rows_of
from stages.prepare.corpora.common_voice import CommonVoiceSettings
from stages.prepare.corpora.dataset import DatasetSettings
from stages.prepare.corpora.fleurs import FleursSettings
from stages.prepare.corpora.manifest import ManifestSettings
from stages.prepare.items import SPLITS, Item, split_by_group, transcripts_sha256, unique_ids
from stages.prepare.settings import CorpusSettings
from stages.shared import audio

# Common Voice


def write_tsv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *rows] if header else rows
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")


CV_HEADER = ["client_id", "path", "sentence_id", "sentence", "up_votes", "down_votes", "age", "locale"]


def cv_row(name, sentence="Text.", up=2, down=0, client="c1"):
    return [client, name, "s", sentence, up, down, "", "ca"]


@pytest.fixture
def cv(tmp_path):
    (tmp_path / "ca/clips").mkdir(parents=True)
    train = [
        cv_row(f"t{i}.mp3", up=up, down=down) for i, (up, down) in enumerate([(2, 0), (3, 1), (3, 0), (5, 4), (2, 0)])
    ]
    write_tsv(tmp_path / "ca/train.tsv", CV_HEADER, train)
    write_tsv(
        tmp_path / "ca/dev.tsv", CV_HEADER, [cv_row("d0.mp3", up=2), cv_row("d1.mp3", up=3), cv_row("d2.mp3", up=3)]
    )
    write_tsv(
        tmp_path / "ca/test.tsv", CV_HEADER, [cv_row("e0", '"Sí, va dir ""prou""', up=""), cv_row("e1.wav", up=0)]
    )
    return tmp_path


def read_cv(path, **options):
    return common_voice.read(CommonVoiceSettings(corpus="common-voice", path=path, **options), "ca")


def test_common_voice_subset_is_the_most_up_voted_then_least_down_voted(cv, monkeypatch):
    monkeypatch.setitem(common_voice.SUBSETS, "3k", 4)
    corpus = read_cv(cv, subset="3k", max_validation=2)
    assert [item.id for item in corpus.splits["train"]] == ["t3", "t2", "t1", "t0"]
    assert [item.id for item in corpus.splits["validation"]] == ["d1", "d2"]
    assert [item.id for item in corpus.splits["test"]] == ["e0", "e1"]
    assert corpus.not_selected == {"train": 1, "validation": 1, "test": 0}
    whole = read_cv(cv / "ca")
    assert [item.id for item in whole.splits["train"]] == ["t0", "t1", "t2", "t3", "t4"]
    assert [item.id for item in whole.splits["validation"]] == ["d0", "d1", "d2"]


def test_common_voice_subsets_have_the_papers_sizes():
    assert common_voice.SUBSETS == {None: None, "3k": 3000, "10k": 10_000, "28k": 28_000}


def test_common_voice_quotes_and_names(cv):
    first, second = read_cv(cv).splits["test"]
    assert first.text == '"Sí, va dir "prou"'
    assert first.audio == cv / "ca/clips/e0.mp3" and first.source == "clips/e0.mp3"
    assert second.audio == cv / "ca/clips/e1.wav"
    assert (first.speaker, first.group) == ("c1", "c1")


def test_common_voice_code_with_a_country(cv):
    (cv / "ca").rename(cv / "sv-SE")
    assert common_voice.read(CommonVoiceSettings(corpus="common-voice", path=cv), "sv").splits.keys() == {
        "train",
        "validation",
        "test",
    }


def test_common_voice_that_is_not_whole(cv):
    with pytest.raises(PipelineError, match="nowhere: no Common Voice release here, expected train.tsv"):
        read_cv(cv / "nowhere")
    (cv / "ca/clips").rmdir()
    with pytest.raises(PipelineError, match=r"ca: clips/ missing"):
        read_cv(cv)


def test_common_voice_table_that_is_not_right(cv):
    write_tsv(cv / "ca/dev.tsv", ["client_id", "path", "text"], [["c", "a.mp3", "x"]])
    with pytest.raises(PipelineError, match=r"dev\.tsv: no column sentence, up_votes, down_votes; it has client_id"):
        read_cv(cv)
    write_tsv(cv / "ca/dev.tsv", CV_HEADER, [cv_row("a.mp3"), ["c", "b.mp3", "x"]])
    with pytest.raises(PipelineError, match=r"dev\.tsv, line 3: 3 columns, expected 8"):
        read_cv(cv)
    write_tsv(cv / "ca/dev.tsv", CV_HEADER, [cv_row("a.mp3", up="many")])
    with pytest.raises(PipelineError, match=r"up_votes of a\.mp3 is 'many'"):
        read_cv(cv)


# FLEURS


@pytest.fixture
def fleurs_release(tmp_path):
    folder = tmp_path / "ca_es"
    for split, rows in {"train": 2, "dev": 1, "test": 3}.items():
        lines = [
            [7 + i // 2, f"{split}{i}.wav", f'El "Nom" {i}.', f"el nom {i}", "e l |", 16000, "FEMALE"]
            for i in range(rows)
        ]
        write_tsv(folder / f"{split}.tsv", None, lines)
    (folder / "audio/train").mkdir(parents=True)
    (folder / "audio/test").mkdir()
    (folder / "dev").mkdir()
    return folder


def read_fleurs(path, language="ca", **options):
    return fleurs.read(FleursSettings(corpus="fleurs", path=path, **options), language)


def test_fleurs_release(fleurs_release):
    corpus = read_fleurs(fleurs_release.parent)
    assert {split: len(items) for split, items in corpus.splits.items()} == {"train": 2, "validation": 1, "test": 3}
    item = corpus.splits["test"][2]
    assert (item.id, item.text, item.speaker, item.group) == ("test2", 'El "Nom" 2.', "", "8")
    assert item.audio == fleurs_release / "audio/test/test2.wav" and item.source == "audio/test/test2.wav"
    assert corpus.splits["validation"][0].audio == fleurs_release / "dev/dev0.wav"
    assert read_fleurs(fleurs_release, text="transcription").splits["test"][0].text == "el nom 0"


def test_fleurs_release_that_is_not_extracted(fleurs_release):
    (fleurs_release / "audio/test").rmdir()
    (fleurs_release / "audio/test.tar.gz").touch()
    with pytest.raises(PipelineError, match=r"audio/test: no such folder.*extract .*test\.tar\.gz there"):
        read_fleurs(fleurs_release)
    with pytest.raises(PipelineError, match=r"no FLEURS release here, expected test\.tsv, or th_th/test\.tsv"):
        read_fleurs(fleurs_release.parent, "th")
    with pytest.raises(PipelineError, match="FLEURS has no language 'xx'"):
        read_fleurs(fleurs_release, "xx")


def test_fleurs_knows_all_its_languages_by_code():
    assert len(set(fleurs.CONFIGS.values())) == 102
    wanted = {"ca": "ca_es", "cs": "cs_cz", "gl": "gl_es", "hu": "hu_hu", "pl": "pl_pl", "ta": "ta_in", "th": "th_th"}
    wanted |= {"uk": "uk_ua", "zh": "cmn_hans_cn", "yue": "yue_hant_hk", "no": "nb_no", "jw": "jv_id", "tl": "fil_ph"}
    assert {code: fleurs.CONFIGS[code] for code in wanted} == wanted


# The datasets library


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    import datasets

    datasets.disable_progress_bars()
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield datasets
    patch.undo()


def wav_bytes(folder, number):
    return record(folder / f"made/{number}.wav", noise(0.3 + number / 10, number)).read_bytes()


def hub_like(datasets, folder, rows, text="text", **columns):
    """As on the hub: an Audio feature whose bytes are in the table, one text missing."""
    sounds = [{"bytes": wav_bytes(folder, number), "path": f"{number}.wav"} for number in range(rows)]
    texts = [None if number == 1 else f"Veta {number}" for number in range(rows)]
    plain = datasets.Dataset.from_dict({"audio": sounds, text: texts, **columns})
    return plain.cast_column("audio", datasets.Audio(decode=False))


def read_dataset(path, **options):
    return dataset.read(DatasetSettings(corpus="dataset", path=str(path), **options), "cs")


def test_dataset_saved_to_disk(library, tmp_path, monkeypatch):
    monkeypatch.setattr(rows_of, "BATCH", 2)
    rows = hub_like(library, tmp_path, 3, who=["a", "b", None]).cast_column(
        "audio", library.Audio(sampling_rate=16_000)
    )
    library.DatasetDict({"train": rows, "dev": rows.select([2, 0])}).save_to_disk(tmp_path / "saved")
    corpus = read_dataset(tmp_path / "saved", speaker_column="who")
    assert corpus.splits.keys() == {"train", "validation"}
    first, second, third = corpus.splits["train"]
    assert first.audio() == wav_bytes(tmp_path, 0) and first.version
    assert (first.id, first.text, first.speaker, first.group) == ("train-0000000", "Veta 0", "a", "a")
    assert second.text == "" and third.group == third.id
    assert first.source == f"{tmp_path}/saved/train/0/0.wav"
    assert [item.audio() for item in corpus.splits["validation"]] == [wav_bytes(tmp_path, 2), wav_bytes(tmp_path, 0)]


def test_dataset_folder_of_parquet(library, tmp_path):
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split in ("train", "test"):
        hub_like(library, tmp_path, 2, "sentence").to_parquet(folder / f"{split}-00000-of-00001.parquet")
    corpus = read_dataset(folder, text_column="sentence", splits={"test": "test"})
    assert corpus.splits.keys() == {"test"}
    assert [len(audio.decode(item.audio()).samples) for item in corpus.splits["test"]] == [
        round(0.3 * RATE),
        round(0.4 * RATE),
    ]
    with pytest.raises(PipelineError, match="no column text; it has audio, sentence"):
        read_dataset(folder)
    with pytest.raises(PipelineError, match="has the splits train, test, expected dev: set `splits`"):
        read_dataset(folder, splits={"validation": "dev"})


def test_dataset_of_paths_and_of_bare_bytes(library, tmp_path):
    path = record(tmp_path / "a.wav", noise(1, 0))
    library.Dataset.from_dict({"audio": [str(path)], "text": ["x"]}).save_to_disk(tmp_path / "paths")
    library.Dataset.from_dict({"audio": [path.read_bytes()], "text": ["x"]}).save_to_disk(tmp_path / "bytes")
    library.Dataset.from_dict({"audio": [3], "text": ["x"]}).save_to_disk(tmp_path / "numbers")
    assert read_dataset(tmp_path / "paths").splits["train"][0].audio == path
    assert read_dataset(tmp_path / "bytes").splits["train"][0].audio() == path.read_bytes()
    with pytest.raises(PipelineError, match="column 'audio' is int64, expected audio"):
        read_dataset(tmp_path / "numbers")


def test_dataset_of_paths_seen_from_its_folder(library, tmp_path, monkeypatch):
    """Wherever the command runs; as bytes that are not there beside a path, and as a plain path."""
    record(tmp_path / "ds/audio/a.wav", noise(1, 0))
    for name, value in (("struct", {"bytes": None, "path": "audio/a.wav"}), ("plain", "audio\\a.WAV")):
        (tmp_path / f"ds/{name}").mkdir()
        (tmp_path / f"ds/{name}/audio").symlink_to(tmp_path / "ds/audio")
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if name == "struct" else pa.string()
        table = pa.table({"audio": pa.array([value], kind), "text": ["x"]})
        parquet.write_table(table, tmp_path / f"ds/{name}/test.parquet")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("struct", "plain"):
        (item,) = read_dataset(f"../ds/{name}").splits["test"]
        assert item.audio.samefile(tmp_path / "ds/audio/a.wav")


def test_dataset_of_training_alone(library, tmp_path):
    rows = hub_like(library, tmp_path, 20, "sentence")
    rows.to_parquet(tmp_path / "ds/train-00000-of-00001.parquet")
    corpus = read_dataset(tmp_path / "ds", text_column="sentence")
    assert {split: len(items) for split, items in corpus.splits.items()} == {"train": 17, "validation": 1, "test": 2}
    assert corpus.splits["test"][0].audio() and "drawn from training" in corpus.notes[0]


def test_dataset_that_cannot_be_loaded(library, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PipelineError, match="empty cannot be loaded: ") as caught:
        read_dataset(tmp_path / "empty")
    assert "\n" not in str(caught.value)


def test_dataset_that_only_torchcodec_could_turn_into_rows(library, tmp_path, monkeypatch):
    record(tmp_path / "sounds/train/a.wav", noise(1, 0))
    (tmp_path / "sounds/train/metadata.csv").write_text("file_name,text\na.wav,x\n")
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", None)
    with pytest.raises(
        PipelineError, match="torchcodec.*`--corpus manifest --path FOLDER/metadata.csv --columns path=file_name`"
    ):
        read_dataset(tmp_path / "sounds")


def test_fleurs_from_the_hub(library, tmp_path, monkeypatch):
    """With a folder laid out like the hub's Parquet branch in the hub's place."""
    rows = hub_like(library, tmp_path, 2, "raw_transcription", id=[11, 12], transcription=["a", "b"])
    for split in SPLITS:
        for config in ("cs_cz", "nl_nl"):
            (tmp_path / "fleurs" / config / split).mkdir(parents=True)
            rows.select([0] if config == "cs_cz" else [0, 1]).to_parquet(
                tmp_path / f"fleurs/{config}/{split}/0000.parquet"
            )
    monkeypatch.setattr(fleurs, "REPOSITORY", str(tmp_path / "fleurs"))
    corpus = fleurs.read(FleursSettings(corpus="fleurs"), "cs")
    assert {split: len(items) for split, items in corpus.splits.items()} == {"train": 1, "validation": 1, "test": 1}
    item = corpus.splits["test"][0]
    assert (item.text, item.group, item.audio()) == ("Veta 0", "11", wav_bytes(tmp_path, 0))
    for split in ("train", "validation"):
        (tmp_path / f"fleurs/cs_cz/{split}/0000.parquet").write_bytes(b"not even looked at")
    further = read_corpus(FleursSettings(corpus="fleurs"), "cs", ("test",))
    assert {split: len(items) for split, items in further.splits.items()} == {"test": 1}


# Manifests


def read_manifest(path, text=None, **options):
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return manifest.read(ManifestSettings(corpus="manifest", path=path, **options), "cs")


def test_manifest_csv_with_everything_that_csv_can_hold(tmp_path):
    text = '\ufefftext,path,split,speaker,id\r\n"Řekl ""ano"",\r\nšel",a.wav,train,petr,one\r\n'
    text += "Ne.,sub/b.wav,dev,,\r\nJo.,c.wav,Test,x,\r\n"
    corpus = read_manifest(tmp_path / "m.csv", text)
    (train,), (validation,), (test,) = (corpus.splits[split] for split in ("train", "validation", "test"))
    assert train == Item("one", tmp_path / "a.wav", 'Řekl "ano",\nšel', "petr", "petr", "a.wav")
    assert validation == Item("sub/b.wav", tmp_path / "sub/b.wav", "Ne.", "", "sub/b.wav", "sub/b.wav")
    assert test.id == "c.wav"


def test_manifest_tsv_and_jsonl_say_the_same(tmp_path):
    tsv = read_manifest(tmp_path / "m.tsv", "path\ttext\tsplit\na.wav\tJedna, dvě\tvalid\nb.wav\tTři\tvalidation\n")
    rows = [
        {"path": "a.wav", "text": "Jedna, dvě", "split": "valid", "more": 1},
        {"path": "b.wav", "text": "Tři", "split": "dev"},
    ]
    jsonl = read_manifest(tmp_path / "m.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    assert tsv == jsonl
    assert [item.text for item in tsv.splits["validation"]] == ["Jedna, dvě", "Tři"]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("m.csv", "file,text\na,b\n", "no column path; it has file, text"),
        ("m.csv", "", "no column path, text; it has nothing"),
        ("m.csv", "path,text\n", "no recordings listed"),
        ("m.csv", "path,text\na,b,c\n", "line 2: 3 columns, expected 2"),
        ("m.csv", 'path,text\na,"b\n', "line 2: unexpected end of data"),
        ("m.csv", "path,text,split\na,b,eval\n", "split of a is 'eval', expected one of train, test"),
        ("m.csv", b"path,text\na,\xff\n", "not UTF-8 text"),
        ("m.txt", "path,text\na,b\n", r"ends in \.csv, \.tsv, \.jsonl or \.json, not in '\.txt'"),
        ("m.jsonl", '{"path": "a"\n', "line 1: not valid JSON"),
        ("m.jsonl", "[1]\n", "line 1: expected an object with path, text"),
        ("m.jsonl", '{"path": "a"}\n', "no column text; it has path"),
        ("m.jsonl", '{"path": "a", "text": "b"}\n{"path": "c"}\n', "line 2: 'text' is not given on every line"),
        (
            "m.jsonl",
            '{"path": "a", "text": "b"}\n{"path": "c", "text": "d", "split": "test"}\n',
            "line 2: 'split' is not",
        ),
        ("m.jsonl", '{"path": "a", "text": 3}\n', "line 1: text is 3, expected a string"),
    ],
)
def test_manifest_that_is_not_right(tmp_path, name, text, message):
    with pytest.raises(PipelineError, match=message) as caught:
        read_manifest(tmp_path / name, text)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_manifest_that_is_not_there(tmp_path):
    with pytest.raises(PipelineError, match=r"none\.csv: no such file"):
        read_manifest(tmp_path / "none.csv")


# What they share


def item(item_id, path, text="x", **fields):
    return Item(item_id, path, text, "", "", "", **fields)


def test_ids_become_unique(tmp_path):
    ids = [item.id for item in unique_ids([item(name, tmp_path) for name in ["a", "a", "a#2", "b", "a"]])]
    assert ids == ["a", "a#3", "a#2", "b", "a#4"]


def test_transcripts_sha256_changes_with_all_but_the_recording(tmp_path):
    one = item("a", tmp_path / "a.wav")
    others = [item("b", one.audio), item("a", one.audio, "y"), replace(one, speaker="s"), replace(one, group="g")]
    found = [transcripts_sha256([each]) for each in (one, *others, replace(one, source="other"))]
    assert len(set(found)) == 6
    assert transcripts_sha256([item("a", tmp_path / "b.wav")]) == found[0]


def test_text_that_is_not_unicode_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="item 'a'.*not valid Unicode"):
        transcripts_sha256([item("a", tmp_path, "\ud800")])


def test_groups_of_one_size_are_shared_out_exactly():
    splits = list(split_by_group({str(i): 3 for i in range(100)}, {"test": 0.2, "validation": 0.1}).values())
    assert (splits.count("test"), splits.count("validation"), splits.count("train")) == (20, 10, 70)


def test_settings_from_a_parameter_file():
    adapter = TypeAdapter(CorpusSettings)
    names = {
        "fish-fillets": adapter.validate_python({"corpus": "fish-fillets"}).name,
        "voxpopuli": adapter.validate_python({"corpus": "dataset", "path": "facebook/voxpopuli"}).name,
        "my-list-2": adapter.validate_python({"corpus": "manifest", "path": "data/my list@2.csv"}).name,
    }
    assert all(name == expected for expected, name in names.items())
    for wrong in (
        {"corpus": "timit"},
        {"corpus": "fleurs", "subset": "3k"},
        {"corpus": "common-voice", "path": "x", "subset": "5k"},
        {"corpus": "manifest", "path": "x", "test_fraction": 0.6, "validation_fraction": 0.4},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
