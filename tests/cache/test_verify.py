"""Each kind of harm, in both formats and both kinds: it is found, and the file and what is wrong with it are named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cache_makers import LEFT_OUT, VOCAB_SIZE, make_teacher, make_utterances, teacher_record

from cache.distributions import check_distributions, entropies, mass_faults, quantise
from cache.formats import FORMATS
from cache.manifest import manifest_sha256
from cache.npy import npy_bytes
from cache.shards import CODECS, ShardReader, open_shards, write_shard
from cache.verify import faults
from pipeline.commands.cache import _audio_faults
from stages.shared.audio import encode_flac

EACH = [(kind, format) for kind in ("utterances", "teacher") for format in FORMATS]
each_folder = pytest.mark.parametrize(("kind", "format"), EACH, ids=lambda value: value)
of_teacher = pytest.mark.parametrize(("kind", "format"), EACH[2:], ids=lambda value: value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every folder twice: `.../teacher-parquet`, and `.../other/teacher-parquet`, made of other records."""
    root = tmp_path_factory.mktemp("whole")
    for place, seed in ((root, 0), (root / "other", 1)):
        for format in FORMATS:
            utterances = make_utterances(place / f"utterances-{format}", format, first=100 * seed)
            make_teacher(place / f"teacher-{format}", utterances, format, seed)
    return root


@pytest.fixture
def folder(whole: Path, kind: str, format: str, tmp_path: Path) -> Path:
    """To do harm to."""
    return shutil.copytree(whole / f"{kind}-{format}", tmp_path / f"{kind}-{format}")


def found(folder: Path, utterances: Path | None = None) -> list[str]:
    source = ShardReader(utterances, "utterances") if utterances else None
    return list(faults(folder, source, _audio_faults))


def shard(folder: Path, index: int) -> Path:
    return next(folder.glob(f"shard-{index:05d}.*"))


