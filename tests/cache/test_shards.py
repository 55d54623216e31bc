"""A folder of shards is whole or unfinished, never wrong: killed anywhere, damaged, foreign, or made with other settings."""

import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from sources import ROOT

from cache.errors import PipelineError
from cache.files import TEMPORARY
from cache.formats import FORMATS
from cache.resume import Rerun
from cache.shards import ShardReader, ShardWriter

each_format = pytest.mark.parametrize("format", FORMATS)
SETTINGS = {"language": "cs", "top_k": 2, "prompt": [1, 2], "vocab_size": 100, "bits": 8}


def record(number: int) -> dict:
    tokens = number % 3
    return {
        "id": f"clip-{number}",
        "targets": np.arange(tokens, dtype=np.uint16),
        "target_source": "teacher" if tokens else None,
        "top_counts": np.full(tokens, 2, np.uint16),
        "top_ids": np.full(2 * tokens, number, np.uint16),
        "top_probs": np.full(2 * tokens, 100 + number, np.uint8),
        "tail_log_probs": np.full(tokens, -number / 7, np.float32),
        "mean_log_prob": -number / 3 if tokens else None,
        "teacher_text": f"text {number}",
        "compression_ratio": None,
        "word_errors": number,
        "words": 7,
    }


def make(folder: Path, format: str = "parquet", **changes) -> ShardWriter:
    """Three shards of two records; what is done already is left alone, as every stage does it."""
    writer = ShardWriter(folder, "teacher", {**SETTINGS, **changes}, format)
    if not writer.complete:
        for index in range(3):
            if index not in writer.shards:
                writer.write(index, [record(2 * index), record(2 * index + 1)], tokens=index)
        writer.finish(left_out={})
    return writer


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def edit(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refusal(action) -> str:
    with pytest.raises(PipelineError) as caught:
        action()
    return str(caught.value)


# Killed


KILLER = """
    # Runs `make` in a forked child that is killed at a given line of cache/, and again until it comes to its end.
    import os, signal, sys
    from pathlib import Path
    sys.path[:0] = {paths!r}
    if {format!r} == "webdataset":
        import webdataset  # once, not in every child
    from test_shards import make

    traced = os.path.join({paths!r}[1], "cache")

    def dies_at(line):
        left = [line]
        def trace(frame, event, arg):
            if os.path.dirname(frame.f_code.co_filename) != traced:
                return None
            left[0] -= event == "line"
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace
        return trace

    def killed(folder, format, line):
        if (child := os.fork()) == 0:
            sys.settrace(dies_at(line))
            make(folder, format)
            sys.settrace(None)
            os._exit(0)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])

    line = 1
    for trial in range(400):
        folder = Path({root!r}, f"{format}-{{trial:03d}}")
        if not killed(folder, {format!r}, line):
            break
        killed(folder, {format!r}, 40)  # a second time, while it resumes
        line += {stride}
    print(trial)
"""


@each_format
def test_killed_anywhere_and_run_again(format, tmp_path):
    """SIGKILL at every few lines that run in cache/: the next run ends with the same bytes, and no half-written file."""
    paths = [str(ROOT / "tests/support"), str(ROOT), str(ROOT / "tests/cache")]
    stride = {"parquet": 61, "webdataset": 37}[format]  # Parquet's footer is read by many more lines of Python
    script = KILLER.format(root=str(tmp_path), format=format, paths=paths, stride=stride)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    folders = sorted(tmp_path.glob(f"{format}-*"))
    assert int(done.stdout) > 10
    states = {tuple(sorted(path.name.split("-")[0] for path in folder.iterdir())) for folder in folders}
    assert len(states) > 4  # they were killed in different places, with temporary files among what they left
    assert any(path.name.startswith(TEMPORARY) for folder in folders for path in folder.iterdir())
    whole = contents(make(tmp_path / "whole", format).folder)
    for folder in folders:
        left = contents(folder)
        assert {name for name in left if name.startswith("shard") and left[name] != whole[name]} == set()
        assert all(json.loads((folder / name).read_text()) for name in left if name.endswith("s.json"))
        make(folder, format)
        assert contents(folder) == whole


@each_format
def test_what_is_done_is_not_done_again(format, tmp_path):
    writer = ShardWriter(tmp_path, "teacher", SETTINGS, format)
    writer.write(1, [record(2), record(3)], tokens=1)
    before = (tmp_path / writer.shards[1]["name"]).stat()
    again = ShardWriter(tmp_path, "teacher", SETTINGS, format)
    assert list(again.shards) == [1]
    assert not again.complete
    make(tmp_path, format)
    after = (tmp_path / writer.shards[1]["name"]).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [entry["index"] for entry in ShardReader(tmp_path, "teacher").shards] == [0, 1, 2]
    assert ShardWriter(tmp_path, "teacher", SETTINGS, format).complete


def test_killed_between_the_manifest_and_the_end(tmp_path):
    """The manifest is there, progress.json not yet removed: the next run leaves the same folder as any other."""
    writer = make(tmp_path / "whole")
    make(tmp_path / "killed")
    (tmp_path / "killed/progress.json").write_text(json.dumps(writer._header()))
    make(tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_recorded_shard_that_is_gone_or_cut_is_written_again(harm, tmp_path):
    make(tmp_path / "whole")
    writer = ShardWriter(tmp_path / "resumed", "teacher", SETTINGS)
    for index in (0, 1):
        writer.write(index, [record(2 * index), record(2 * index + 1)], tokens=index)
    harm(tmp_path / "resumed/shard-00001.parquet")
    assert list(ShardWriter(tmp_path / "resumed", "teacher", SETTINGS).shards) == [0]
    make(tmp_path / "resumed")
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_shards_may_be_written_in_any_order(tmp_path):
    make(tmp_path / "forward")
    writer = ShardWriter(tmp_path / "backward", "teacher", SETTINGS)
    for index in (2, 0, 1):
        writer.write(index, [record(2 * index), record(2 * index + 1)], tokens=index)
    writer.finish(left_out={})
    assert contents(tmp_path / "backward") == contents(tmp_path / "forward")


def test_a_write_that_fails_leaves_nothing(tmp_path):
    writer = ShardWriter(tmp_path, "teacher", SETTINGS)
    with pytest.raises(KeyError):
        writer.write(0, [{"id": "x"}])
    assert list(tmp_path.iterdir()) == []
    assert writer.shards == {}


# Other settings


@each_format
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name(format, finished, tmp_path):
    writer = ShardWriter(tmp_path, "teacher", SETTINGS, format)
    writer.write(0, [record(0)])
    if finished:
        writer.finish()
    before = contents(tmp_path)
    text = refusal(lambda: ShardWriter(tmp_path, "teacher", {**SETTINGS, "top_k": 9}, format))
    assert str(tmp_path) in text
    assert "top_k: found 2, wanted 9" in text
    assert "--restart" in text
    assert "language" not in text
    assert contents(tmp_path) == before


def test_settings_that_came_or_went_are_named(tmp_path):
    make(tmp_path)
    assert "temperature: found None, wanted 1.0" in refusal(lambda: make(tmp_path, temperature=1.0))
    fewer = {name: value for name, value in SETTINGS.items() if name != "top_k"}
    assert "top_k: found 2, wanted None" in refusal(lambda: ShardWriter(tmp_path, "teacher", fewer))


def test_another_format_or_kind_is_refused(tmp_path):
    make(tmp_path)
    assert "format: found 'parquet', wanted 'webdataset'" in refusal(lambda: make(tmp_path, "webdataset"))
    assert "kind: found 'teacher', wanted 'utterances'" in refusal(
        lambda: ShardWriter(tmp_path, "utterances", SETTINGS)
    )
    assert "format 'zip': expected one of parquet, webdataset" in refusal(lambda: make(tmp_path, "zip"))


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("rerun", ["update", "restart"])
def test_what_other_settings_made_is_removed_where_asked_for(rerun, finished, tmp_path):
    writer = ShardWriter(tmp_path, "teacher", SETTINGS)
    writer.write(0, [record(0)])
    writer.write(7, [record(1)])
    if finished:
        writer.finish()
    changed = ShardWriter(tmp_path, "teacher", {**SETTINGS, "top_k": 9}, rerun=rerun)
    assert list(tmp_path.iterdir()) == []
    assert not changed.complete
    assert changed.shards == {}


@pytest.mark.parametrize("finished", [True, False])
def test_the_same_work_is_kept_unless_restart_is_asked_for(finished, tmp_path):
    writer = ShardWriter(tmp_path, "teacher", SETTINGS)
    writer.write(0, [record(0)])
    if finished:
        writer.finish()
    before = contents(tmp_path)
    for rerun in ("refuse", "update"):
        again = ShardWriter(tmp_path, "teacher", SETTINGS, rerun=rerun)
        assert (again.complete, list(again.shards)) == (finished, [] if finished else [0])
        assert contents(tmp_path) == before
    again = ShardWriter(tmp_path, "teacher", SETTINGS, rerun="restart")
    assert (again.complete, again.shards, contents(tmp_path)) == (False, {}, {})


# Damaged or foreign


def read_all(folder: Path, kind: str = "teacher") -> list[dict]:
    reader = ShardReader(folder, kind)
    return [row for index in range(len(reader.shards)) for row in reader.read(index)]


@each_format
def test_reader_gives_the_records(format, tmp_path):
    make(tmp_path, format)
    reader = ShardReader(tmp_path, "teacher")
    assert reader.rows == [2, 2, 2]
    assert reader.manifest["rows"] == 6
    for number, row in enumerate(read_all(tmp_path)):
        expected = record(number)
        assert row.keys() == expected.keys()
        assert all(np.array_equal(row[name], expected[name]) for name in expected)
    assert reader.read(1, only=("id",)) == [{"id": "clip-2"}, {"id": "clip-3"}]
    for entry in reader.shards:
        assert hashlib.sha256((tmp_path / entry["name"]).read_bytes()).hexdigest() == entry["sha256"]


def test_a_fingerprint_follows_the_records(tmp_path):
    same, other = make(tmp_path / "a"), make(tmp_path / "b")
    prints = [ShardReader(writer.folder, "teacher").fingerprint() for writer in (same, other)]
    assert prints[0] == prints[1]
    writer = ShardWriter(tmp_path / "c", "teacher", SETTINGS)
    for index in range(3):
        writer.write(index, [record(2 * index), record(2 * index + (index != 1))])
    writer.finish()
    assert ShardReader(tmp_path / "c", "teacher").fingerprint() != prints[0]


@each_format
def test_a_shard_that_is_missing_or_of_another_size(format, tmp_path):
    make(tmp_path, format)
    path = tmp_path / ShardReader(tmp_path, "teacher").shards[1]["name"]
    whole = path.read_bytes()
    for cut in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(cut)
        text = refusal(lambda: ShardReader(tmp_path, "teacher"))
        assert str(path) in text
        assert f"{len(cut)} bytes" in text
        assert f"{len(whole)} bytes" in text
    path.unlink()
    text = refusal(lambda: ShardReader(tmp_path, "teacher"))
    assert f"{path} is missing" in text
    assert f"{len(whole)} bytes" in text


def test_a_tar_cut_at_a_member_boundary_after_it_was_opened(tmp_path):
    """tarfile ends in silence there; the row count does not."""
    make(tmp_path, "webdataset")
    reader = ShardReader(tmp_path, "teacher")
    path = tmp_path / reader.shards[2]["name"]
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"000001.json")])
    assert "holds 1 records, its manifest says 2" in refusal(lambda: reader.read(2))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("format_version", 1, "2"), ("kind", "utterances", "'teacher'"), ("fields", {"id": "str"}, "tail_log_probs")],
)
def test_a_manifest_of_another_version_or_kind(field, value, expected, tmp_path):
    make(tmp_path)
    edit(tmp_path / "manifest.json", lambda manifest: manifest.update({field: value}))
    text = refusal(lambda: ShardReader(tmp_path, "teacher"))
    assert str(tmp_path / "manifest.json") in text
    assert f"{field} is {value!r}, expected" in text
    assert expected in text.partition("expected")[2]


