import json
import signal
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import soundfile
from prepare_makers import RATE, noise, record, tone
from sources import ROOT

from cache.errors import PipelineError
from cache.files import read_jsonl
from cache.records import UTTERANCE_FIELDS, check_record
from cache.shards import ShardReader
from stages.prepare.corpora.manifest import ManifestSettings
from stages.prepare.run import prepare
from stages.prepare.settings import PrepareSettings
from stages.shared import audio

MAX_SECONDS = 2.0


def write_manifest(folder, rows):
    """rows: (path, split, text)."""
    lines = [json.dumps({"path": path, "split": split, "text": text}) for path, split, text in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def run(folder, out=None, *, progress=lambda *_: None, suffix="", rerun="refuse", max_seconds=MAX_SECONDS, **settings):
    corpus = ManifestSettings(corpus="manifest", path=folder / "manifest.jsonl")
    summary = prepare(
        corpus,
        PrepareSettings(**{"shard_rows": 4, **settings}),
        "cs",
        out or folder / "out",
        max_seconds,
        rerun,
        suffix,
        progress,
    )
    return {split.split: split for split in summary}


def read_split(folder):
    reader = ShardReader(folder, "utterances")
    return [record for index in range(len(reader.shards)) for record in reader.read(index)]


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def troubled(tmp_path):
    """A recording for each reason to leave one out, in train and in test."""
    record(tmp_path / "good.wav", tone(1, 48_000), 48_000)
    record(tmp_path / "zero.wav", np.zeros(0))
    record(tmp_path / "short.wav", tone(0.1))
    record(tmp_path / "silent.wav", noise(1, 0) * 0.002)
    record(tmp_path / "faint.wav", tone(1, amplitude=0.002, hertz=300))
    record(tmp_path / "long.wav", tone(2.5, hertz=300))
    record(tmp_path / "exact.wav", tone(2.0, hertz=350))
    (tmp_path / "notes.wav").write_text("this is no sound")
    (tmp_path / "folder.wav").mkdir()
    rows = [
        ("good.wav", "Nahoru!"),
        ("zero.wav", "a"),
        ("short.wav", "b"),
        ("silent.wav", "c"),
        ("faint.wav", "Šepot."),
        ("long.wav", "Dlouhé."),
        ("exact.wav", "Přesně."),
        ("notes.wav", "d"),
        ("folder.wav", "e"),
        ("absent.wav", "f"),
        ("good.wav", " … ?! — "),
    ]
    write_manifest(tmp_path, [(path, "test", text) for path, text in rows])
    return tmp_path


REASONS = {
    "zero.wav": "empty",
    "short.wav": "empty",
    "silent.wav": "silent",
    "notes.wav": "unreadable",
    "folder.wav": "unreadable",
    "absent.wav": "missing",
    "good.wav#2": "no_text",
}


def test_everything_left_out_is_listed_with_its_reason(troubled, no_programs):
    summary = run(troubled)["test"]
    records = read_split(troubled / "out/test")
    assert [record["id"] for record in records] == ["good.wav", "faint.wav", "long.wav", "exact.wav"]
    rows = read_jsonl(troubled / "out/test/left_out.jsonl")
    assert {row["id"]: row["reason"] for row in rows} == REASONS
    assert [row["id"] for row in rows] == list(REASONS)  # in the corpus's order
    counts = {"empty": 2, "missing": 1, "no_text": 1, "silent": 1, "unreadable": 2}
    manifest = ShardReader(troubled / "out/test", "utterances").manifest
    assert manifest["left_out"] == counts == summary.left_out
    assert (manifest["corpus"], manifest["language"], manifest["split"]) == ("manifest", "cs", "test")
    assert manifest["rows"] == summary.utterances == 4
    assert manifest["seconds"] == summary.seconds == pytest.approx(1 + 1 + 2.5 + 2)
    assert "ffmpeg" in next(row["detail"] for row in rows if row["id"] == "notes.wav")
    assert all("left_out" not in entry for entry in manifest["shards"])


def test_recordings_without_a_text_are_kept_in_train_where_asked_for(tmp_path):
    """With the text "" whatever stood there, and their own reasons to be left out; elsewhere they cannot be scored."""
    rows = []
    for number, text in enumerate(["", " … ?! — ", "Ano.", "(…)"]):
        for split in ("train", "validation", "test"):
            record(tmp_path / f"{split}{number}.wav", noise(0.5, len(rows)))
            rows.append((f"{split}{number}.wav", split, text))
    record(tmp_path / "short.wav", tone(0.1))
    write_manifest(tmp_path, [*rows, ("short.wav", "train", ""), ("absent.wav", "train", "")])
    summary = run(tmp_path, untranscribed=True)
    found = {split: {row["id"]: row["text"] for row in read_split(tmp_path / "out" / split)} for split in summary}
    assert found["train"] == {"train0.wav": "", "train1.wav": "", "train2.wav": "Ano.", "train3.wav": ""}
    assert found["validation"] == {"validation2.wav": "Ano."}
    assert found["test"] == {"test2.wav": "Ano."}
    assert summary["train"].left_out == {"empty": 1, "missing": 1}
    assert summary["validation"].left_out == summary["test"].left_out == {"no_text": 3}
    with pytest.raises(PipelineError, match=r"train.*\(untranscribed: found True, wanted False\)"):
        run(tmp_path)
    summary = run(tmp_path, rerun="update")
    assert summary["train"].left_out == {"no_text": 5}
    assert [row["id"] for row in read_split(tmp_path / "out/train")] == ["train2.wav"]


def test_only_test_keeps_what_is_longer_than_the_window(troubled):
    rows = [("long.wav", "train", "x"), ("exact.wav", "train", "y"), ("good.wav", "validation", "z")]
    write_manifest(troubled, [*rows, ("faint.wav", "test", "v"), ("long.wav", "test", "w")])
    (troubled / "long2.wav").write_bytes((troubled / "long.wav").read_bytes())
    summary = run(troubled)
    assert [record["id"] for record in read_split(troubled / "out/test")] == ["faint.wav", "long.wav"]
    assert [record["id"] for record in read_split(troubled / "out/train")] == ["exact.wav"]
    assert summary["train"].left_out == {"too_long": 1}


def test_a_record_is_what_was_recorded(troubled):
    text = unicodedata.normalize("NFD", " Žluťoučký \t kůň,\u00a0řekl: „Ó!“\n")
    record(troubled / "stereo.flac", np.stack([tone(1, 44_100, 0.4), tone(1, 44_100, 0.2)], axis=1), 44_100)
    write_manifest(troubled, [("stereo.flac", "test", text)])
    run(troubled)
    (found,) = read_split(troubled / "out/test")
    check_record(found, UTTERANCE_FIELDS, "")
    samples = audio.decode_flac(found["audio"])
    np.testing.assert_allclose(samples[200:-200], tone(1)[200:-200], atol=1e-3)
    assert found["text"] == "Žluťoučký kůň, řekl: „Ó!“" and unicodedata.is_normalized("NFC", found["text"])
    assert found["seconds"] == 1.0 == len(samples) / RATE
    assert found["audio_sha256"] == audio.audio_sha256(samples)
    assert (found["id"], found["source"], found["group"]) == ("stereo.flac", "stereo.flac", "stereo.flac")


@pytest.fixture
def doubled(tmp_path):
    for number in range(6):
        record(tmp_path / f"{number}.wav", noise(0.5, number), subtype="PCM_16")
    record(tmp_path / "0.flac", soundfile.read(tmp_path / "0.wav", dtype="int16")[0])  # other bytes, same sound
    rows = [("0.wav", "train"), ("1.wav", "train"), ("2.wav", "train"), ("3.wav", "train"), ("3.wav", "train")]
    rows += [("1.wav", "validation"), ("4.wav", "validation"), ("0.flac", "validation")]
    rows += [("0.wav", "test"), ("5.wav", "test"), ("2.wav", "test")]
    write_manifest(tmp_path, [(path, split, f"věta {number}") for number, (path, split) in enumerate(rows)])
    return tmp_path


def test_of_equal_recordings_test_keeps_its_own(doubled):
    run(doubled)
    ids = {split: [r["id"] for r in read_split(doubled / "out" / split)] for split in ("train", "validation", "test")}
    assert ids == {"test": ["0.wav", "5.wav", "2.wav"], "validation": ["1.wav", "4.wav"], "train": ["3.wav"]}
    details = [row["detail"] for row in read_jsonl(doubled / "out/train/left_out.jsonl")]
    assert details == [
        f"same audio as {first}" for first in ("test/0.wav", "validation/1.wav", "test/2.wav", "train/3.wav")
    ]


def test_finished_splits_are_remembered_when_a_later_one_is_made(doubled):
    """As when the run was killed between two splits: their audio is read back."""
    run(doubled)
    whole = tree(doubled / "out")
    for path in (doubled / "out/train").iterdir():
        path.unlink()
    run(doubled)
    assert tree(doubled / "out") == whole


SAME_AS = {11: 2, 14: 3, 17: 4, 19: 15}  # within a split and across, each time in another shard


@pytest.fixture
def corpus(tmp_path):
    """22 recordings in 6 shards, with something left out in several of them."""
    rows = []
    for number in range(20):
        split = "train" if number < 12 else "validation" if number < 15 else "test"
        seed = SAME_AS.get(number, number)
        record(tmp_path / f"{number}.wav", noise(0.3 + seed % 5 / 10, seed, 22_050), 22_050)
        rows.append((f"{number}.wav", split, f"věta {number}" if number % 6 else "?"))
    rows += [("absent.wav", "train", "x"), ("13.wav", "train", "x")]
    write_manifest(tmp_path, rows)
    return tmp_path


class StopError(Exception):
    pass


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_an_interrupted_run_ends_up_byte_for_byte_the_same(corpus, format):
    run(corpus, corpus / "whole", format=format)
    expected = tree(corpus / "whole")
    assert sum(name.endswith((".parquet", ".tar")) for name in expected) == 7

    def stop_at(count):
        def progress(done, total, seconds):
            if done == count:
                raise StopError

        return progress

    for count in (1, 6, 9, 10, 15, 22):
        with pytest.raises(StopError):
            run(corpus, corpus / "cut", format=format, progress=stop_at(count))
    seen = []
    run(
        corpus, corpus / "cut", format=format, progress=lambda done, total, seconds: seen.append((done, total, seconds))
    )
    assert tree(corpus / "cut") == expected
    assert seen[-1][:2] == (22, 22)
    total = sum(
        record["seconds"]
        for split in ("test", "validation", "train")
        for record in read_split(corpus / "whole" / split)
    )
    assert seen[-1][2] == pytest.approx(total)


def child(corpus, out, lines):
    """Runs the stage in a process of its own, after `lines`, which may define `progress`."""
    script = f"""
import os, resource, signal, sys
from pathlib import Path
from stages.prepare.run import prepare
from stages.prepare.corpora.manifest import ManifestSettings
from stages.prepare.settings import PrepareSettings
progress = lambda done, total, seconds: None
{lines}
prepare(ManifestSettings(corpus="manifest", path=Path({str(corpus / "manifest.jsonl")!r})),
        PrepareSettings(shard_rows=4, format=FORMAT), "cs", Path({str(out)!r}), {MAX_SECONDS}, progress=progress)
"""
    root = ROOT
    return subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60)


