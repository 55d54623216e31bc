"""Prepare once more: what changed since is noticed, what did not is left as it is, and not read again."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset
from prepare_makers import noise, program, record
from test_prepare_run import read_split, run, tree, write_manifest

from cache.errors import PipelineError
from cache.files import read_json, read_jsonl
from stages.prepare.contents import contents_sha256, notes_file
from stages.prepare.corpora.places import Places
from stages.prepare.corpora.rows import Columns, items
from stages.prepare.items import Item


def settle(*paths: Path) -> None:
    """Times long past, as of a corpus that was not written this second."""
    for path in paths:
        os.utime(path, (1_600_000_000, 1_600_000_000))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine recordings. What was written just now is not noted: the clock here says that it was an hour ago."""
    for number in range(9):
        record(tmp_path / f"{number}.wav", noise(0.3 + 0.05 * number, number))
    splits = ["train"] * 5 + ["validation"] * 2 + ["test"] * 2
    write_manifest(tmp_path, [(f"{number}.wav", split, f"Věta {number}.") for number, split in enumerate(splits)])
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3_600_000_000_000)
    return tmp_path


def replaced(path: Path, seed: int, keep_times: bool = False) -> None:
    before = path.stat()
    seconds = (before.st_size - 44) / 32_000
    record(path, noise(seconds, seed))
    assert path.stat().st_size == before.st_size
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("keep_times", [False, True])
@pytest.mark.parametrize("name", ["2.wav", "6.wav", "8.wav"])
def test_a_recording_of_equal_length_in_its_place_is_noticed(name, keep_times, corpus):
    run(corpus)
    before = tree(corpus / "out")
    replaced(corpus / name, 99, keep_times)
    with pytest.raises(PipelineError, match="recordings: found"):
        run(corpus)
    assert tree(corpus / "out") == before
    run(corpus, rerun="update")
    run(corpus, corpus / "fresh")
    assert tree(corpus / "out") == tree(corpus / "fresh") != before


def test_a_copy_over_it_with_its_original_s_times_is_noticed(corpus):
    """As `rsync -a` and `cp -p` make them."""
    settle(corpus / "0.wav")
    run(corpus)
    other = record(corpus / "other.wav", noise(0.3, 77))
    settle(other)
    shutil.copy2(other, corpus / "0.wav")
    with pytest.raises(PipelineError, match="recordings: found"):
        run(corpus)


def test_a_corrected_transcript_is_named_as_such(corpus):
    run(corpus)
    text = (corpus / "manifest.jsonl").read_text()
    (corpus / "manifest.jsonl").write_text(text.replace("ta 0.", "ta nula."))
    with pytest.raises(PipelineError, match=r"train was made with other settings \(transcripts: found") as error:
        run(corpus)
    assert "recordings" not in str(error.value)
    run(corpus, rerun="update")
    assert "Věta nula." in [row["text"] for row in read_split(corpus / "out/train")]


def test_a_touch_or_a_copy_of_all_redoes_nothing(corpus):
    run(corpus)
    before = {path: path.stat().st_mtime_ns for path in (corpus / "out").rglob("*")}
    for number in range(9):
        (corpus / f"{number}.wav").touch()
        os.replace(shutil.copy(corpus / f"{number}.wav", corpus / "copy"), corpus / f"{number}.wav")
    run(corpus, rerun="update")
    assert {path: path.stat().st_mtime_ns for path in (corpus / "out").rglob("*")} == before


def test_what_is_as_it_was_is_not_read_again(corpus, pool, monkeypatch):
    out, listed = corpus / "out", [Item(f"{n}", corpus / f"{n}.wav", "", "", "", "") for n in range(9)]
    first = contents_sha256(listed, out, pool)
    assert len(set(first)) == 9 and len(read_jsonl(notes_file(out))) == 9
    opened = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **o: opened.append(self.name) or real(self, *a, **o))
    assert contents_sha256(listed, out, pool) == first
    assert not [name for name in opened if name.endswith(".wav")]
    (corpus / "3.wav").touch()
    assert contents_sha256(listed, out, pool) == first
    assert "3.wav" in opened and "4.wav" not in opened
    notes_file(out).write_text("{}\n[not notes")  # lost, they cost time alone
    assert contents_sha256(listed, out, pool) == first


def test_what_was_written_just_now_is_not_taken_as_noted(tmp_path, pool):
    """It may be written once more within the same tick of the clock."""
    path = record(tmp_path / "a.wav", noise(0.1, 0))
    contents_sha256([Item("a", path, "", "", "", "")], tmp_path / "out", pool)
    assert not notes_file(tmp_path / "out").exists()


def test_the_notes_lie_outside_of_the_output(corpus):
    run(corpus)
    assert notes_file(corpus / "out") == corpus / ".out.recordings"
    assert sorted(path.name for path in (corpus / "out").iterdir()) == ["test", "train", "validation"]


