"""The cached distributions against a plain forward pass, one clip at a time, and against the utterances they belong to."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import make_utterance, make_utterance_shards
from references import assert_is_distribution, reference, tail_of, targets_of
from sources import ROOT

from cache.errors import PipelineError
from cache.shards import ShardReader, ShardWriter
from stages.shared.whisper.models import Whisper, load_whisper
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings

TOP_K, TOP_P, MIN_K, BITS = 8, 0.5, 4, 8
CPU = torch.device("cpu")


def settings(**changes) -> TeacherCacheSettings:
    return TeacherCacheSettings(
        **{"top_k": TOP_K, "top_p": TOP_P, "min_k": MIN_K, "bits": BITS, "batch_size": 3, "dtype": "fp32", **changes}
    )


def peaked(tiny_whisper: Path) -> Whisper:
    """And listening, as a trained model is: random weights alone are flat, and hardly depend on the audio."""
    whisper = load_whisper(str(tiny_whisper), 1)
    with torch.no_grad():
        whisper.model.model.decoder.layer_norm.weight.mul_(30)
        for layer in whisper.model.model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(20)
    return whisper


@pytest.fixture(scope="module")
def teacher(tiny_whisper: Path) -> Whisper:
    return peaked(tiny_whisper)


def cache(teacher: Whisper, source: Path, out: Path, **options) -> dict:
    changed = {name: options.pop(name) for name in list(options) if name in TeacherCacheSettings.model_fields}
    return cache_teacher(ScoringJob(teacher, "cs", settings(**changed), CPU), source, out, **options)


def rows_of(folder: Path, kind: str = "teacher") -> list[list[dict]]:
    reader = ShardReader(folder, kind)
    return [reader.read(index) for index in range(len(reader.shards))]


def assert_is_reference(row: dict, utterance: dict, whisper: Whisper, **changes) -> None:
    targets = targets_of(whisper, utterance)
    assert row["targets"].tolist() == targets
    bounds = {"top_k": TOP_K, "top_p": TOP_P, "min_k": MIN_K, "bits": BITS, **changes}
    assert_is_distribution(row, reference(whisper, utterance, targets), **bounds)


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_it_is_the_forward_pass(format, teacher, utterances, tmp_path):
    out = tmp_path / "teacher"
    manifest = cache(teacher, utterances / "train", out, format=format)
    sources, cached = rows_of(utterances / "train", "utterances"), rows_of(out)
    assert [[row["id"] for row in shard] for shard in cached] == [[row["id"] for row in shard] for shard in sources]
    assert [len(shard) for shard in cached] == [5, 4]
    for shard, source in zip(cached, sources, strict=True):
        for row, utterance in zip(shard, source, strict=True):
            assert_is_reference(row, utterance, teacher)
    assert manifest["tokens"] == sum(len(row["targets"]) for shard in cached for row in shard)
    assert manifest["left_out"] == {}
    unheard = ("teacher_text", "compression_ratio", "word_errors", "words")
    assert all(row[name] is None for shard in cached for row in shard for name in unheard)
    assert "teacher_wer" not in manifest
    counts = np.concatenate([row["top_counts"] for shard in cached for row in shard])
    assert (counts.min(), counts.max()) == (MIN_K, TOP_K)
    assert set(counts.tolist()) == set(range(MIN_K, TOP_K + 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"top_p": 1.0, "top_k": 30, "min_k": 3},
        {"top_p": 0.01, "top_k": 30, "min_k": 1},
        {"top_p": 0.95, "top_k": 300, "min_k": 8, "bits": 5},
        {"top_p": 0.5, "top_k": 4, "min_k": 8},
    ],
)
def test_how_much_is_kept(changes, teacher, utterances, tmp_path):
    """Never more than top_k, though min_k asks for it."""
    cache(teacher, utterances / "validation", tmp_path / "teacher", **changes)
    sources, cached = (
        sum(rows_of(folder, kind), [])
        for folder, kind in ((utterances / "validation", "utterances"), (tmp_path / "teacher", "teacher"))
    )
    for row, utterance in zip(cached, sources, strict=True):
        fewest = min(changes["min_k"], changes["top_k"])
        assert_is_reference(row, utterance, teacher, **{**changes, "min_k": fewest})


def test_the_mean_tail_is_that_of_the_forward_pass(teacher, utterances, tmp_path):
    """Of all positions together, whatever their mass: the sum of what was not kept, scaled to one."""
    cache(teacher, utterances / "train", tmp_path / "teacher")
    pairs = zip(
        sum(rows_of(tmp_path / "teacher"), []), sum(rows_of(utterances / "train", "utterances"), []), strict=True
    )
    tails = [tail_of(row, reference(teacher, utterance, row["targets"].tolist())) for row, utterance in pairs]
    expected = np.concatenate(tails).sum(0)
    found = ShardReader(tmp_path / "teacher", "teacher").tail()
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-4, atol=1e-9)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert expected.max() > 3 * np.median(expected)  # not flat


def test_the_reference_can_tell(teacher, utterances):
    """Distributions differ from position to position and from clip to clip by far more than the tolerances above."""
    first, second = (
        reference(teacher, utterance, targets_of(teacher, utterance))
        for utterance in rows_of(utterances / "train", "utterances")[0][:2]
    )
    assert np.abs(first[0] - first[1]).max() > 0.5
    assert np.abs(first[0] - second[0]).max() > 0.01
    assert 0.05 < np.exp(np.sort(first)[:, -TOP_K:]).sum(-1).mean() < 0.98


def test_both_formats_hold_the_same_records(teacher, utterances, tmp_path):
    for format in ("parquet", "webdataset"):
        cache(teacher, utterances / "train", tmp_path / format, format=format)
    for one, other in zip(*(sum(rows_of(tmp_path / format), []) for format in ("parquet", "webdataset")), strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    tails = [ShardReader(tmp_path / format, "teacher").tail() for format in ("parquet", "webdataset")]
    assert np.array_equal(*tails)


def test_the_batch_a_clip_is_in_does_not_matter(teacher, utterances, tmp_path):
    for size in (1, 9):
        cache(teacher, utterances / "train", tmp_path / str(size), batch_size=size)
    for one, other in zip(*(sum(rows_of(tmp_path / size), []) for size in ("1", "9")), strict=True):
        assert np.array_equal(one["top_counts"], other["top_counts"])
        np.testing.assert_allclose(one["tail_log_probs"], other["tail_log_probs"], atol=1e-4)
        np.testing.assert_allclose(one["top_probs"].astype(int), other["top_probs"].astype(int), atol=1)
        assert one["mean_log_prob"] == pytest.approx(other["mean_log_prob"], abs=1e-4)
    tails = [ShardReader(tmp_path / size, "teacher").tail() for size in ("1", "9")]
    np.testing.assert_allclose(*tails, rtol=1e-4, atol=1e-9)


def test_in_bfloat16_it_is_near_the_forward_pass(tiny_whisper, teacher, utterances, tmp_path):
    """And leaves torch's precisions as they were."""
    before = torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    manifest = cache(peaked(tiny_whisper), utterances / "train", tmp_path / "teacher", dtype="bf16")
    assert manifest["settings"]["dtype"] == "bfloat16"
    assert (torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision) == before
    pairs = zip(
        sum(rows_of(tmp_path / "teacher"), []), sum(rows_of(utterances / "train", "utterances"), []), strict=True
    )
    differences, first = [], 0
    for row, utterance in pairs:
        targets = targets_of(teacher, utterance)
        log_probs = reference(teacher, utterance, targets)
        differences.append(row["tail_log_probs"] - np.log(tail_of(row, log_probs).sum(-1)))
        first += np.sum(log_probs.argmax(-1) == row["top_ids"][np.cumsum([0, *row["top_counts"]])[:-1]])
        assert row["mean_log_prob"] == pytest.approx(log_probs[range(len(targets)), targets].mean(), abs=0.1)
    assert 1e-5 < np.abs(np.concatenate(differences)).mean() < 0.02
    assert first > 0.9 * manifest["tokens"]