def test_a_killed_run_ends_up_byte_for_byte_the_same(corpus):
    run(corpus, corpus / "whole")
    for count in (5, 13):
        killer = f"def progress(done, total, seconds):\n    if done == {count}: os.kill(os.getpid(), signal.SIGKILL)\n"
        done = child(corpus, corpus / "cut", f"FORMAT = 'parquet'\n{killer}")
        assert done.returncode == -signal.SIGKILL, done.stderr
    (corpus / "cut/train/.tmp-1-shard-00001.parquet").write_bytes(b"half")
    assert (corpus / "cut/test/shard-00000.parquet").exists()
    run(corpus, corpus / "cut")
    assert tree(corpus / "cut") == tree(corpus / "whole")


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, format):
    """A limit on file sizes stands for the full disk: either way the write fails in the middle of a file."""
    for number in range(4):
        record(tmp_path / f"{number}.wav", noise(2, number))
    write_manifest(tmp_path, [(f"{number}.wav", "test", "x") for number in range(4)])
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))"
    done = child(
        tmp_path, tmp_path / "out", f"FORMAT = {format!r}\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n{limit}"
    )
    assert done.returncode == 1 and "OSError" in done.stderr.splitlines()[-1], done.stderr
    assert list((tmp_path / "out/test").iterdir()) == []
    run(tmp_path, format=format)
    assert len(read_split(tmp_path / "out/test")) == 4