def test_a_folder_without_a_manifest(tmp_path):
    assert "holds no manifest.json: expected finished teacher shards" in refusal(
        lambda: ShardReader(tmp_path, "teacher")
    )
    assert "holds no manifest.json" in refusal(lambda: ShardReader(tmp_path / "nowhere", "teacher"))
    ShardWriter(tmp_path, "teacher", SETTINGS).write(0, [record(0)])
    assert "is unfinished: expected finished teacher shards" in refusal(lambda: ShardReader(tmp_path, "teacher"))


FOREIGN = pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": "an extension", "version": "1"}', "\udcff", "5"])


@FOREIGN
def test_reading_a_foreign_manifest(text, tmp_path):
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    assert str(tmp_path / "manifest.json") in refusal(lambda: ShardReader(tmp_path, "teacher"))


@FOREIGN
@pytest.mark.parametrize("name", ["manifest.json", "progress.json"])
def test_writing_beside_a_foreign_manifest(name, text, tmp_path):
    """Refused, and where the work is to begin again, too: what this project did not write it does not remove."""
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    (tmp_path / "precious").write_text("mine")
    for rerun in get_args(Rerun):
        assert str(tmp_path) in refusal(lambda: ShardWriter(tmp_path, "teacher", SETTINGS, rerun=rerun))  # noqa: B023
    assert (tmp_path / "precious").read_text() == "mine"


