"""`pipeline cache`: numbers that were worked out by other means, bytes that come back, differences that were planted."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_makers import (
    BITS,
    SETTINGS,
    VOCAB_SIZE,
    distributions,
    kept,
    make_teacher,
    make_utterances,
    rows_of,
    same,
)
from makers import run_captured
from sources import ROOT
from training import train_one

from cache import storage
from cache.convert import convert
from cache.diff import compare
from cache.errors import PipelineError
from cache.formats import FORMATS
from cache.info import statistics
from cache.shards import ShardReader, ShardWriter, open_shards
from cache.verify import faults
from stages.shared.whisper.models import load_whisper
from stages.train_student.settings import TrainSettings

OTHER = {"parquet": "webdataset", "webdataset": "parquet"}
formats = pytest.mark.parametrize("format", FORMATS)
kinds = pytest.mark.parametrize("kind", ["utterances", "teacher"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    for format in FORMATS:
        utterances = make_utterances(root / f"utterances-{format}", format)
        make_teacher(root / f"teacher-{format}", utterances, format)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def converted(folder: Path, out: Path, format: str, **options) -> Path:
    convert(open_shards(folder), out, format, **options)
    return out


# Convert


@formats
@kinds
def test_there_and_back_gives_the_same_bytes(kind, format, whole, tmp_path):
    source = whole / f"{kind}-{format}"
    there = converted(source, tmp_path / "there", OTHER[format])
    assert same(rows_of(there, kind), rows_of(source, kind))
    assert contents(converted(there, tmp_path / "back", format)) == contents(source)


@formats
@kinds
def test_converted_shards_are_those_that_would_have_been_made(kind, format, whole, tmp_path):
    """The other fixture was written in that format to begin with; its mean tail, totals and all."""
    out = converted(whole / f"{kind}-{OTHER[format]}", tmp_path / "out", format)
    assert contents(out) == contents(whole / f"{kind}-{format}")


@formats
def test_converted_utterances_still_fit_their_teacher(format, whole, tmp_path):
    utterances = converted(whole / f"utterances-{format}", tmp_path / "out", OTHER[format])
    reader = ShardReader(utterances, "utterances")
    assert reader.fingerprint() == ShardReader(whole / f"teacher-{format}", "teacher").provenance["utterances"]
    assert list(faults(whole / f"teacher-{format}", reader)) == []


KILLED = """
    # Is killed when the second of three shards is done.
    import os, signal
    from pathlib import Path
    from cache.convert import convert
    from cache.shards import open_shards
    convert(open_shards(Path({source!r})), Path({out!r}), "parquet",
            progress=lambda done, total, note: done > 3 and os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_killed_conversion_goes_on(whole, tmp_path):
    source, out = whole / "teacher-webdataset", tmp_path / "out"
    script = textwrap.dedent(KILLED.format(source=str(source), out=str(out)))
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert len(before) == 2
    (out / ".tmp-1-shard-00002.parquet").write_bytes(b"half")
    seen: list[int] = []
    convert(open_shards(source), out, "parquet", progress=lambda done, total, note: seen.append(done))
    assert seen == [5, 8]
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert contents(out) == contents(whole / "teacher-parquet")
    convert(open_shards(source), out, "parquet", progress=lambda done, total, note: seen.append(done))
    assert seen == [5, 8, 8]


@formats
def test_a_damaged_shard_is_not_converted(format, whole, tmp_path):
    """Nor is one whose records are good, but not those of the manifest."""
    source = shutil.copytree(whole / f"teacher-{format}", tmp_path / "source")
    name = ShardReader(source, "teacher").shards[0]["name"]
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["shards"][0]["content"] = "0" * 64
    (source / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PipelineError, match=rf"{name}: its content is not what was written: `pipeline cache verify"):
        converted(source, tmp_path / "out", OTHER[format])
    assert not list((tmp_path / "out").glob("shard-*"))


@formats
def test_a_damaged_mean_tail_is_not_converted(format, whole, tmp_path):
    source = shutil.copytree(whole / f"teacher-{format}", tmp_path / "source")
    data = (source / "tail.npy").read_bytes()
    (source / "tail.npy").write_bytes(data[:-1] + b"\1")
    with pytest.raises(PipelineError, match=r"tail.npy: its content is not what was written"):
        converted(source, tmp_path / "out", OTHER[format])
    assert not (tmp_path / "out/manifest.json").exists()


@formats
def test_other_records_under_the_same_settings_are_not_taken_for_done(format, whole, tmp_path):
    """Two machines may round differently."""
    out = make_teacher(tmp_path / "out", whole / f"utterances-{format}", OTHER[format], seed=1)
    before = contents(out)
    with pytest.raises(PipelineError, match="same settings, but other records"):
        converted(whole / f"teacher-{format}", out, OTHER[format])
    assert contents(out) == before
    converted(whole / f"teacher-{format}", out, OTHER[format], rerun="update")
    assert contents(out) == contents(whole / f"teacher-{OTHER[format]}")


def test_into_the_same_folder_and_over_other_settings(whole, tmp_path):
    source = shutil.copytree(whole / "teacher-parquet", tmp_path / "source")
    before = contents(source)
    with pytest.raises(PipelineError, match="expected another folder"):
        converted(source, tmp_path / "x/../source", "parquet", rerun="update")
    assert contents(source) == before
    out = shutil.copytree(whole / "utterances-parquet", tmp_path / "out")
    with pytest.raises(PipelineError, match="made with other settings .*--restart"):
        converted(source, out, "webdataset")
    converted(source, out, "webdataset", rerun="update")
    assert contents(out) == contents(whole / "teacher-webdataset")


# Info


@formats
def test_statistics_of_a_teacher(format, whole):
    """Against sums over plain lists; quantiles against sorting."""
    folder = whole / f"teacher-{format}"
    found = statistics(open_shards(folder))
    rows = rows_of(folder)
    counts = [count for row in rows for count in row["top_counts"].tolist()]
    masses = [1 - np.exp(float(tail)) for row in rows for tail in row["tail_log_probs"]]
    entropies = []
    for row in rows:
        ends = np.cumsum(row["top_counts"], dtype=int)
        for position, end in enumerate(ends):
            codes = row["top_probs"][end - row["top_counts"][position] : end].astype(float)
            bins = np.append((codes / (2**BITS - 1)) ** 4, np.exp(float(row["tail_log_probs"][position])))
            bins /= bins.sum()
            entropies.append(-(bins * np.log(bins)).sum())
    size = sum(path.stat().st_size for path in folder.glob("shard-*"))
    assert found["tokens"] == len(counts) == len(masses)
    assert found["bytes"] == size
    assert found["bytes_per_token"] == pytest.approx(size / len(counts))
    assert found["kept_per_token"]["mean"] == pytest.approx(np.mean(counts))
    assert found["kept_per_token"]["median"] == np.sort(counts)[-(-len(counts) // 2) - 1]
    assert found["mass_kept"]["mean"] == pytest.approx(np.mean(masses), abs=1e-6)
    for name, share in (("p5", 0.05), ("p95", 0.95)):
        assert found["mass_kept"][name] == pytest.approx(np.quantile(masses, share, method="inverted_cdf"), abs=1e-4)
    assert found["entropy_nats"] == pytest.approx(np.mean(entropies), rel=1e-5)
    scored = [row for row in rows if row["mean_log_prob"] is not None]
    total = sum(row["mean_log_prob"] * len(row["targets"]) for row in scored)
    assert found["mean_log_prob"] == pytest.approx(total / len(counts))
    assert found["teacher_wer"] == sum(row["word_errors"] for row in scored) / sum(row["words"] for row in scored)
    assert found["left_out"] == {"too_long": 1}
    assert found["utterances"] == 8
    assert found["settings"]["top_k"] == SETTINGS["top_k"]


def test_statistics_of_utterances(whole):
    found = statistics(open_shards(whole / "utterances-parquet"))
    rows = rows_of(whole / "utterances-parquet", "utterances")
    assert found["utterances"] == len(rows) == 8
    assert found["hours"] == pytest.approx(sum(row["seconds"] for row in rows) / 3600)
    assert found["speakers"] == len({row["speaker"] for row in rows})
    assert found["untranscribed"] == 0
    assert found["left_out"] == {"silent": 1}


def test_statistics_do_not_hold_the_folder(whole, monkeypatch):
    """Each shard's records are gone when the next is read."""
    import gc
    import weakref

    reader, seen = open_shards(whole / "teacher-parquet"), []
    read = ShardReader.read

    def watched(self, index, only=()):
        gc.collect()
        assert not any(reference() is not None for reference in seen)
        records = read(self, index, only)
        seen.extend(weakref.ref(record["top_ids"]) for record in records)
        return records

    monkeypatch.setattr(ShardReader, "read", watched)
    statistics(reader)
    assert len(seen) == 8


def test_statistics_of_nothing(tmp_path):
    writer = ShardWriter(tmp_path, "teacher", SETTINGS)
    writer.finish(left_out={})
    found = statistics(open_shards(tmp_path))
    assert found["tokens"] == 0
    assert found["bytes_per_token"] is found["entropy_nats"] is found["mass_kept"]["mean"] is None


# Diff


def altered(folder: Path, out: Path, change, **settings) -> Path:
    """A copy in which `change` was applied to each record; None strikes it out."""
    source = open_shards(folder)
    writer = ShardWriter(out, source.kind, {**source.provenance, **settings}, source.format)
    for index, entry in enumerate(source.shards):
        rows = [row for row in map(change, source.read(index)) if row is not None]
        writer.write(index, rows, seconds=entry["seconds"], left_out=entry.get("left_out", []))
    for path in (folder / "tail.npy", folder / "left_out.jsonl"):
        if path.exists():
            shutil.copy(path, out)
    own = {name: source.manifest[name] for name in ("left_out", "tail") if name in source.manifest}
    writer.finish(**own)
    return out


def differences(one: Path, other: Path) -> dict:
    return compare(open_shards(one), open_shards(other))


@kinds
def test_the_same_records_in_two_formats_are_equal(kind, whole):
    found = differences(whole / f"{kind}-parquet", whole / f"{kind}-webdataset")
    assert found["equal"]
    assert found["same"] == 8
    if kind == "teacher":
        assert found["distributions"]["js_max"] == 0
        assert found["distributions"]["same_top"] == 1


def dense(row: dict, position: int, union: list[int]) -> np.ndarray:
    """The bins of one position, with zero for a token that it does not keep, scaled to sum to one."""
    start = int(row["top_counts"][:position].sum())
    probs = dict.fromkeys(union, 0.0)
    for number in range(start, start + int(row["top_counts"][position])):
        probs[int(row["top_ids"][number])] = (int(row["top_probs"][number]) / 255) ** 4
    bins = np.array([*probs.values(), np.exp(float(row["tail_log_probs"][position]))])
    return bins / bins.sum()


def js(p: np.ndarray, q: np.ndarray) -> float:
    m = (p + q) / 2
    return sum(0.5 * float((r[r > 0] * np.log(r[r > 0] / m[r > 0])).sum()) for r in (p, q))


def ids_at(row: dict, position: int) -> list[int]:
    start = int(row["top_counts"][:position].sum())
    return row["top_ids"][start : start + int(row["top_counts"][position])].tolist()


def test_distances_between_distributions(whole, tmp_path):
    """Other distributions over the same targets, against dense ones worked out position by position."""

    def change(row):
        if not len(row["targets"]):
            return row
        number = int(row["id"].removeprefix("clip-"))
        near, far = distributions(number, len(row["targets"])), distributions(number + 50, len(row["targets"]))
        return {**row, **kept(0.8 * near + 0.2 * far)}

    one = whole / "teacher-parquet"
    other = altered(one, tmp_path / "other", change)
    found = differences(one, other)["distributions"]
    distances, tops, logs = [], [], []
    for row, changed in zip(rows_of(one), rows_of(other), strict=True):
        for position in range(len(row["targets"])):
            ids = [ids_at(each, position) for each in (row, changed)]
            union = sorted({*ids[0], *ids[1]})
            p, q = dense(row, position, union), dense(changed, position, union)
            distances.append(js(p, q))
            tops.append(ids[0][0] == ids[1][0])
            both = [place for place, token in enumerate(union) if token in ids[0] and token in ids[1]]
            logs += [abs(np.log(p[place] / q[place])) for place in both if max(p[place], q[place]) > 0.01]
    assert 0 < np.mean(tops) < 1
    assert found["positions"] == len(distances) == 33
    assert found["js_mean"] == pytest.approx(np.mean(distances), rel=1e-5)
    assert found["js_max"] == pytest.approx(np.max(distances), rel=1e-5)
    assert found["js_mean_of_common"] < found["js_mean"]
    assert found["same_top"] == np.mean(tops)
    assert found["log_prob_max"] == pytest.approx(np.max(logs), rel=1e-4)


def test_the_same_teacher_with_fewer_tokens(whole, tmp_path):
    """What one keeps and the other does not counts as a difference; over what both keep there is none."""

    def fewer(row):
        if not len(row["targets"]):
            return row
        number = int(row["id"].removeprefix("clip-"))
        return {**row, **kept(distributions(number, len(row["targets"])), top_k=3)}

    found = differences(whole / "teacher-parquet", altered(whole / "teacher-parquet", tmp_path / "a", fewer, top_k=3))
    assert found["settings"] == {"top_k": [6, 3]}
    assert set(found["fields"]) == {"top_counts", "top_ids", "top_probs", "tail_log_probs"}
    assert found["distributions"]["js_mean"] > 0.01
    assert found["distributions"]["js_mean_of_common"] < 1e-4  # of rounding
    assert found["distributions"]["same_top"] == 1


def test_records_that_are_missing_other_or_elsewhere(whole, tmp_path):
    def change(row):
        if row["id"] == "clip-001":
            return None
        if row["id"] == "clip-003":
            return {**row, "id": "clip-new"}
        return {**row, "teacher_text": "jiná", "words": 9} if row["id"] == "clip-006" else row

    one = whole / "teacher-parquet"
    found = differences(one, altered(one, tmp_path / "other", change, dtype="bfloat16"))
    assert not found["equal"]
    assert found["settings"] == {"dtype": ["float32", "bfloat16"]}
    assert found["records"] == [8, 7]
    assert found["shards"] == [[3, 2, 3], [2, 2, 3]]
    assert found["only_in_first"] == ["clip-001", "clip-003"]
    assert found["only_in_second"] == ["clip-new"]
    assert found["moved"] == 1  # clip-002
    assert found["fields"] == {"teacher_text": 1, "words": 1}
    assert found["same"] == 5


@kinds
def test_one_bit_of_one_record(kind, whole, tmp_path):
    name, value = {"teacher": ("top_probs", None), "utterances": ("audio", None)}[kind]

    def change(row):
        if row["id"] != "clip-005":
            return row
        value = row[name].copy() if kind == "teacher" else bytearray(row[name])
        value[-1] ^= 1
        return {**row, name: value if kind == "teacher" else bytes(value)}

    one = whole / f"{kind}-parquet"
    found = differences(one, altered(one, tmp_path / "other", change))
    assert found["fields"] == {name: 1}
    assert found["same"] == 7
    assert not found["equal"]


def test_a_mean_tail_that_differs(whole, tmp_path):
    one, other = whole / "teacher-parquet", shutil.copytree(whole / "teacher-parquet", tmp_path / "other")
    tail = ShardReader(one, "teacher").tail()
    tail[:12], tail[12:24] = 2 * tail[:12], 0
    np.save(other / "tail.npy", tail)
    found = differences(one, other)
    assert found["tail"] == pytest.approx(12 / VOCAB_SIZE)
    assert not found["equal"]


def test_folders_of_two_kinds(whole):
    with pytest.raises(PipelineError, match="holds utterances, .* teacher: expected two folders of one kind"):
        differences(whole / "utterances-parquet", whole / "teacher-parquet")


# The command line


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    return partial(run_captured, monkeypatch, capsys)


@pytest.mark.parametrize("command", ["info", "verify", "convert", "diff"])
def test_help_shows_an_example(command, pipeline):
    status, out, err = pipeline("cache", command, "--help")
    assert status == 0
    assert out.partition("Example:\n")[2].strip().startswith(f"pipeline cache {command} ")


def test_info(pipeline, whole):
    status, out, err = pipeline("cache", "info", whole / "utterances-parquet", whole / "teacher-webdataset")
    assert status == 0
    found = dict(line.strip().split(maxsplit=1) for line in out.splitlines() if line.startswith("  "))
    assert found["tokens"] == "33"
    assert "8 in 3 shards" in found["utterances"]
    assert "teacher, webdataset, format version 2" in out
    assert "tiny, weights 0123456789ab" in out
    assert "left out             1 too_long" in out
    assert "top_p 0.9, min_k 2, top_k 6, bits 8" in out
    assert "cache info" in err
    status, out, err = pipeline("cache", "info", "--json", whole / "teacher-parquet")
    assert (status, json.loads(out)[0]["tokens"]) == (0, 33)


def test_verify(pipeline, whole, tmp_path):
    teacher, utterances = whole / "teacher-parquet", whole / "utterances-parquet"
    status, out, err = pipeline("cache", "verify", teacher, utterances, "--utterances", utterances)
    assert status == 0
    assert out == f"{teacher}: 3 shards, 8 records: whole\n{utterances}: 3 shards, 8 records: whole\n"
    broken = shutil.copytree(teacher, tmp_path / "broken")
    (broken / "shard-00001.parquet").unlink()
    (broken / "progress.json").write_text("{}")
    status, out, err = pipeline("cache", "verify", broken, utterances)
    assert status == 1
    assert out.splitlines()[0].startswith(f"{broken / 'progress.json'}: left over")
    assert out.splitlines()[1].startswith(f"{broken / 'shard-00001.parquet'}: missing, expected")
    assert out.splitlines()[2] == f"{utterances}: 3 shards, 8 records: whole"
    assert err.splitlines()[-1].startswith("pipeline: faults: 2, in 1 of 2 folders")


def test_what_a_hostile_shard_says_does_not_command_the_terminal(pipeline, whole, tmp_path):
    """Nor does an id with a line break make two faults of one."""
    other = altered(whole / "teacher-parquet", tmp_path / "other", lambda row: {**row, "id": f"{row['id']}\n\x1b[2J"})
    status, out, err = pipeline("cache", "verify", other, "--utterances", whole / "utterances-parquet")
    assert status == 1
    assert "\x1b" not in out
    assert "'clip-000\\n\\x1b[2J', expected 'clip-000'" in out


def test_convert(pipeline, whole, tmp_path):
    out = tmp_path / "out"
    status, text, err = pipeline("cache", "convert", whole / "teacher-webdataset", out, "--format", "parquet")
    assert status == 0
    size = sum(path.stat().st_size for path in out.glob("shard-*"))
    assert text == f"{out}: 3 parquet shards, 8 records, {size} bytes\n"
    assert pipeline("cache", "convert", whole / "teacher-webdataset", out)[0] == 2


def test_diff(pipeline, whole, tmp_path):
    one = whole / "teacher-parquet"
    status, out, err = pipeline("cache", "diff", one, whole / "teacher-webdataset")
    assert (status, out.splitlines()[-1]) == (0, "equal")
    other = altered(one, tmp_path / "other", lambda row: {**row, "words": None}, top_k=7)
    status, out, err = pipeline("cache", "diff", one, other)
    assert status == 1
    assert not [line for line in err.splitlines() if line.startswith("pipeline:")]  # as diff itself: not a failure
    lines = out.splitlines()
    assert lines[0] == f"records: 8 in {one}, 8 in {other}, 1 the same"
    assert f"setting top_k: 6 in {one}, 7 in {other}" in lines
    assert "field words: differs in 7 records" in lines
    assert lines[-1] == "different"
    status, out, err = pipeline("cache", "diff", "--json", one, other)
    assert (status, json.loads(out)["fields"]) == (1, {"words": 7})


def test_in_a_store(pipeline, whole, tmp_path):
    """A URL stands wherever a folder does, and a fault there has the URL's name."""
    store = f"memory://tools-{tmp_path.name}"
    for kind in ("utterances", "teacher"):
        source = whole / f"{kind}-parquet"
        assert pipeline("cache", "convert", source, f"{store}/{kind}", "--format", "webdataset")[0] == 0
        assert pipeline("cache", "diff", source, f"{store}/{kind}")[0] == 0
    folders = [f"{store}/teacher", f"{store}/utterances"]
    status, out, err = pipeline("cache", "verify", *folders, "--utterances", f"{store}/utterances")
    assert (status, out) == (0, "".join(f"{folder}: 3 shards, 8 records: whole\n" for folder in folders))
    assert pipeline("cache", "convert", f"{store}/teacher", tmp_path / "back", "--format", "parquet")[0] == 0
    assert contents(tmp_path / "back") == contents(whole / "teacher-parquet")
    path = storage.path(f"{store}/teacher/shard-00001.tar")
    path.unlink()
    status, out, err = pipeline("cache", "verify", f"{store}/teacher")
    size = (whole / "teacher-webdataset/shard-00001.tar").stat().st_size
    assert (status, out) == (1, f"{path}: missing, expected {size} bytes\n")
    assert "is missing" in pipeline("cache", "info", f"{store}/teacher")[2]


def test_a_folder_without_shards(pipeline, tmp_path):
    for command in (["info"], ["diff", tmp_path]):
        status, out, err = pipeline("cache", *command, tmp_path / "nowhere")
        assert status == 1
        assert "manifest.json" in err.splitlines()[-1]


def test_nothing_of_torch_is_loaded():
    """To verify a cache is work for any machine."""
    code = "import sys; from pipeline.commands import cache; print(*sorted({'torch', 'transformers'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Before training


@formats
@kinds
def test_hashes_are_checked_on_request(kind, format, whole, tmp_path):
    folder = shutil.copytree(whole / f"{kind}-{format}", tmp_path / "folder")
    ShardReader(folder, kind).check_hashes()
    names = [path.name for path in folder.iterdir() if path.name.startswith("shard-") or path.suffix == ".npy"]
    assert len(names) == (3 if kind == "utterances" else 4)
    for name in names:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-200] + bytes([data[-200] ^ 1]) + data[-199:])
        with pytest.raises(
            PipelineError, match=rf"{name} has sha256 \w+, its manifest says \w+: the shards are damaged"
        ):
            ShardReader(folder, kind).check_hashes()  # its size is right
        (folder / name).write_bytes(data)


def test_train_student_refuses_a_damaged_cache(tiny_whisper, utterances, tmp_path):
    """With a flipped bit that leaves the size as it was: where it is asked for, before anything is trained or claimed."""
    whisper, out = load_whisper(str(tiny_whisper), 1), tmp_path / "run"
    path = utterances / "validation/shard-00000.parquet"
    data = path.read_bytes()

    def train(**settings):
        chosen = TrainSettings(max_steps=1, batch_size=2, accumulate=1, dtype="fp32", **settings)
        return train_one(whisper, "clsr", "cs", utterances, None, out, chosen, torch.device("cpu"))

    footer = data.index(b"parquet-cpp")  # the name of the program that wrote it, which no reader looks at
    path.write_bytes(data[:footer] + b"P" + data[footer + 1 :])
    with pytest.raises(PipelineError, match=r"validation/shard-00000.parquet has sha256 \w+, its manifest says"):
        train(verify=True)
    assert not out.exists()
    assert train()["steps"] == 1
    # what was checked is no part of what the weights depend on
    path.write_bytes(data)
    assert train(verify=True)["steps"] == 1


def test_train_student_takes_verify_from_the_command_line(pipeline, utterances, tiny_whisper, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("pipeline.commands.train.train_on_shards", lambda *given: seen.append(given[4]) or sys.exit(0))
    for flags in ([], ["--verify"]):
        pipeline("train-student", "--lang", "cs", "--method", "clsr", "--student", tiny_whisper, *flags)
    assert [settings.verify for settings in seen] == [False, True]
