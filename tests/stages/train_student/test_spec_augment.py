"""SpecAugment: transformers' share of masked cells, nothing else touched, the same masks wherever a clip is read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training import train_one
from transformers.models.whisper.modeling_whisper import _compute_mask_indices

from cache.shards import ShardReader
from stages.shared.whisper.models import load_whisper
from stages.train_student.augment import spans, spec_augment
from stages.train_student.data import TrainingData
from stages.train_student.settings import TrainSettings


@pytest.mark.parametrize(("size", "share", "length"), [(300, 0.05, 10), (95, 0.3, 10), (80, 0.1, 10), (80, 0.5, 27)])
def test_as_much_is_masked_as_transformers_masks(size, share, length):
    """Over 4000 draws; a stretch that the share rounds to a fraction of one is there in that fraction of the draws."""
    random = np.random.default_rng(0)
    np.random.seed(0)
    ours = np.array([spans(size, share, length, random) for _ in range(4000)])
    theirs = np.concatenate([_compute_mask_indices((1, size), share, length) for _ in range(4000)])
    assert ours.mean() == pytest.approx(theirs.mean(), rel=0.05)
    assert ours.mean() == pytest.approx(share, rel=0.25) and ours.mean() <= share * 1.02
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.05)  # as often at each place, its ends included


@pytest.mark.parametrize(("size", "share", "length"), [(5, 0.5, 10), (10, 1.0, 10), (11, 1.0, 10), (1, 0.0, 1)])
def test_short_clips(size, share, length):
    masks = [spans(size, share, length, np.random.default_rng(seed)) for seed in range(50)]
    assert {int(mask.sum()) for mask in masks} == ({0} if size < length or not share else {10})


def test_what_is_masked_is_zero_and_nothing_else_is_touched():
    features = torch.randn(80, 500)
    before = features.clone()
    settings = TrainSettings(spec_augment=True, mask_time_prob=0.2, mask_feature_prob=0.2)
    masked = spec_augment(features, 300, (1, 2, 3), settings)
    assert torch.equal(features, before)
    changed = masked != features
    assert (masked[changed] == 0).all()
    columns, rows = changed[:, :300].all(0), changed[:, :300].all(1)
    assert columns.sum() >= 20 and rows.sum() >= 10
    assert torch.equal(changed[:, :300], columns[None] | rows[:, None])  # whole frames and whole mel bins
    assert not changed[:, 300:].any()
    assert torch.equal(masked, spec_augment(features, 300, (1, 2, 3), settings))
    assert not torch.equal(masked, spec_augment(features, 300, (1, 2, 4), settings))


@pytest.mark.parametrize("name", ["mask_time_prob", "mask_time_length", "mask_feature_prob", "mask_feature_length"])
def test_each_setting_changes_the_masks(name):
    features = torch.randn(80, 500)
    chosen = dict(spec_augment=True, mask_time_prob=0.2, mask_feature_prob=0.2)
    changed = {**chosen, name: 0.4 if name.endswith("prob") else 5}
    one, other = (spec_augment(features, 500, (0,), TrainSettings(**each)) for each in (chosen, changed))
    assert not torch.equal(one, other)


def clips(tiny: Path, utterances: Path, *place: int, size: int = 2, **changes) -> dict[str, torch.Tensor]:
    data = TrainingData(
        ShardReader(utterances / "train", "utterances"),
        None,
        load_whisper(str(tiny), 1),
        "cs",
        TrainSettings(**changes),
    )
    batches = [batch for batch in data.batches(size, 0, *place) if batch is not None]
    return {id: features for batch in batches for id, features in zip(batch.ids, batch.features, strict=True)}


def test_a_clip_s_masks_do_not_depend_on_its_batch_or_process(tiny_whisper, utterances):
    """But on the epoch; validation and a run without them see the clip as it is."""
    options = dict(spec_augment=True, mask_time_prob=0.3)
    first = clips(tiny_whisper, utterances, 0, **options)
    plain = clips(tiny_whisper, utterances, 0, mask_time_prob=0.3)
    again = clips(tiny_whisper, utterances, 1, **options)
    assert all(not torch.equal(first[id], plain[id]) for id in first)
    assert sum(not torch.equal(first[id], again[id]) for id in first) >= 8
    for other in (dict(size=5), dict(size=1)):
        found = clips(tiny_whisper, utterances, 0, **other, **options)
        assert all(torch.equal(found[id], first[id]) for id in first)
    shares = [clips(tiny_whisper, utterances, 0, 0, rank, 2, size=3, **options) for rank in range(2)]
    later = clips(tiny_whisper, utterances, 0, 3, **options)
    assert sorted([*shares[0], *shares[1]]) == sorted(first) and len(later) == 3
    for part in (*shares, later):
        assert all(torch.equal(part[id], first[id]) for id in part)


def test_a_run_with_it_is_another_run_and_resumes_bit_for_bit(tiny_whisper, utterances, tmp_path):
    class StopError(Exception):
        pass

    def stop(done: int, total: int, losses: dict) -> None:
        if done == 3:
            raise StopError

    def train(name: str, on: bool, **options) -> dict[str, bytes]:
        recipe = dict(
            epochs=2, batch_size=2, accumulate=2, learning_rate=3e-3, log_every=1, save_every=2, max_validation=2
        )
        settings = TrainSettings(dtype="fp32", spec_augment=on, mask_time_prob=0.3, **recipe)
        whisper, out = load_whisper(str(tiny_whisper), 1), tmp_path / name
        train_one(whisper, "clsr", "cs", utterances, None, out, settings, torch.device("cpu"), **options)
        return {path.name: path.read_bytes() for path in out.iterdir()}

    whole, plain = train("whole", True), train("plain", False)
    assert whole["experts.safetensors"] != plain["experts.safetensors"]
    with pytest.raises(StopError):
        train("stopped", True, progress=stop)
    assert train("stopped", True) == whole
