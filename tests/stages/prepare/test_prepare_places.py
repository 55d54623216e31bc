"""Recordings whose paths were written elsewhere, or that lie behind links; and what is said of those that are not there."""

import unicodedata
from pathlib import Path

import pytest
from prepare_makers import noise, record

from cache import storage
from cache.errors import PipelineError
from cache.files import read_jsonl
from pipeline.params import load_params
from stages.prepare.corpora import places
from stages.prepare.corpora.manifest import ManifestSettings
from stages.prepare.corpora.places import Places
from stages.prepare.run import prepare
from stages.prepare.settings import PrepareSettings


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ("clips/a.wav", "clips\\a.wav"),
        ("clips/a.wav", ".\\clips\\a.WAV"),
        (unicodedata.normalize("NFD", "canción/ñ.wav"), "canción/ñ.wav"),
        ("canción/ñ.wav", unicodedata.normalize("NFD", "canción\\ñ.wav")),
        ("clips/a.WAV", "clips/a.wav"),
        ("clips/a.wav", "clips/a.Wav"),
        ("clips\\a.wav", "clips\\a.wav"),  # a name of this system
        ("../a.wav", "../a.WAV"),
    ],
)
def test_a_recording_is_found_as_another_system_names_it(tmp_path, there, named):
    touch(tmp_path / "corpus" / there)
    found = Places(tmp_path / "corpus").find(named)
    assert found.samefile(tmp_path / "corpus" / there)


def test_the_name_itself_goes_before_those_like_it_and_of_two_none_is_guessed(tmp_path):
    touch(tmp_path / "a.wav", tmp_path / "a.WAV", tmp_path / "b.Wav", tmp_path / "b.WAV")
    find = Places(tmp_path).find
    assert find("a.wav") == tmp_path / "a.wav" and find("a.WAV") == tmp_path / "a.WAV"
    assert not find("b.wav").exists() and find("b.wav") == tmp_path / "b.wav"
    assert find("A.wav") == tmp_path / "A.wav" and not find("A.wav").exists()  # another name, not another ending
    for odd in ("a.wav/b.wav", "x" * 300, "a\0.wav", "", "C:\\rec\\a.wav", "~nobody-of-this-name/a.wav"):
        assert str(find(odd)) == str(tmp_path / odd)


def test_each_folder_is_listed_once(tmp_path, monkeypatch):
    touch(*(tmp_path / f"clips/{number}.WAV" for number in range(20)))
    listed = []
    iterdir = Path.iterdir
    monkeypatch.setattr(places.Path, "iterdir", lambda folder: listed.append(folder) or iterdir(folder))
    where = Places(tmp_path)
    assert all(where.find(f"clips\\{number}.wav").exists() for number in range(20))
    assert where.notes()[0].startswith(
        "20 recordings lie under a slightly other name than is listed, as clips\\0.wav at /"
    )
    assert sorted(map(str, listed)) == sorted({str(tmp_path / "clips"), str(tmp_path)})


def test_home(tmp_path, monkeypatch):
    """In the parameters and within a manifest."""
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path / "rec/a.wav")
    assert Places(Path("elsewhere")).find("~/rec/a.wav") == tmp_path / "rec/a.wav"
    (tmp_path / "params.yaml").write_text(
        "paths: {utterances: ~/u, models: models/~x}\n"
        "languages:\n  gl: {corpus: {corpus: manifest, path: ~/rec/r.csv}}\n  ca: {corpus: {corpus: dataset, path: ~/ds}}\n"
        "  cs: {corpus: {corpus: fish-fillets, path: ~/game}}\n"
    )
    params = load_params(tmp_path / "params.yaml", {})
    assert (params.paths.utterances, params.paths.models) == (tmp_path / "u", Path("models/~x"))
    found = [str(params.languages[code].corpus.path) for code in ("gl", "ca", "cs")]
    assert found == [str(tmp_path / name) for name in ("rec/r.csv", "ds", "game")]
    assert storage.path("~nobody-of-this-name") == Path("~nobody-of-this-name")
    with pytest.raises(PipelineError, match="languages.gl.corpus.*not UTF-8: rename it"):
        load_params(
            tmp_path / "params.yaml", {"languages.gl.corpus": {"corpus": "manifest", "path": "caf\udce9/r.csv"}}
        )


