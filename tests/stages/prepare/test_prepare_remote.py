"""Corpora that lie at a URL, on fsspec's own `memory://`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from prepare_makers import noise, record
from pydantic import TypeAdapter

from cache import storage
from cache.errors import PipelineError
from cache.storage import StorageError
from pipeline.params import Params, load_params
from stages.prepare.contents import contents_sha256
from stages.prepare.corpora import read_corpus
from stages.prepare.items import Item, transcripts_sha256
from stages.prepare.settings import CorpusSettings, PrepareSettings
from stages.prepare.utterances import make_utterance

CV_HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\n"


@pytest.fixture
def corpora(tmp_path: Path) -> Iterator[Path]:
    """A manifest, a Common Voice release and a FLEURS release of two recordings a split, here and at memory://corpora."""
    for number, split in enumerate(("train", "dev", "test")):
        for name in ("a", "b"):
            samples = noise(0.5, seed=2 * number + (name == "b"))
            for folder in ("m/clips", "cv/cs/clips", f"fleurs/cs_cz/audio/{split}"):
                record(tmp_path / folder / f"{split}-{name}.wav", samples)
        lines = [f"s{name}\t{split}-{name}.wav\tVěta {name}.\t2\t0\n" for name in "ab"]
        (tmp_path / f"cv/cs/{split}.tsv").write_text(CV_HEADER + "".join(lines), encoding="utf-8")
        lines = [f"{number}{name}\t{split}-{name}.wav\tVěta {name}.\tvěta\tv\t8000\tMALE\n" for name in "ab"]
        (tmp_path / f"fleurs/cs_cz/{split}.tsv").write_text("".join(lines), encoding="utf-8")
    rows = [f"clips/{split}-{name}.wav,Věta {name}.,{split}\n" for split in ("train", "dev", "test") for name in "ab"]
    rows += ["clips/gone.wav,Nic.,train\n", "memory://corpora/m/clips/train-a.wav,Znovu.,train\n"]
    (tmp_path / "m/rows.csv").write_text("path,text,split\n" + "".join(rows), encoding="utf-8")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    MemoryFileSystem().put(str(tmp_path), "/corpora", recursive=True)
    yield tmp_path
    MemoryFileSystem.store.clear()


@pytest.mark.parametrize(("corpus", "path"), [("manifest", "m/rows.csv"), ("common-voice", "cv"), ("fleurs", "fleurs")])
def test_a_corpus_at_a_url_gives_the_same_utterances(corpus: str, path: str, corpora: Path):
    def read(root: str):
        settings = TypeAdapter(CorpusSettings).validate_python({"corpus": corpus, "path": f"{root}/{path}"})
        assert settings.model_dump(mode="json")["path"] == f"{root}/{path}"
        return read_corpus(settings, "cs").splits

    here, there = read(str(corpora)), read("memory://corpora")
    assert {split: len(items) for split, items in there.items()}.keys() == {"train", "validation", "test"}
    for split, items in there.items():
        assert transcripts_sha256(items) == transcripts_sha256(here[split])
        made = [make_utterance(item, PrepareSettings(), "train", 2.0) for item in items]
        expected = [make_utterance(item, PrepareSettings(), "train", 2.0) for item in here[split]]
        if corpus == "manifest" and split == "train":
            gone = made.pop(2)
            assert (gone.reason, gone.detail) == ("missing", "memory://corpora/m/clips/gone.wav: no such file")
            assert expected.pop(2).reason == "missing"
        assert made == expected and len(made) >= 2


def test_the_versions_of_recordings_are_listed_once_for_each_folder(corpora: Path, monkeypatch, pool):
    settings = TypeAdapter(CorpusSettings).validate_python(
        {"corpus": "manifest", "path": "memory://corpora/m/rows.csv"}
    )
    items = [item for split in read_corpus(settings, "cs").splits.values() for item in split]
    store, listed = items[0].audio.fs, []
    ls = store.ls
    monkeypatch.setattr(store, "ls", lambda path, **options: listed.append(path) or ls(path, **options))
    monkeypatch.setattr(store, "info", None)
    before = contents_sha256(items, corpora / "out", pool)
    assert listed == ["/corpora/m/clips"]
    number = next(n for n, item in enumerate(items) if item.audio.name == "test-a.wav")
    store.pipe_file("/corpora/m/clips/test-a.wav", b"another recording")
    after = contents_sha256(items, corpora / "out", pool)
    assert [n for n, (one, other) in enumerate(zip(before, after, strict=True)) if one != other] == [number]
    assert [item.audio.name for item, content in zip(items, before, strict=True) if content is None] == ["gone.wav"]


def test_a_store_that_fails_is_no_reason_to_leave_a_recording_out(corpora: Path, monkeypatch):
    audio = storage.path("memory://corpora/m/clips/train-a.wav")

    def fail(path):
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(audio.fs, "cat_file", fail)
    with pytest.raises(StorageError, match=r"train-a.wav: not allowed \(AccessDenied\)"):
        make_utterance(Item("1", audio, "Text.", "", "1", "1"), PrepareSettings(), "train", 2.0)


def test_parameters_keep_urls_intact(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(
        "paths: {utterances: s3://b/u, teacher: 's3://b/t/', models: local/m, report: file:///r}\n"
        "languages: {cs: {corpus: {corpus: manifest, path: s3://b/rows.csv}}}\n"
    )
    params = load_params(tmp_path / "params.yaml", {"paths.metrics": "s3://b/m"})
    paths = params.paths
    assert [str(path / "cs") for path in (paths.utterances, paths.teacher, paths.metrics)] == [
        "s3://b/u/cs",
        "s3://b/t/cs",
        "s3://b/m/cs",
    ]
    assert (paths.models, paths.report) == (Path("local/m"), Path("/r"))
    assert str(params.languages["cs"].corpus.path) == "s3://b/rows.csv"
    assert params.languages["cs"].corpus.name == "rows"
    assert Params().paths.models == Path("models")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("paths.models", "s4://b/x", "paths.models: .*s4:// is not known"),
        ("paths.models", 5, r"paths.models: .*not a path or a URL \(found 5\)"),
        ("paths.models", None, "paths.models: .*not a path or a URL"),
        (
            "languages.cs.corpus",
            {"corpus": "fish-fillets", "path": "s3://b/x"},
            "a URL, expected a folder of this machine",
        ),
    ],
)
def test_parameters_that_are_no_paths(name: str, value: object, said: str, tmp_path: Path):
    with pytest.raises(PipelineError, match=said):
        load_params(tmp_path / "none.yaml", {name: value})