def test_restart_makes_all_again_where_all_is_equal(corpus):
    run(corpus)
    before = tree(corpus / "out")
    inode = (corpus / "out/train/manifest.json").stat().st_ino
    run(corpus, rerun="update")
    assert (corpus / "out/train/manifest.json").stat().st_ino == inode
    stamp = (corpus / "out/train/shard-00000.parquet").stat().st_mtime_ns
    run(corpus, rerun="restart")
    assert (corpus / "out/train/shard-00000.parquet").stat().st_mtime_ns > stamp
    assert tree(corpus / "out") == before


def test_work_of_another_version_of_the_stage_is_another_s(corpus, monkeypatch):
    run(corpus)
    monkeypatch.setattr("stages.prepare.run.PREPARE_VERSION", 1_000)
    with pytest.raises(PipelineError, match=r"prepare_version: found \d+, wanted 1000"):
        run(corpus)
    run(corpus, rerun="update")
    assert read_json(corpus / "out/test/manifest.json")["settings"]["prepare_version"] == 1_000


# What could not be read


def test_a_recording_that_was_missing_is_there_now(corpus):
    (corpus / "3.wav").rename(corpus / "elsewhere")
    assert run(corpus)["train"].left_out == {"missing": 1}
    assert run(corpus)["train"].left_out == {"missing": 1}
    (corpus / "elsewhere").rename(corpus / "3.wav")
    with pytest.raises(PipelineError, match="recordings: found"):
        run(corpus)
    assert run(corpus, rerun="update")["train"].left_out == {}


@pytest.mark.parametrize("unfinished", [False, True])
def test_what_ffmpeg_alone_can_read_is_tried_again_once_it_is_there(unfinished, corpus, no_programs, monkeypatch):
    """In test; train is made again, too, since the recording in it is a duplicate now."""
    record(corpus / "0.wav", noise(0.3, 0), subtype="FLOAT")
    (corpus / "8.wav").write_bytes(b"something that only ffmpeg knows")
    assert run(corpus)["test"].left_out == {"unreadable": 1}
    before = tree(corpus / "out")
    assert run(corpus, rerun="update")["test"].left_out == {"unreadable": 1}
    assert tree(corpus / "out") == before
    if unfinished:
        manifest = read_json(corpus / "out/test/manifest.json")
        manifest["shards"][-1] |= {"left_out": read_jsonl(corpus / "out/test/left_out.jsonl"), "noticed": []}
        (corpus / "out/test/progress.json").write_text(json.dumps(manifest))
        (corpus / "out/test/manifest.json").unlink()
    record(corpus / "samples", noise(0.3, 0), format="AU", subtype="FLOAT")  # what 0.wav holds, as ffmpeg hands it over
    program(no_programs, "ffmpeg", f"exec {shutil.which('cat', path='/bin:/usr/bin')} {corpus / 'samples'}")
    with pytest.raises(PipelineError, match=r"could not be read before can be read now \(8.wav\): give --update"):
        run(corpus)
    summary = run(corpus, rerun="update")
    assert summary["test"].left_out == {} and summary["train"].left_out == {"duplicate": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_recording_that_was_not_ours_to_read_is_now(corpus):
    (corpus / "3.wav").chmod(0)
    assert run(corpus)["train"].left_out == {"unreadable": 1}
    (corpus / "3.wav").chmod(stat.S_IRUSR)
    assert run(corpus, rerun="update")["train"].left_out == {}


def test_rows_of_a_dataset_are_noticed_and_read_once(tmp_path, pool):
    """Bytes in Arrow files, changed in place at the same length."""

    def saved(seed: int) -> list[Item]:
        rows = [{"audio": {"bytes": noise(0.1, seed + n).tobytes(), "path": None}, "text": f"{n}"} for n in range(3)]
        Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
        return items(
            Dataset.load_from_disk(tmp_path / "saved"), Columns("audio", "text"), "saved/train", Places(tmp_path)
        )

    first = saved(0)
    found = contents_sha256(first, tmp_path / "out", pool)
    assert len(set(found)) == 3
    never = [Item(i.id, lambda: pytest.fail("read again"), i.text, "", "", i.source, i.version) for i in first]
    assert contents_sha256(never, tmp_path / "out", pool) == found
    shutil.rmtree(tmp_path / "saved")
    assert not set(contents_sha256(saved(10), tmp_path / "out", pool)) & set(found)


# Two at the same time


def test_a_folder_that_another_process_is_writing_is_refused(corpus):
    """And free again once that process is killed."""
    code = (
        f"import sys; from pathlib import Path; from cache.locks import sole_writer\n"
        f"with sole_writer(Path({str(corpus / 'out')!r})): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(PipelineError, match=rf"out: in use by process {other.pid} on "):
        run(corpus)
    assert not (corpus / "out").exists()
    other.kill()
    other.wait()
    assert run(corpus)["train"].utterances == 5
    assert not list(corpus.glob(".*.lock"))