def test_a_finished_folder_is_left_as_it_is(corpus):
    first = run(corpus)
    before = {path: path.stat().st_mtime_ns for path in (corpus / "out").rglob("*")}
    assert run(corpus) == first
    assert {path: path.stat().st_mtime_ns for path in (corpus / "out").rglob("*")} == before


def test_changed_settings_are_refused_by_name_and_update_obeys_them(corpus):
    run(corpus)
    before = tree(corpus / "out")
    for changed, message in (
        ({"min_seconds": 0.35}, "min_seconds: found 0.2, wanted 0.35"),
        ({"shard_rows": 5}, "shard_rows: found 4, wanted 5"),
        ({"max_seconds": 0.5}, "max_seconds: found 2.0, wanted 0.5"),
        ({"format": "webdataset"}, "format: found 'parquet', wanted 'webdataset'"),
    ):
        with pytest.raises(PipelineError, match=message):
            run(corpus, **changed)
        assert tree(corpus / "out") == before
    run(corpus, min_seconds=0.35, rerun="update")
    lengths = [
        record["seconds"] for split in ("train", "validation", "test") for record in read_split(corpus / "out" / split)
    ]
    assert min(lengths) > 0.35


def test_a_changed_recording_is_noticed_and_a_touched_one_is_not(corpus):
    run(corpus)
    (corpus / "2.wav").touch()
    run(corpus)
    record(corpus / "2.wav", noise(1, 99))
    with pytest.raises(PipelineError, match="recordings: found"):
        run(corpus)
    run(corpus, rerun="update")
    found = next(record for record in read_split(corpus / "out/train") if record["id"] == "2.wav")
    assert found["seconds"] == 1.0