def test_progress_of_another_version_is_not_continued(tmp_path):
    """Its shards would stand under a manifest that says otherwise."""
    ShardWriter(tmp_path, "teacher", SETTINGS).write(0, [record(0)])
    edit(tmp_path / "progress.json", lambda progress: progress.update(format_version=0))
    assert "format_version" in refusal(lambda: ShardWriter(tmp_path, "teacher", SETTINGS))


ENTRY = {"index": 0, "name": "shard-00000.parquet", "rows": 2, "bytes": 9, "sha256": "00"}


@pytest.mark.parametrize(
    "entry",
    [
        5,
        None,
        [],
        {},
        *({name: value for name, value in ENTRY.items() if name != missing} for missing in ENTRY),
        *(
            {**ENTRY, "name": name}
            for name in (
                "../x",
                "/etc/passwd",
                "..",
                "",
                "manifest.json",
                "shard-00000.parquet/../../x",
                "../shard-00000.parquet",
                "x/shard-00000.parquet",
                "shard-00000.parquet\n",
                "shard-00000.parquet\0",
                "shard-00000.npy",
                "shard-0.parquet",
                ["shard-00000.parquet"],
                None,
            )
        ),
        *({**ENTRY, name: value} for name in ("index", "rows", "bytes") for value in (-1, 1.0, "2", True, None)),
        {**ENTRY, "sha256": 5},
    ],
)
def test_an_entry_that_is_no_shard_of_this_folder(entry, tmp_path):
    """By the reader and by the writer, finished or not; nothing outside the folder is looked at."""
    folder = make(tmp_path / "folder").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][1] = entry
    text = json.dumps(manifest)
    (folder / "manifest.json").write_text(text)
    for action in (lambda: ShardReader(folder, "teacher"), lambda: ShardWriter(folder, "teacher", SETTINGS)):
        found = refusal(action)
        assert f"{folder / 'manifest.json'}: a shard's entry is {str(entry)[:80]}, expected" in found
    (folder / "manifest.json").rename(folder / "progress.json")
    for rerun in get_args(Rerun):
        found = refusal(lambda: ShardWriter(folder, "teacher", SETTINGS, rerun=rerun))  # noqa: B023
        assert f"{folder / 'progress.json'}: a shard's entry is" in found
    assert (folder / "progress.json").read_text() == text


