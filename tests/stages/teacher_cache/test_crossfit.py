"""A teacher for each fold: it is trained on the other folds, and scores its own."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_makers import rows_of
from makers import make_tiny_whisper, make_utterance_shards, run_captured
from references import assert_is_distribution, reference
from ruamel.yaml import YAML

from cache.errors import PipelineError
from cache.shards import ShardReader
from cache.verify import faults
from stages.shared.subset import Fold, assign_folds, by_hash, choose_groups
from stages.shared.whisper.models import Whisper, load_whisper
from stages.teacher_cache.crossfit import CrossFit
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.worker import ScoringRequest, Worker
from stages.train_student.data import TrainingData
from stages.train_student.settings import AdaptSettings, TrainSettings

CPU = torch.device("cpu")
BOUNDS = {"top_k": 8, "top_p": 0.5, "min_k": 2, "bits": 7}


def make_teacher(folder: Path, seed: int) -> Whisper:
    """Its distributions are peaked, and those of another seed are elsewhere."""
    whisper = load_whisper(str(make_tiny_whisper(folder, seed=seed)), 1)
    with torch.no_grad():
        whisper.model.model.decoder.layer_norm.weight.mul_(30)
    whisper.model.save_pretrained(folder)
    return load_whisper(str(folder), 1)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Whisper, ...]:
    root = tmp_path_factory.mktemp("teachers")
    return tuple(make_teacher(root / str(seed), seed) for seed in (1, 2, 3))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_utterance_shards(tmp_path / "corpus/train", [7, 5, 1], first=0)


def settings(**changes) -> TeacherCacheSettings:
    return TeacherCacheSettings(**{**BOUNDS, "batch_size": 3, "dtype": "fp32", **changes})


def cross_fit(teachers: tuple[Whisper, ...], **changes) -> CrossFit:
    return CrossFit(tuple(ScoringJob(teacher, "cs", settings(**changes), CPU) for teacher in teachers))


# The folds


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_are_of_nearly_equal_size_in_every_prefix_of_the_groups(count):
    """So that within any fraction that is trained on no fold has much more than another."""
    random = np.random.default_rng(0)
    sizes = {f"scene {number}": int(random.integers(1, 40)) for number in range(60)}
    groups = [name for name, size in sizes.items() for _ in range(size)]
    folds = assign_folds(groups, count)
    assert folds == assign_folds(reversed(groups), count)
    assert set(folds.values()) == set(range(1, count + 1))
    for fraction in (0.25, 0.5, 1.0):
        chosen = choose_groups(groups, fraction)
        filled = Counter(folds[name] for name in groups if name in chosen)
        assert max(filled.values()) - min(filled.values()) <= max(sizes.values())
    assert by_hash(sizes) == by_hash(reversed(list(sizes)))


def ids_of(data: TrainingData) -> set[str]:
    return {name for batch in data.batches(2, 0, 0) for name in batch.ids}


@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize("count", [2, 3])
def test_a_teacher_is_trained_on_the_other_folds(count, fraction, corpus, tiny_whisper):
    """Each chosen utterance by all teachers but one; the fraction is chosen as without folds."""
    reader, student = ShardReader(corpus, "utterances"), load_whisper(str(tiny_whisper), 1)
    recipe = TrainSettings(train_fraction=fraction)
    seen = [
        ids_of(TrainingData(reader, None, student, "cs", recipe, Fold(number, count))) for number in range(1, count + 1)
    ]
    times = Counter(name for ids in seen for name in ids)
    assert times == dict.fromkeys(ids_of(TrainingData(reader, None, student, "cs", recipe)), count - 1)


def test_more_folds_than_groups_are_refused(tmp_path, tiny_whisper):
    reader = ShardReader(make_utterance_shards(tmp_path / "train", [3], first=0), "utterances")
    with pytest.raises(PipelineError, match="3 groups, expected at least one for each of 4 folds"):
        TrainingData(reader, None, load_whisper(str(tiny_whisper), 1), "cs", TrainSettings(), Fold(4, 4))


# The cache


@pytest.mark.parametrize("count", [2, 3])
def test_each_distribution_is_that_of_the_teacher_that_has_not_seen_the_line(count, teachers, corpus, tmp_path):
    used = teachers[:count]
    manifest = cache_teacher(cross_fit(used), corpus, tmp_path / "out")
    folds = {
        group: n for n in range(1, count + 1) for group in Fold(n, count).groups(ShardReader(corpus, "utterances"))
    }
    scorers = Counter()
    for row, utterance in zip(rows_of(tmp_path / "out"), rows_of(corpus, "utterances"), strict=True):
        own = used[folds[utterance["group"]] - 1]
        assert row["id"] == utterance["id"]
        assert_is_distribution(row, reference(own, utterance, row["targets"].tolist()), **BOUNDS)
        data = TrainingData(
            ShardReader(corpus, "utterances"), None, own, "cs", TrainSettings(), Fold(folds[utterance["group"]], count)
        )
        assert row["id"] not in ids_of(data)
        scorers[own.model_id] += 1
        for other in used:
            if other is not own:
                with pytest.raises(AssertionError):
                    assert_is_distribution(row, reference(other, utterance, row["targets"].tolist()), **BOUNDS)
    assert len(scorers) == count
    assert manifest["settings"]["teacher"] == [teacher.model_id for teacher in used]
    assert manifest["settings"]["teacher_weights"] == [teacher.fingerprint for teacher in used]
    assert list(faults(tmp_path / "out", ShardReader(corpus, "utterances"))) == []


def test_one_teacher_in_all_folds_gives_the_cache_of_that_teacher(teachers, corpus, tmp_path):
    """Records, what was left out and the mean tail."""
    one, same = tmp_path / "one", tmp_path / "same"
    cache_teacher(ScoringJob(teachers[0], "cs", settings(batch_size=1), CPU), corpus, one)
    cache_teacher(cross_fit((teachers[0], teachers[0]), batch_size=1), corpus, same)
    for path in [*one.glob("shard-*"), one / "left_out.jsonl"]:
        assert path.read_bytes() == (same / path.name).read_bytes()
    np.testing.assert_allclose(np.load(one / "tail.npy"), np.load(same / "tail.npy"), rtol=1e-4)


def test_stopped_and_continued_it_is_the_same(teachers, corpus, tmp_path):
    class StopError(Exception):
        pass

    def stop(done: int, total: int, seconds: float) -> None:
        if done >= 7:
            raise StopError

    cache_teacher(cross_fit(teachers[:2]), corpus, tmp_path / "whole")
    with pytest.raises(StopError):
        cache_teacher(cross_fit(teachers[:2]), corpus, tmp_path / "out", progress=stop)
    assert not (tmp_path / "out/manifest.json").exists()
    cache_teacher(cross_fit(teachers[:2]), corpus, tmp_path / "out")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_another_teacher_or_their_exchange_is_another_cache(teachers, corpus, tmp_path):
    cache_teacher(cross_fit(teachers[:2]), corpus, tmp_path / "out")
    for others in (teachers[1::-1], teachers[1:], teachers):
        with pytest.raises(PipelineError, match="teacher_weights: found"):
            cache_teacher(cross_fit(others), corpus, tmp_path / "out")


def test_the_workers_of_a_cluster_write_the_same(teachers, corpus, tmp_path):
    """Each worker holds all teachers."""
    cache_teacher(cross_fit(teachers[:2]), corpus, tmp_path / "here")
    out, names = tmp_path / "there", tuple(teacher.model_id for teacher in teachers[:2])
    out.mkdir()
    request = ScoringRequest(names, names[0], 1, "cs", settings(), corpus, out)
    for index in (2, 0, 1):
        worker = Worker(request, names, names[0], "cpu", 1)
        assert worker.open()["teacher"] == list(names)
        worker.score(index)
        name = f"shard-{index:05d}.parquet"
        assert (out / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


# The commands


def test_the_settings_of_a_student_have_no_folds():
    with pytest.raises(ValueError, match="folds"):
        TrainSettings(folds=2)
    assert "folds" not in AdaptSettings(folds=2).of_each.model_dump()


@pytest.mark.parametrize(("folds", "steps"), [(1, 12), (2, 6), (3, 8), (4, 9)])
def test_max_steps_are_of_all_utterances(folds, steps):
    """Each of k teachers passes as often over its part, (k - 1) / k of all: two take the steps of one in all."""
    assert AdaptSettings(folds=folds, max_steps=12).of_each.max_steps == steps
    assert AdaptSettings(folds=folds, max_steps=1).of_each.max_steps == 1


def test_two_folds_from_adapt_teacher_to_evaluate(tiny_whisper, tmp_path, monkeypatch, capsys):
    """As many steps in all as one teacher; the cache names both; other numbers of folds are other work."""
    monkeypatch.chdir(tmp_path)
    for split, rows in {"train": [9, 7], "validation": [2], "test": [3]}.items():
        make_utterance_shards(tmp_path / "data/utterances/cs" / split, rows, split)
    adapt = {"epochs": 1, "batch_size": 2, "accumulate": 1, "dtype": "fp32", "max_validation": 1, "folds": 2}
    params = {"student": str(tiny_whisper), "teacher": {"model": str(tiny_whisper), "adapt": adapt}, "device": "cpu"}
    params |= {"audio_window_s": 1, "teacher_cache": {"top_k": 8, "dtype": "fp32"}, "evaluate": {"dtype": "fp32"}}
    YAML().dump(params, tmp_path / "params.yaml")

    def pipeline(*arguments: str) -> tuple[int, str]:
        status, _, error = run_captured(monkeypatch, capsys, *arguments, "--lang", "cs")
        return status, error

    folder = tmp_path / "models/cs/teacher"
    status, error = pipeline("teacher-cache")
    assert (status, "fold-1: no adapted teacher there" in error) == (1, True)
    assert pipeline("adapt-teacher")[0] == 0
    facts = [json.loads((folder / f"fold-{n}/training.json").read_text()) for n in (1, 2)]
    assert [one["settings"]["fold"] for one in facts] == [[1, 2], [2, 2]]
    assert sum(one["training_utterances"] for one in facts) == 16
    assert sum(one["steps"] for one in facts) == pytest.approx(8, abs=1)  # an epoch of all has 8
    weights = [path.read_bytes() for path in sorted(folder.glob("fold-*/model.safetensors"))]
    assert len(set(weights)) == 2
    assert pipeline("adapt-teacher")[0] == 0  # is there already
    assert weights == [path.read_bytes() for path in sorted(folder.glob("fold-*/model.safetensors"))]

    assert pipeline("teacher-cache")[0] == 0
    made = ShardReader(tmp_path / "data/teacher/cs/train", "teacher").provenance
    assert made["teacher"] == ["models/cs/teacher/fold-1", "models/cs/teacher/fold-2"]
    _, output, _ = run_captured(monkeypatch, capsys, "cache", "info", "data/teacher/cs/train")
    assert all(f"teacher/fold-{n}, weights {made['teacher_weights'][n - 1][:12]}" in output for n in (1, 2))
    trained = ("train-student", "--method", "lora-kd", "--max-steps", "2")
    assert pipeline(*trained)[0] == 0
    card = (tmp_path / "models/cs/lora-kd/README.md").read_text()
    assert "| teacher | `models/cs/teacher/fold-1`, `models/cs/teacher/fold-2` |" in card
    status, error = pipeline("evaluate", "--system", "teacher")
    assert (status, "that of the first of 2 folds" in error) == (0, True)
    assert json.loads((tmp_path / "metrics/cs/teacher.json").read_text())["model"] == "models/cs/teacher/fold-1"

    # the corpus changes: the folds may be others, and the teachers have seen what they would score
    make_utterance_shards(tmp_path / "new", [9, 7], "train", first=3)
    (tmp_path / "data/utterances/cs/train").rename(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "data/utterances/cs/train")
    status, error = pipeline("teacher-cache")
    assert (status, "was not trained on the other folds of" in error) == (1, True)
    (tmp_path / "data/utterances/cs/train").rename(tmp_path / "new")
    (tmp_path / "old").rename(tmp_path / "data/utterances/cs/train")

    for folds, left in ((1, []), (3, ["fold-1", "fold-2", "fold-3"]), (2, ["fold-1", "fold-2"])):
        params["teacher"]["adapt"] |= {"folds": folds, "max_steps": 2}
        YAML().dump(params, tmp_path / "params.yaml")
        assert "teacher.adapt.folds: found" in pipeline("adapt-teacher")[1]
        assert pipeline("adapt-teacher", "--update")[0] == 0
        assert sorted(path.name for path in folder.glob("fold-*")) == left
        assert (folder / "training.json").exists() == (folds == 1)
    params["teacher"]["adapt"] = None
    YAML().dump(params, tmp_path / "params.yaml")
    assert "teacher.adapt: found" in pipeline("adapt-teacher")[1]
    assert pipeline("adapt-teacher", "--update")[0] == 0
    assert [path.name for path in folder.iterdir()] == ["teacher.json"]
