"""pipeline evaluate"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import torch

from cache.errors import PipelineError
from cache.files import read_jsonl
from cache.locks import sole_writer
from cache.storage import AnyPath
from pipeline.commands.common import chosen_device, languages_or_all, load_any, say, teacher_sources, token
from pipeline.errors import each
from pipeline.params import Params
from pipeline.progress import ProgressReport
from stages.evaluate.run import Subject, changed_texts
from stages.evaluate.run import evaluate as evaluate_split
from stages.shared.facts import read_begun
from stages.shared.layout import RESULT, VALIDATION, rows_path
from stages.shared.methods import METHODS
from stages.shared.scoring import paired_interval
from stages.shared.student.loading import LoadedModel, ModelSource, locate
from stages.shared.whisper.languages import code_of, language_name
from stages.shared.whisper.targets import use_token


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, on what, beside the languages."""

    systems: Sequence[str] = ()  # none: all that there are
    model: str | None = None  # any model, in place of systems
    name: str | None = None  # what the model is called in metrics and in the report
    corpus: str | None = None  # a further test corpus, or `validation`; None: the test split
    base: str | None = None  # where the base of experts or of an adapter lies
    untouched: Sequence[str] = ()  # languages in which the texts should be the base's


def evaluate(params: Params, languages: list[str], request: Request) -> None:
    _check(params, request)
    device = chosen_device(params)

    def evaluate_one(item: tuple[str, str]) -> None:
        _evaluate(params, *item, request, device)

    items = [
        (language, system)
        for language in languages_or_all(params, languages)
        for system in ([request.name] if request.name else request.systems or _systems(params, language))
    ]
    each(items, " ".join, evaluate_one)


def _check(params: Params, request: Request) -> None:
    known = ["base", *params.baselines, "teacher", *METHODS]
    for system in request.systems:
        if system not in known:
            raise click.UsageError(f"--system {system}: no such system, expected one of {', '.join(known)}")
    if request.name in known:
        raise click.UsageError(f"--name {request.name}: a system has this name: choose another")
    if VALIDATION in params.further_tests and request.corpus == VALIDATION:
        raise click.UsageError(f"further_tests has a corpus called {VALIDATION}: give it another name for --split")


def _evaluate(params: Params, language: str, system: str, request: Request, device: torch.device) -> None:
    source, window = _source(params, language, system, request), None if request.model else params.audio_window_s
    if system in params.baselines:
        window = params.baselines[system].audio_window_s or window
    found = locate(source, request.base)
    model = load_any(found, window)
    _measure(params, model, Subject(language, system, source), request.corpus, device)
    for other in request.untouched:
        _check_untouched(params, found, model, Subject(language, system, source), other, device)


def _measure(
    params: Params, model: LoadedModel, subject: Subject, corpus: str | None, device: torch.device
) -> tuple[dict[str, Any], AnyPath]:
    """Evaluates in the language's entry that the subject names. Returns the metrics and their file."""
    language, system = subject.language, subject.system
    use_token(model.whisper.model, code_of(language), token(params, language))
    utterances = (
        params.paths.split(language, VALIDATION) if corpus == VALIDATION else params.paths.test_split(language, corpus)
    )
    out = params.paths.metrics_file(language, system, corpus)
    subject = replace(subject, language=code_of(language))
    with sole_writer(out), ProgressReport(f"evaluate {language} {system}", "utterances") as progress:
        metrics = evaluate_split(model, utterances, subject, out, params.evaluate, device, progress.audio)
    say(
        f"{out}: WER {100 * metrics['wer']:.1f} %, CER {100 * metrics['cer']:.1f} %, {metrics['utterances']} utterances"
    )
    return metrics, out


def _check_untouched(
    params: Params, found: ModelSource, model: LoadedModel, subject: Subject, other: str, device: torch.device
) -> None:
    """Measures the model and its base in another language. Raises PipelineError unless all texts are the same."""
    window = model.whisper.audio_window_s
    of_base = Subject(
        other, "base" if window == params.audio_window_s else f"base-{window}s", _base(params, found).name
    )
    base, base_out = _measure(params, load_any(_base(params, found), window), of_base, None, device)
    there = Subject(other, f"{subject.system}-of-{subject.language}", subject.source)
    metrics, out = _measure(params, model, there, None, device)
    rows, of_base_rows = (read_jsonl(rows_path(path)) for path in (out, base_out))
    changed = changed_texts(rows, of_base_rows)
    name = language_name(code_of(other))
    if not changed:
        say(f"{subject.source}: untouched in {name}: all {len(rows)} texts are those of {of_base.source}")
        return
    difference, low, high = (100 * value for value in paired_interval(rows, of_base_rows))
    raise PipelineError(
        f"{subject.source} is changed in {name}: {len(changed)} of {len(rows)} texts are not those of {of_base.source} "
        f"(such as {changed[0]}); WER {100 * metrics['wer']:.1f} % against {100 * base['wer']:.1f}, {difference:+.1f} points "
        f"(95 % interval {low:+.1f} to {high:+.1f}), see {out}"
    )


def _base(params: Params, found: ModelSource) -> ModelSource:
    """Returns the plain Whisper that experts or an adapter are beside; for a plain Whisper the student's base."""
    if found.kind == "whisper":
        return locate(params.student)
    return ModelSource(found.whisper.name, "whisper", found.whisper.folder, found.whisper)


def _systems(params: Params, language: str) -> list[str]:
    """Returns the base, the baselines, the teacher, and every method with a finished student."""
    trained = [m for m in METHODS if (params.paths.model([language], m) / RESULT).exists()]
    return ["base", *params.baselines, "teacher", *trained]


def _source(params: Params, language: str, system: str, request: Request) -> str:
    if request.model:
        return request.model
    if system == "base":
        return params.student
    if system in params.baselines:
        return params.baselines[system].model or params.student
    if system == "teacher":
        first, *others = teacher_sources(params, language)
        if others:
            say(f"{language} teacher: that of the first of {1 + len(others)} folds")
        return first
    folder = params.paths.model([language], system)
    if not (folder / RESULT).exists():
        raise PipelineError(
            f"{folder}: no finished student there: run `pipeline train-student --lang {language} --method {system}` first"
        )
    # one model of several languages lies in another folder
    return str(read_begun(folder / RESULT).get("model", folder))