def run(folder, rows, out=None, rerun="refuse", **settings):
    """rows: (path, text, split)."""
    (folder / "m.csv").write_text("path,text,split\n" + "".join(",".join(row) + "\n" for row in rows))
    corpus = ManifestSettings(corpus="manifest", path=folder / "m.csv")
    return prepare(corpus, PrepareSettings(**settings), "gl", out or folder / "out", 2.0, rerun)


def test_links_to_recordings_and_a_link_to_nothing(tmp_path):
    record(tmp_path / "disk/a b/ñ.wav", noise(0.5, 0))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/link").symlink_to("../disk/a b")
    (tmp_path / "disk/a b/gone.wav").symlink_to("nothing.wav")
    (tmp_path / "corpus/round.wav").symlink_to("round.wav")
    names = ["link/ñ.wav", "link/gone.wav", "round.wav", "x" * 300]
    (summary,) = run(tmp_path / "corpus", [(name, "Ola.", "test") for name in names])
    assert (summary.utterances, summary.left_out) == (1, {"missing": 3})


def test_a_linked_output_folder_is_emptied_not_removed(tmp_path):
    record(tmp_path / "a.wav", noise(0.5, 0))
    (tmp_path / "other disk").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/test").symlink_to(tmp_path / "other disk")
    rows = [("a.wav", "Ola.", "test")]
    run(tmp_path, rows)
    (tmp_path / "other disk/old").mkdir()
    run(tmp_path, rows, rerun="restart", min_seconds=0.3)
    assert (tmp_path / "out/test").is_symlink()
    assert sorted(path.name for path in (tmp_path / "other disk").iterdir()) == [
        "left_out.jsonl", "manifest.json", "noticed.jsonl", "shard-00000.parquet",
    ]  # fmt: skip
    run(tmp_path, [("a.wav", "Ola.", "train")], rerun="restart")  # a split that is no longer there
    assert list((tmp_path / "other disk").iterdir()) == []


def test_removing_a_tree_follows_no_link(tmp_path):
    touch(tmp_path / "kept/a", tmp_path / "tree/sub/b")
    (tmp_path / "tree/link").symlink_to(tmp_path / "kept")
    storage.remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (tmp_path / "kept/a").exists()


def test_where_nothing_is_usable_the_first_reason_and_the_list_are_there(tmp_path, no_programs):
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + b"\1" * 3000)
    with pytest.raises(
        PipelineError, match=r"1 unreadable\); the first: .*a\.m4a.*ffmpeg.*all are listed in .*left_out"
    ):
        run(tmp_path, [("a.m4a", "Ola.", "train")])
    assert [row["reason"] for row in read_jsonl(tmp_path / "out/train/left_out.jsonl")] == ["unreadable"]
    rows = [("x/a.wav", "Ola.", "train"), ("x/b.wav", "Adeus.", "train")]
    with pytest.raises(PipelineError) as caught:
        run(tmp_path, rows, tmp_path / "out2")
    assert f"2 missing); the first: {tmp_path}/x/a.wav: no such file; there is no folder {tmp_path}/x" in str(
        caught.value
    )
    touch(tmp_path / "x/other.wav")
    with pytest.raises(PipelineError, match=rf"{tmp_path}/x holds other\.wav and the like"):
        run(tmp_path, rows, tmp_path / "out3")
    with pytest.raises(PipelineError, match=r"a path of Windows"):
        run(tmp_path, [("D:\\rec\\a.wav", "Ola.", "train")], tmp_path / "out4")
