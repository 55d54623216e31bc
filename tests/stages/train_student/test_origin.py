"""What a run and a measurement say of their data: by it the report finds what they can be compared with."""

import csv
from pathlib import Path

import pytest
import torch
from prepare_makers import record, tone
from training import train_one

from cache.shards import ShardReader
from stages.evaluate.run import Subject, evaluate
from stages.evaluate.settings import EvaluateSettings
from stages.prepare.corpora import common_voice
from stages.prepare.corpora.common_voice import CommonVoiceSettings
from stages.prepare.run import prepare
from stages.prepare.settings import PrepareSettings
from stages.shared.student.loading import LoadedModel
from stages.shared.whisper.models import load_whisper
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.train_student.settings import TrainSettings

CPU = torch.device("cpu")
TABLES = {"train": 6, "dev": 2, "test": 4}


@pytest.fixture
def utterances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Common Voice release of which the subset takes three; one recording of each table is not there."""
    for name, count in TABLES.items():
        rows = []
        for number in range(count):
            clip = f"{name}{number}.wav"
            if number:
                record(tmp_path / "cv/cs/clips" / clip, tone(0.5, hertz=200.0 + 10 * number + 100 * len(name)))
            rows.append([f"{name}-{number}", clip, f"bon dia {number}", 0 if number == 0 else 5, 0])
        with open(tmp_path / "cv/cs" / f"{name}.tsv", "w", encoding="utf-8") as file:
            table = csv.writer(file, delimiter="\t", lineterminator="\n")
            table.writerows([["client_id", "path", "sentence", "up_votes", "down_votes"], *rows])
    monkeypatch.setitem(common_voice.SUBSETS, "3k", 3)
    settings = CommonVoiceSettings(corpus="common-voice", path=tmp_path / "cv", subset="3k")
    prepare(settings, PrepareSettings(), "cs", tmp_path / "cs", 1)
    return tmp_path / "cs"


def test_a_run_says_where_its_utterances_and_its_teacher_come_from(utterances, tiny_whisper, tmp_path):
    teacher, job_settings = tmp_path / "teacher", TeacherCacheSettings(top_k=8, dtype="fp32")
    job = ScoringJob(load_whisper(str(tiny_whisper), 1), "cs", job_settings, CPU)
    cache_teacher(job, utterances / "train", teacher)
    settings = TrainSettings(max_steps=1, batch_size=2, kd_divergence="kl", dtype="fp32")
    whisper = load_whisper(str(tiny_whisper), 1)
    result = train_one(whisper, "clsr-kd", "cs", utterances, teacher, tmp_path / "run", settings, CPU)
    assert result["data"] == {
        "cs": {
            "corpus": "common-voice",
            "corpus_utterances": 6,
            "subset": "3k",
            "teacher": str(tiny_whisper),
            "targets": "reference",
        }
    }
    assert result["training_utterances"] == 3
    assert result["changes"] == {"max_steps": 1, "batch_size": 2, "kd_divergence": "kl"}


def test_metrics_say_how_many_utterances_the_corpus_has(utterances, tiny_whisper, tmp_path):
    model = LoadedModel(load_whisper(str(tiny_whisper), 1), None)
    subject, settings = Subject("cs", "base", str(tiny_whisper)), EvaluateSettings(dtype="fp32")
    metrics = evaluate(model, utterances / "test", subject, tmp_path / "base.json", settings, CPU)
    assert (metrics["corpus_utterances"], metrics["utterances"]) == (4, 3)


def test_counts_that_are_no_numbers_count_for_nothing(utterances):
    """Anyone may have written a manifest."""
    reader = ShardReader(utterances / "test", "utterances")
    reader.manifest |= {"left_out": {"missing": "many", "silent": 2}, "not_selected": [1]}
    assert reader.corpus_utterances == 3 + 2
    reader.manifest |= {"left_out": "none", "not_selected": 4}
    assert reader.corpus_utterances == 3 + 4
