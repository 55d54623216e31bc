"""Finds the word error rate of the paper's tables for what was measured in the paper's setting (arXiv 2311.01070)."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from stages.report.results import is_baseline
from stages.shared.facts import Data, Metrics, Training
from stages.shared.methods import METHODS

STUDENT, TEACHER = "openai/whisper-small", "openai/whisper-large-v2"
UNTRAINED = {STUDENT: "whisper-small", TEACHER: "whisper-large-v2"}
WINDOW_S = 30
COMMON_VOICE = "common-voice"
CORPORA = {COMMON_VOICE: "cv13", "fleurs": "fleurs"}  # our name: that of the table
SIZES = {"3k": 3_000, "10k": 10_000, "28k": 28_000}
LEAST = 0.99  # of a size: a few recordings of a release may be unusable
STEP = 16  # utterances of an optimizer step
# Utterances in training and test of Common Voice 13.0, as its makers publish them (github.com/common-voice/cv-dataset,
# cv-corpus-13.0-2023-03-09.json). A release does not say which it is: these numbers do.
CV13 = {
    "ca": (1_046_965, 16_380), "cs": (18_877, 8_829), "gl": (10_951, 6_546), "hu": (15_516, 7_875),
    "pl": (17_518, 8_534), "ta": (43_350, 11_973), "th": (32_477, 11_002), "uk": (16_911, 8_383),
}  # fmt: skip
# Settings that are not of the recipe, and the beginnings of those that concern some methods only.
NOT_COMPARED = {"max_validation", "validate_every", "seed", "gradient_checkpointing"}
OWN = {"gate_": "experts", "skip_gate": "experts", "expert_": "experts", "lora_": "adapter"}


@dataclass(frozen=True)
class Published:
    wer: float  # a fraction, by Whisper's basic normaliser
    trained_on: str  # "10k", or "" for an untrained system
    differs: list[str]  # where the measured system is not quite the paper's


def published(metrics: Metrics, run: Training | None) -> Published | None:
    """Returns the rate of the paper's tables that `metrics` can be compared with. None: there is none.

    run: how the system was trained. Model, window, language, test set, training set and its size must agree.
    """
    if metrics.audio_window_s != WINDOW_S or metrics.basic_wer is None or not _same_test(metrics):
        return None
    untrained = metrics.system == "teacher" or is_baseline(metrics.system)
    system = UNTRAINED.get(metrics.model) if untrained else metrics.system
    size = "" if untrained else _size(metrics, run)
    if system is None or size is None:
        return None
    wer = _table().get((system, size, CORPORA[metrics.corpus], metrics.language))
    return None if wer is None else Published(wer, size, _differs(metrics, run))


@cache
def _table() -> dict[tuple[str, str, str, str], float]:
    """By system, training utterances, corpus and language."""
    text = (files("stages.report") / "published_wer.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {
        (row["system"], row["training_utterances"], row["test_corpus"], row["language"]): float(row["wer_percent"])
        / 100
        for row in rows
    }


def _same_test(metrics: Metrics) -> bool:
    if metrics.corpus == COMMON_VOICE:
        return metrics.language in CV13 and metrics.corpus_utterances == CV13[metrics.language][1]
    return metrics.corpus in CORPORA


def _size(metrics: Metrics, run: Training | None) -> str | None:
    """Returns the size of the training set, if student, teacher and training set are the paper's."""
    if run is None or run.data.keys() != {metrics.language}:
        return None
    data = run.data[metrics.language]
    student = (
        run.settings.base == STUDENT and run.settings.audio_window_s == WINDOW_S and "start_from" not in run.changes
    )
    same = student and _same_training(data, metrics.language) and _same_teacher(data, metrics.system)
    enough = data.subset in SIZES and run.training_utterances >= LEAST * SIZES[data.subset]
    return data.subset if same and enough else None


def _same_training(data: Data, language: str) -> bool:
    return data.corpus == COMMON_VOICE and language in CV13 and data.corpus_utterances == CV13[language][0]


def _same_teacher(data: Data, system: str) -> bool:
    needs = system in METHODS and METHODS[system].needs_teacher
    return not needs or (data.teacher, data.targets) == (TEACHER, "reference")


def _differs(metrics: Metrics, run: Training | None) -> list[str]:
    missing = (metrics.corpus_utterances or metrics.utterances) - metrics.utterances
    parts = [f"{metrics.loops:,} loops cut"] if metrics.cut_loops and metrics.loops else []
    parts += [f"{missing:,} test utterances not scored"] if missing else []
    return parts if run is None else [*parts, *changes(run)]


def changes(run: Training) -> list[str]:
    """Lists the settings that are not the paper's, of those that matter to the method."""
    settings, method = run.settings, METHODS[run.settings.method]
    step = settings.batch_size * settings.accumulate * settings.processes
    return [f"{step} utterances a step"] * (step != STEP) + [
        f"{name} {value}"
        for name, value in run.changes.items()
        if name not in NOT_COMPARED | {"batch_size", "accumulate"}
        and all(method.trains == trains for start, trains in OWN.items() if name.startswith(start))
        and (method.needs_teacher or not name.startswith("kd_"))
        and (name, value) != ("learning_rate", method.learning_rate)
    ]