def test_the_manifest_says_what_was_cached(teacher, utterances, tmp_path):
    manifest = cache(teacher, utterances / "train", tmp_path / "teacher")
    found = manifest["settings"]
    tokens = teacher.tokenizer.convert_tokens_to_ids
    expected = {
        "language": "cs",
        "split": "train",
        "teacher": teacher.model_id,
        "teacher_weights": teacher.fingerprint,
        "vocab_size": len(teacher.tokenizer),
        "prompt": [tokens(f"<|{name}|>") for name in ("startoftranscript", "cs", "transcribe", "notimestamps")],
        "audio_window_s": 1,
        "targets": "reference",
        "transcribed": None,
        "top_k": TOP_K,
        "top_p": TOP_P,
        "min_k": MIN_K,
        "bits": BITS,
        "temperature": 1.0,
        "dtype": "float32",
        "utterances": ShardReader(utterances / "train", "utterances").fingerprint(),
    }
    assert expected.items() <= found.items()
    tail = (tmp_path / "teacher/tail.npy").read_bytes()
    assert manifest["tail"] == {"name": "tail.npy", "bytes": len(tail), "sha256": hashlib.sha256(tail).hexdigest()}


# What cannot be scored


@pytest.fixture
def odd(teacher: Whisper, tmp_path: Path) -> Path:
    """Beside two good clips one that is too long, two around the most tokens a decoder reads, and one without a text."""
    positions = teacher.model.config.max_target_positions
    most = (
        positions - 4 + 1 - 2
    )  # prompt and targets without the last one fill them; space and end of text are targets too
    records = [
        make_utterance(0),
        {**make_utterance(1, 1.0), "id": "fits.exactly"},
        {**make_utterance(2, 1.01), "id": "long"},
        {**make_utterance(3), "id": "at-most", "text": "a" * most},
        {**make_utterance(4), "id": "wordy", "text": "a" * (most + 1)},
        {**make_utterance(6), "id": "mute", "text": ""},
    ]
    writer = ShardWriter(tmp_path / "odd", "utterances", {"language": "cs", "split": "train"})
    writer.write(0, records, seconds=5.0)
    writer.write(1, [{**make_utterance(5, 2.0), "id": "alone"}], seconds=2.0)
    writer.finish(corpus="made", language="cs", split="train", seconds=7.0, left_out={})
    return tmp_path / "odd"