def test_the_window_does_not_concern_test(corpus):
    run(corpus)
    before = tree(corpus / "out/test")
    stamp = (corpus / "out/test/manifest.json").stat().st_mtime_ns
    run(corpus, max_seconds=0.65, rerun="update")
    assert tree(corpus / "out/test") == before
    assert (corpus / "out/test/manifest.json").stat().st_mtime_ns == stamp


def test_both_formats_hold_the_same_records(corpus):
    run(corpus, corpus / "parquet")
    run(corpus, corpus / "webdataset", format="webdataset")
    for split in ("train", "validation", "test"):
        records = read_split(corpus / "parquet" / split)
        assert records and records == read_split(corpus / "webdataset" / split)


def test_a_split_with_nothing_usable_is_an_error(troubled):
    rows = [("zero.wav", "train", "a"), ("short.wav", "train", "b"), ("good.wav", "train", "?")]
    write_manifest(troubled, [*rows, ("exact.wav", "test", "c")])
    for _ in range(2):  # and stays one
        with pytest.raises(
            PipelineError, match=r"manifest, train: nothing usable among 3 recordings \(2 empty, 1 no_text\)"
        ):
            run(troubled)
    assert not (troubled / "out/train/manifest.json").exists()


def test_a_further_test_corpus_has_a_folder_of_its_own(corpus):
    summary = run(corpus, suffix="@other")
    assert list(summary) == ["test@other"]
    assert [path.name for path in (corpus / "out").iterdir()] == ["test@other"]
    assert ShardReader(corpus / "out/test@other", "utterances").manifest["split"] == "test@other"
    run(corpus)
    write_manifest(corpus, [("1.wav", "train", "x")])
    with pytest.raises(PipelineError, match="has no test split"):
        run(corpus, suffix="@other2")


def test_a_split_left_from_another_corpus_is_not_mixed_in(corpus):
    run(corpus)
    write_manifest(corpus, [("1.wav", "train", "x"), ("2.wav", "test", "y")])
    with pytest.raises(PipelineError, match="validation was made from another corpus.*--restart"):
        run(corpus)
    run(corpus, rerun="update")
    assert sorted(path.name for path in (corpus / "out").iterdir()) == ["test", "train"]
