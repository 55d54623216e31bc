"""pipeline train-student"""

from contextlib import nullcontext
from typing import Any

import click

from cache.description import target_counts
from cache.progress import silent
from cache.records import TARGET_COUNTS, TEACHER
from cache.resume import Rerun
from cache.storage import AnyPath
from pipeline.commands.common import chosen_device, languages_or_all, load, needed_token, say
from pipeline.errors import each
from pipeline.params import Params, method_settings
from pipeline.progress import ProgressReport
from stages.shared.methods import method_named
from stages.shared.subset import Fold
from stages.shared.whisper.languages import code_of
from stages.shared.whisper.models import load_whisper
from stages.train_student.processes import Processes, join_processes, leave_processes
from stages.train_student.run import Execution, LanguageData
from stages.train_student.run import train_student as train_on_shards
from stages.train_student.settings import TrainSettings


def train_student(
    params: Params, languages: list[str], methods: list[str], changes: dict[str, Any], rerun: Rerun, together: bool
) -> None:
    """changes: to `train`, by flags. together: one run for all languages instead of one for each."""
    languages = list(dict.fromkeys(languages_or_all(params, languages)))
    if together and len(languages) < 2:
        raise click.UsageError(f"--together needs several languages, found {languages[0]} alone: name them with --lang")
    if together and len(set(map(code_of, languages))) < len(languages):
        raise click.UsageError(
            f"--together: of {', '.join(languages)} several are one language, and a run has one expert for each"
        )
    processes = joined(params)

    def train_one(run: tuple[list[str], str]) -> None:
        group, method = run
        settings = method_settings(params, method, changes)
        data = [language_data(params, language, method, params.paths.model([language], method)) for language in group]
        out = params.paths.model(group, method)
        run_training(params, method, params.student, data, out, settings, rerun, processes)

    groups = [languages] if together else [[language] for language in languages]
    runs = [(group, method) for group in groups for method in methods]
    each(runs, lambda run: f"{'+'.join(run[0])} {run[1]}", train_one, go_on=processes.count == 1)
    leave_processes()


def language_data(params: Params, language: str, method: str, out: AnyPath, fold: Fold | None = None) -> LanguageData:
    teacher = params.paths.teacher_shards(language) if method_named(method).needs_teacher else None
    utterances, token = params.paths.utterances / language, needed_token(params, language)
    return LanguageData(code_of(language), utterances, teacher, out, token, fold)


def joined(params: Params) -> Processes:
    """Joins the processes that `accelerate launch` started, if it did."""
    return join_processes(chosen_device(params))


def run_training(
    params: Params,
    method: str,
    base: str,
    data: list[LanguageData],
    out: AnyPath,
    settings: TrainSettings,
    rerun: Rerun,
    processes: Processes,
) -> None:
    """Trains `base` (a folder or hub id), and prints a line about the result. Only the main process prints."""
    whisper = load(base, params.audio_window_s) if processes.main else load_whisper(base, params.audio_window_s)
    title = f"{method} {'+'.join(one.language for one in data)}"
    with ProgressReport(title, "steps") if processes.main else nullcontext() as report:
        progress = report.losses if report else silent
        execution = Execution(processes.device, rerun, progress, processes, params.paths.runs, say, params.licence)
        result = train_on_shards(whisper, method, data, out, settings, execution)
    if processes.main:
        counts = {source: result[name] for source, name in TARGET_COUNTS.items()}
        of = f" ({target_counts(counts)})" if counts[TEACHER] else ""
        say(
            f"{out}: {result['parameters'] / 1e6:.1f} M parameters trained on {result['training_utterances']} utterances{of}, "
            f"best validation WER {100 * result['best_validation_wer']:.1f} % at step {result['best_step']} of "
            f"{result['steps']}"
        )