def test_what_is_left_out_is_counted_listed_and_an_empty_row(odd, teacher, tmp_path):
    seen: list[int] = []
    manifest = cache(teacher, odd, tmp_path / "teacher", progress=lambda done, *_: seen.append(done))
    assert seen[-1] == 7  # what is left out is done, too
    assert manifest["left_out"] == {"too_long": 2, "too_many_tokens": 1, "no_text": 1}
    listed = [json.loads(line) for line in (tmp_path / "teacher/left_out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in listed] == [
        ("long", "too_long"),
        ("wordy", "too_many_tokens"),
        ("mute", "no_text"),
        ("alone", "too_long"),
    ]
    assert "1.01 s" in listed[0]["detail"]
    cached, sources = sum(rows_of(tmp_path / "teacher"), []), sum(rows_of(odd, "utterances"), [])
    assert [row["id"] for row in cached] == [row["id"] for row in sources]
    for row, utterance in zip(cached, sources, strict=True):
        if row["id"] in ("long", "wordy", "mute", "alone"):
            assert all(row[name] is None or not len(row[name]) for name in row.keys() - {"id"})
        elif row["id"] != "at-most":
            assert_is_reference(row, utterance, teacher)
    assert len(cached[3]["targets"]) == teacher.model.config.max_target_positions - 4 + 1


# Interrupted


class StopError(Exception):
    """Stands for anything that ends a run."""


def stop_at(utterances: int):
    def progress(done: int, total: int, seconds: float) -> None:
        if done >= utterances:
            raise StopError

    return progress


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_interrupted_it_goes_on(teacher, tmp_path):
    source = make_utterance_shards(tmp_path / "source", [2, 1, 2, 1])
    cache(teacher, source, tmp_path / "whole")
    with pytest.raises(StopError):
        cache(teacher, source, tmp_path / "resumed", progress=stop_at(4))
    assert {"progress.json", "part-00000.npy", "part-00001.npy"} <= files_of(tmp_path / "resumed").keys()
    first = (tmp_path / "resumed/shard-00000.parquet").stat().st_mtime_ns
    seen: list[tuple[int, int, float]] = []
    cache(teacher, source, tmp_path / "resumed", progress=lambda *done: seen.append(done))
    assert (tmp_path / "resumed/shard-00000.parquet").stat().st_mtime_ns == first
    assert seen[0][0] == 3  # two shards of two and one were whole
    assert [total for _, total, _ in seen] == [6] * len(seen)
    assert seen == sorted(seen)
    assert seen[-1][0] == 6
    assert seen[-1][2] == pytest.approx(ShardReader(tmp_path / "whole", "teacher").manifest["seconds"])
    whole = files_of(tmp_path / "whole")
    shards = {f"shard-{index:05d}.parquet" for index in range(4)}
    assert whole.keys() == {*shards, "manifest.json", "tail.npy", "left_out.jsonl"}
    assert files_of(tmp_path / "resumed") == whole
    (tmp_path / "resumed/part-00003.npy").write_bytes(b"")  # as if killed after the manifest was written
    cache(teacher, source, tmp_path / "resumed", progress=stop_at(7))  # finished: nothing is done
    assert files_of(tmp_path / "resumed") == whole


CHILD = """
import sys, torch
from pathlib import Path
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.shared.whisper.models import load_whisper
torch.set_num_threads(1)
settings = TeacherCacheSettings(top_k=8, top_p=0.5, min_k=4, bits=8, batch_size=3, dtype="fp32")
teacher = load_whisper(sys.argv[1], 1)
cache_teacher(ScoringJob(teacher, "cs", settings, torch.device("cpu")), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_killed_it_goes_on(tiny_whisper, tmp_path):
    """SIGKILL as soon as the second shard is there; a third is being written or scored."""
    source, out = make_utterance_shards(tmp_path / "source", [3] * 60), tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(tiny_whisper), str(source), str(out)], cwd=ROOT)
    while not (out / "shard-00001.parquet").exists():
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    teacher = load_whisper(str(tiny_whisper), 1)
    cache(teacher, source, out)
    cache(teacher, source, tmp_path / "whole")
    assert not [*out.glob(".tmp-*"), *out.glob("part-*")]
    tails = [ShardReader(folder, "teacher").tail() for folder in (out, tmp_path / "whole")]
    np.testing.assert_allclose(*tails, rtol=1e-4, atol=1e-9)
    killed, whole = sum(rows_of(out), []), sum(rows_of(tmp_path / "whole"), [])
    assert [row["id"] for row in killed] == [row["id"] for row in whole]
    for one, other in zip(killed, whole, strict=True):
        assert np.array_equal(one["targets"], other["targets"])
        np.testing.assert_allclose(one["tail_log_probs"], other["tail_log_probs"], atol=1e-5)


# Refused


def test_another_top_k_is_refused_by_name_and_restart_makes_it_again(teacher, utterances, tmp_path):
    cache(teacher, utterances / "test", tmp_path / "teacher")
    before = files_of(tmp_path / "teacher")
    with pytest.raises(PipelineError, match=r"\(top_k: found 8, wanted 4\).*--restart") as caught:
        cache(teacher, utterances / "test", tmp_path / "teacher", top_k=4)
    assert str(tmp_path / "teacher") in str(caught.value)
    assert files_of(tmp_path / "teacher") == before
    cache(teacher, utterances / "test", tmp_path / "teacher", top_k=4, rerun="update")
    for row in sum(rows_of(tmp_path / "teacher"), []):
        assert row["top_counts"].max() == 4


def test_other_utterances_or_another_teacher_are_refused_by_name(teacher, utterances, tiny_whisper, tmp_path):
    cache(teacher, utterances / "test", tmp_path / "teacher")
    with pytest.raises(PipelineError, match=r"\(split: found 'test', wanted 'train'; utterances: found"):
        cache(teacher, utterances / "train", tmp_path / "teacher")
    other = load_whisper(str(tiny_whisper), 2)
    with pytest.raises(PipelineError, match="audio_window_s: found 1, wanted 2"):
        cache(other, utterances / "test", tmp_path / "teacher")


def test_top_k_must_leave_a_tail(teacher, utterances, tmp_path):
    size = len(teacher.tokenizer)
    with pytest.raises(PipelineError, match=f"top_k is {size}, expected less than the vocabulary's {size}"):
        cache(teacher, utterances / "test", tmp_path / "teacher", top_k=size)
    manifest = cache(teacher, utterances / "test", tmp_path / "teacher", top_k=size - 1, min_k=size - 1)
    assert manifest["settings"]["top_k"] == size - 1
    for row in sum(rows_of(tmp_path / "teacher"), []):
        assert np.isfinite(row["tail_log_probs"]).all()


def test_a_language_without_a_token_is_refused(teacher, utterances, tmp_path):
    with pytest.raises(PipelineError, match="no token for xx.*name a related language"):
        cache_teacher(ScoringJob(teacher, "xx", settings(), CPU), utterances / "test", tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()