def edit(folder: Path, change: Callable[[dict], object], sign: bool = True) -> None:
    """Changes the manifest; `sign`: with its hash brought up to date, as a forger would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    if sign:
        manifest["sha256"] = manifest_sha256(manifest)
    path.write_text(json.dumps(manifest))


def rewritten(folder: Path, index: int, records: list[dict], **entry: object) -> None:
    """A shard with other records, and a manifest that knows of their bytes; `entry`: what it does not know of."""
    reader = open_shards(folder, check_sizes=False)
    written = write_shard(folder, reader.kind, reader.format, index, records)
    edit(folder, lambda manifest: manifest["shards"][index].update({**written, **entry}))


def records_of(folder: Path, index: int) -> list[dict]:
    rows = open_shards(folder, check_sizes=False).read(index)
    return [{name: _copy(value) for name, value in row.items()} for row in rows]


def _copy(value: object) -> object:
    return value.copy() if isinstance(value, np.ndarray) else value


def assert_named(lines: list[str], path: Path, *parts: str) -> None:
    """One of the lines begins with the file and has all parts; none is more than a line."""
    assert all("\n" not in line for line in lines)
    own = [line for line in lines if line.startswith(str(path))]
    assert any(all(part in line for part in parts) for line in own), "\n".join(lines)


@each_folder
def test_a_whole_folder_has_no_faults(kind, format, whole):
    for place in (whole, whole / "other"):
        utterances = place / f"utterances-{format}" if kind == "teacher" else None
        assert found(place / f"{kind}-{format}", utterances) == []


# Files


@each_folder
def test_a_flipped_bit_anywhere(kind, format, folder):
    """In shards, the mean tail and the manifest; every 211th byte of them, each with another bit."""
    files = [path for path in sorted(folder.iterdir()) if path.name != "left_out.jsonl"]
    assert len(files) == (4 if kind == "utterances" else 5)
    for path in files:
        data = path.read_bytes()
        for offset in range(0, len(data), 211 if path.suffix != ".tar" else 2003):
            path.write_bytes(data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :])
            assert_named(found(folder), path)
        path.write_bytes(data)
    assert found(folder) == []


@each_folder
def test_a_truncated_shard(kind, format, folder):
    path = shard(folder, 1)
    data = path.read_bytes()
    for length in (len(data) - 1, len(data) // 2, 0):
        path.write_bytes(data[:length])
        assert_named(found(folder), path, f"{length} bytes, expected {len(data)}")


@each_folder
def test_a_missing_shard(kind, format, folder):
    path = shard(folder, 1)
    size = path.stat().st_size
    path.unlink()
    assert found(folder) == [f"{path}: missing, expected {size} bytes"]


@each_folder
def test_swapped_shards(kind, format, folder):
    """Their sizes may even be the same: it is said which shard lies where."""
    one, two = shard(folder, 0), shard(folder, 2)
    data = one.read_bytes(), two.read_bytes()
    two.write_bytes(data[0])
    one.write_bytes(data[1])
    lines = found(folder)
    assert_named(lines, one, f"holds what was written as {two.name}, expected its own records")
    assert_named(lines, two, f"holds what was written as {one.name}, expected its own records")


@each_folder
def test_a_foreign_shard(kind, format, folder, whole):
    path = shard(folder, 1)
    shutil.copy(shard(whole / "other" / folder.name, 1), path)
    lines = found(folder)
    assert_named(lines, path, "expected")
    assert [line for line in lines if not line.startswith(str(path))] == []


@each_folder
def test_reordered_records(kind, format, folder):
    """As the manifest says it; the utterance shards say it even where the manifest was brought into line."""
    path = shard(folder, 0)
    write_shard(folder, kind, format, 0, records_of(folder, 0)[::-1])
    assert_named(found(folder), path, "expected")
    content = json.loads((folder / "manifest.json").read_text())["shards"][0]["content"]
    rewritten(folder, 0, records_of(folder, 0), content=content)
    assert_named(found(folder), path, "other records than were written: content", f"expected {content[:12]}")


@of_teacher
def test_records_in_another_order_than_the_utterances(kind, format, folder, whole):
    rewritten(folder, 0, records_of(folder, 0)[::-1])
    assert found(folder) == []
    utterances = whole / f"utterances-{format}"
    expected = (
        f"record 0 is 'clip-002', expected 'clip-000' as in {shard(utterances, 0)}, the same ids in another order"
    )
    assert found(folder, utterances) == [f"{shard(folder, 0)}: {expected}"]


@each_folder
@pytest.mark.parametrize("name", [".tmp-123-shard-00001.parquet", "part-00001.npy", "progress.json"])
def test_a_leftover(kind, format, name, folder):
    (folder / name).write_text("{}")
    assert found(folder) == [f"{folder / name}: left over from an interrupted run, expected only finished files"]


@each_folder
def test_a_shard_that_is_not_listed(kind, format, folder):
    stray = folder / f"shard-00003{CODECS[format].SUFFIX}"
    shutil.copy(shard(folder, 0), stray)
    assert_named(found(folder), stray, "a shard that manifest.json does not list, expected 3 shards")


@each_folder
def test_files_of_others_are_none_of_its_business(kind, format, folder):
    (folder / "README.md").write_text("mine")
    (folder / ".gitignore").write_text("/*")
    assert found(folder) == []


@each_folder
def test_all_faults_are_named_not_only_the_first(kind, format, folder):
    cut, gone, flipped = (shard(folder, index) for index in range(3))
    cut.write_bytes(cut.read_bytes()[:-5])
    gone.unlink()
    flipped.write_bytes(flipped.read_bytes()[:-40] + b"x" + flipped.read_bytes()[-39:])
    (folder / "progress.json").write_text("{}")
    (folder / "left_out.jsonl").write_text("")
    lines = found(folder)
    for path in (cut, gone, flipped, folder / "progress.json", folder / "left_out.jsonl"):
        assert_named(lines, path)


def test_a_folder_that_is_none(tmp_path):
    assert found(tmp_path / "nowhere") == [
        f"{tmp_path / 'nowhere'} holds no manifest.json: expected a finished folder of utterance or teacher shards"
    ]


# The manifest against what is there


@each_folder
def test_a_manifest_that_was_edited(kind, format, folder):
    edit(folder, lambda manifest: manifest["settings"].update(language="sk"), sign=False)
    assert_named(found(folder), folder / "manifest.json", "it was changed after it was written")


@of_teacher
def test_totals_that_do_not_add_up(kind, format, folder):
    def change(manifest):
        manifest["tokens"] += 1
        manifest["shards"][2]["tokens"] += 2
        manifest["shards"][2]["word_errors"] += 3

    before = ShardReader(folder, "teacher")
    tokens, errors = before.shards[2]["tokens"], before.shards[2]["word_errors"]
    edit(folder, change)
    lines = found(folder)
    total = before.manifest["tokens"]
    assert_named(lines, folder / "manifest.json", f"tokens is {total + 1}, expected {total + 2}")
    assert_named(lines, shard(folder, 2), f"tokens is {tokens}, expected {tokens + 2}")
    assert_named(lines, shard(folder, 2), f"word_errors is {errors}, expected {errors + 3}")


@each_folder
def test_another_list_of_what_was_left_out(kind, format, folder):
    path = folder / "left_out.jsonl"
    path.write_text(path.read_text() * 2)
    assert_named(found(folder), path, "lists {", ": 2}", "manifest.json says")
    path.unlink()
    assert found(folder) == [f"{path}: no such file"]


@of_teacher
def test_a_record_without_targets_is_listed_as_left_out(kind, format, folder):
    edit(folder, lambda manifest: manifest["shards"][1].update(left_out=[]))
    assert_named(found(folder), shard(folder, LEFT_OUT // 3), "1 records without targets, manifest.json lists 0")


@each_folder
def test_an_id_that_is_there_twice(kind, format, folder):
    rows = records_of(folder, 2)
    rows[1]["id"] = "clip-000" if kind == "teacher" else records_of(folder, 0)[0]["id"]
    rewritten(folder, 2, rows)
    lines = found(folder)
    assert lines == [f"{shard(folder, 2)}, {rows[1]['id']}: the id is there twice, first in {shard(folder, 0).name}, "
                     "expected it once"]  # fmt: skip


# Audio


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["utterances"])
def test_audio_that_is_not_what_its_record_says(kind, format, folder):
    rows = records_of(folder, 0)
    rows[0]["audio"] = b"fLaC" + rows[0]["audio"][20:]
    rows[1]["audio"] = rows[2]["audio"]
    rows[2]["audio_sha256"] = "0" * 64
    rewritten(folder, 0, rows)
    lines = found(folder)
    ids = [f"{shard(folder, 0)}, {row['id']}" for row in rows]
    assert_named(lines, Path(ids[0]), "not readable FLAC")
    assert_named(lines, Path(ids[1]), "claims 0.200 s, expected at most 0.150 s")
    assert_named(lines, Path(ids[2]), "audio_sha256 of the samples", f"expected {'0' * 64}")
    rows = records_of(folder, 1)
    rows[0]["audio"] = encode_flac(np.zeros(160, np.float32))
    rewritten(folder, 1, rows)
    assert_named(found(folder), Path(f"{shard(folder, 1)}, {rows[0]['id']}"), "0.01 seconds of audio", "expected 0.1")


# Distributions


def harmed(name: str) -> dict:
    """A record in which one thing is wrong."""
    record = teacher_record(2)
    ends = record["top_counts"].astype(int).cumsum()
    first, second = slice(0, ends[0]), slice(ends[0], ends[1])
    if name == "rise":
        record["top_ids"][second] = record["top_ids"][second][::-1]
        record["top_probs"][second] = record["top_probs"][second][::-1]
    elif name == "twice":
        record["top_ids"][1] = record["top_ids"][0]
    elif name == "less":
        record["tail_log_probs"][2] = -9
        record["top_probs"][ends[1] : ends[2]] = 20
    elif name == "more":
        record["top_probs"][first] = 250
    elif name == "none":
        record["top_counts"] = np.array([0, ends[1], *record["top_counts"][2:]], np.uint16)
    elif name == "vocabulary":
        record["top_ids"][3] = VOCAB_SIZE
    elif name == "mean":
        record["mean_log_prob"] = 0.5
    elif name == "lengths":
        record["tail_log_probs"] = record["tail_log_probs"][:-1]
    return record


@of_teacher
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rise", "probabilities that rise, expected the most likely first, at 1 of 5 positions, the first at 1"),
        ("twice", "a token that is kept twice, at 1 of 5 positions, the first at 0"),
        ("less", "probabilities that sum to less than 1, at 1 of 5 positions, the first at 2"),
        ("more", "probabilities that sum to more than 1, at 1 of 5 positions, the first at 0"),
        ("none", "no kept token, at 1 of 5 positions, the first at 0"),
        ("vocabulary", f"a token id of {VOCAB_SIZE} or more"),
        ("mean", "mean_log_prob is 0.5 for 5 targets"),
        ("lengths", "4 tail_log_probs for 5 targets"),
    ],
)
def test_a_distribution_that_no_teacher_can_have_meant(kind, format, name, text, folder):
    rows = records_of(folder, 0)
    rows[2] = {"id": rows[2]["id"], **harmed(name)}
    rewritten(folder, 0, rows)
    assert_named(found(folder), Path(f"{shard(folder, 0)}, clip-002"), text)
    # the record is good but for that
    assert len(harmed(name)["targets"]) == 5
    rows[2] = {"id": rows[2]["id"], **harmed("")}
    rewritten(folder, 0, rows)
    assert found(folder) == []


def test_no_true_distribution_is_a_fault():
    """Rounding explains what a sum lacks of one, at any number of bits."""
    for number in range(300):
        record = teacher_record(number)
        assert mass_faults(record, 8, 6) == []
    random = np.random.default_rng(0)
    for bits in (4, 6, 8):
        probs = np.sort(random.dirichlet(np.full(500, 0.1), 200))[:, ::-1]
        for kept in (1, 7, 500):
            tails = probs[:, kept:].sum(1)
            record = {
                "targets": np.zeros(200, np.uint16),
                "top_counts": np.full(200, kept, np.uint16),
                "top_ids": np.tile(np.arange(kept), 200).astype(np.uint16),
                "top_probs": quantise(probs[:, :kept].ravel(), bits),
                "tail_log_probs": np.log(np.maximum(tails, 1e-40)).astype(np.float32),
            }
            check_distributions(record, {"vocab_size": 500, "bits": bits}, "")
            assert mass_faults(record, bits, 500) == []


def test_entropy_of_the_bins():
    record = teacher_record(3)
    counts = record["top_counts"].astype(int)
    for position, entropy in enumerate(entropies(record, 8)):
        start = counts[:position].sum()
        bins = [(code / 255) ** 4 for code in record["top_probs"][start : start + counts[position]].tolist()]
        bins.append(float(np.exp(record["tail_log_probs"][position])))
        p = np.array(bins) / sum(bins)
        assert entropy == pytest.approx(-(p * np.log(p)).sum(), rel=1e-5)


# What all shards of a teacher share


@of_teacher
def test_a_mean_tail_that_is_none(kind, format, folder):
    path = folder / "tail.npy"
    good = path.read_bytes()
    for data, text in (
        (good[:-4], f"{len(good) - 4} bytes, expected {len(good)}"),
        (npy_bytes(np.full(VOCAB_SIZE, 0.5, np.float32)), "sums to 60.0000"),
        (npy_bytes(np.zeros(VOCAB_SIZE, np.float64)), "float64"),
        (b"", "0 bytes"),
    ):
        path.write_bytes(data)
        assert_named(found(folder), path, text)
    path.unlink()
    assert_named(found(folder), path, f"missing, expected {len(good)} bytes")


@of_teacher
def test_a_teacher_of_other_utterances(kind, format, folder, whole):
    other = whole / "other" / f"utterances-{format}"
    lines = found(folder, other)
    assert_named(lines, folder / "manifest.json", "made from utterances", f"the fingerprint of {other}")
    for index in range(3):
        assert_named(lines, shard(folder, index), "expected 'clip-10", f"as in {shard(other, index)}")


@of_teacher
def test_a_teacher_fits_its_utterances_in_either_format(kind, format, folder, whole):
    """The fingerprint is that of the records."""
    for other in FORMATS:
        assert found(folder, whole / f"utterances-{other}") == []


@of_teacher
def test_utterances_that_are_damaged_themselves(kind, format, folder, whole, tmp_path):
    utterances = shutil.copytree(whole / f"utterances-{format}", tmp_path / "utterances")
    source = ShardReader(utterances, "utterances")
    path = shard(utterances, 1)
    path.unlink()
    assert_named(list(faults(folder, source)), path, "cannot be read (No such file or directory)")