def test_a_manifest_of_an_unknown_format(tmp_path):
    make(tmp_path)
    edit(tmp_path / "manifest.json", lambda manifest: manifest.update(format="zip"))
    assert "format is 'zip', expected" in refusal(lambda: ShardReader(tmp_path, "teacher"))


@pytest.mark.parametrize(
    ("name", "value"), [("bits", None), ("bits", 9), ("bits", "8"), ("vocab_size", None), ("vocab_size", -1)]
)
def test_teacher_shards_whose_settings_do_not_say_what_they_hold(name, value, tmp_path):
    make(tmp_path, **{name: value})
    assert f"{name} is {value!r}, expected" in refusal(lambda: ShardReader(tmp_path, "teacher"))


@each_format
def test_a_record_that_contradicts_its_settings_is_refused_by_name(format, tmp_path):
    """The same bytes under another vocabulary: clip-4 has token 4."""
    make(tmp_path, format)
    edit(tmp_path / "manifest.json", lambda manifest: manifest["settings"].update(vocab_size=4))
    reader = ShardReader(tmp_path, "teacher")
    assert len(reader.read(1)) == 2
    text = refusal(lambda: reader.read(2))
    assert f"{tmp_path / reader.shards[2]['name']}, clip-4: a token id of 4 or more" in text


# The mean tail


TAIL = np.full(100, 0.01, np.float32)


def test_the_tail_comes_back(tmp_path):
    make(tmp_path)
    np.save(tmp_path / "tail.npy", TAIL)
    assert np.array_equal(ShardReader(tmp_path, "teacher").tail(), TAIL)


@pytest.mark.parametrize("array", [TAIL[:99], TAIL.astype(np.float64), TAIL.reshape(10, 10), np.array(["x"], object)])
def test_a_tail_of_another_shape_or_type(array, tmp_path):
    make(tmp_path)
    np.save(tmp_path / "tail.npy", array)
    assert str(tmp_path / "tail.npy") in refusal(lambda: ShardReader(tmp_path, "teacher").tail())


def test_a_tail_that_is_missing_or_cut(tmp_path):
    make(tmp_path)
    assert f"{tmp_path / 'tail.npy'}: not readable" in refusal(lambda: ShardReader(tmp_path, "teacher").tail())
    np.save(tmp_path / "tail.npy", TAIL)
    whole = (tmp_path / "tail.npy").read_bytes()
    (tmp_path / "tail.npy").write_bytes(whole[:-3])
    assert f"{tmp_path / 'tail.npy'}: not readable" in refusal(lambda: ShardReader(tmp_path, "teacher").tail())
