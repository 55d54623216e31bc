"""pipeline train-student, pipeline adapt-teacher"""

from contextlib import nullcontext
from typing import Any

import click

from cache.files import write_json
from cache.locks import sole_writer
from cache.resume import Rerun, discard_if_changed
from cache.storage import AnyPath
from pipeline.commands.common import adapted_teacher, chosen, chosen_device, load, needed_token, say
from pipeline.errors import each
from pipeline.params import Params, train_settings
from pipeline.progress import ProgressReport
from stages.shared.whisper.models import load_whisper
from stages.train_student.processes import Processes, join_processes, leave_processes
from stages.train_student.run import PROGRESS, RESULT, Source, train_together
from stages.train_student.settings import Method, TrainSettings

TEACHER_POINTER = "teacher.json"  # stands in the adapted teacher's place where the teacher is used as it is


def train_student(
    params: Params, languages: list[str], methods: list[Method], changes: dict[str, Any], rerun: Rerun, together: bool
) -> None:
    """together: one run for all languages, in `models/<lang>+<lang>/<method>`, instead of one for each."""
    languages = list(dict.fromkeys(chosen(params, languages)))
    if together and len(languages) < 2:
        raise click.UsageError(f"--together needs several languages, found {languages[0]} alone: name them with --lang")
    processes = joined(params)

    def train_one(item: tuple[list[str], Method]) -> None:
        group, method = item
        listed = {**params.methods.from_transcripts, **params.methods.from_teacher}.get(method, {})
        settings = train_settings(params, {**listed, **changes}, f"train, for method {method}")
        sources = [_source(params, language, method, params.paths.models / language / method) for language in group]
        out = params.paths.models / "+".join(group) / method
        _train(params, method, params.student, sources, out, settings, rerun, processes)

    groups = [languages] if together else [[language] for language in languages]
    runs = [(group, method) for group in groups for method in methods]
    each(runs, lambda item: f"{'+'.join(item[0])} {item[1]}", train_one, alone=processes.count == 1)
    leave_processes()


def _source(params: Params, language: str, method: Method, out: AnyPath) -> Source:
    teacher = params.paths.teacher / language / "train" if method == "clsr-kd" else None
    return Source(language, params.paths.utterances / language, teacher, out, needed_token(params, language))


def adapt_teacher(params: Params, languages: list[str], rerun: Rerun) -> None:
    processes = joined(params)

    def adapt_one(language: str) -> None:
        out = adapted_teacher(params, language)
        if params.teacher.adapt is not None:
            if processes.main:
                (out / TEACHER_POINTER).unlink(missing_ok=True)
            sources = [_source(params, language, "full", out)]
            _train(params, "full", params.teacher.model, sources, out, params.teacher.adapt, rerun, processes)
        elif processes.main:
            _point(params, out, rerun)
            say(f"{language}: {params.teacher.model} teaches as it is")

    each(chosen(params, languages), str, adapt_one, alone=processes.count == 1)
    leave_processes()


def _point(params: Params, out: AnyPath, rerun: Rerun) -> None:
    """In the adapted teacher's place; an adapted one that is there gives way as other work does."""
    whisper = load(params.teacher.model, params.audio_window_s)
    with sole_writer(out):
        if any((out / name).exists() for name in (RESULT, PROGRESS)):
            discard_if_changed(out, {"teacher.adapt": "settings"}, {"teacher.adapt": None}, rerun)
        write_json(out / TEACHER_POINTER, {"model": params.teacher.model, "weights": whisper.fingerprint})


def joined(params: Params) -> Processes:
    """This process among those that `accelerate launch` started, if it did."""
    return join_processes(chosen_device(params))


def _train(
    params: Params,
    method: Method,
    base: str,
    sources: list[Source],
    out: AnyPath,
    settings: TrainSettings,
    rerun: Rerun,
    processes: Processes,
) -> None:
    whisper = load(base, params.audio_window_s) if processes.main else load_whisper(base, params.audio_window_s)
    title = f"{method} {'+'.join(source.language for source in sources)}"
    with ProgressReport(title, "steps") if processes.main else nullcontext() as report:
        progress = report.losses if report else lambda done, total, losses: None
        result = train_together(whisper, method, sources, out, settings, processes.device, rerun, progress, processes)
    if processes.main:
        say(
            f"{out}: {result['parameters'] / 1e6:.1f} M parameters trained on {result['training_utterances']} utterances, "
            f"best validation WER {100 * result['best_validation_wer']:.1f} % at step {result['best_step']} of "
            f"{result['steps']}"
        )
