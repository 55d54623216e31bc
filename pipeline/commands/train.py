"""pipeline train-student"""

from contextlib import nullcontext
from typing import Any

import click

from cache.resume import Rerun
from cache.storage import AnyPath
from pipeline.commands.common import chosen, chosen_device, load, needed_token, say
from pipeline.errors import each
from pipeline.params import Params, train_settings
from pipeline.progress import ProgressReport
from stages.shared.whisper.models import load_whisper
from stages.train_student.processes import Processes, join_processes, leave_processes
from stages.train_student.run import Source, train_together
from stages.train_student.settings import Method, TrainSettings


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
        sources = [
            language_source(params, language, method, params.paths.models / language / method) for language in group
        ]
        out = params.paths.models / "+".join(group) / method
        run_training(params, method, params.student, sources, out, settings, rerun, processes)

    groups = [languages] if together else [[language] for language in languages]
    runs = [(group, method) for group in groups for method in methods]
    each(runs, lambda item: f"{'+'.join(item[0])} {item[1]}", train_one, alone=processes.count == 1)
    leave_processes()


def language_source(params: Params, language: str, method: Method, out: AnyPath) -> Source:
    teacher = params.paths.teacher / language / "train" if method == "clsr-kd" else None
    return Source(language, params.paths.utterances / language, teacher, out, needed_token(params, language))


def joined(params: Params) -> Processes:
    """This process among those that `accelerate launch` started, if it did."""
    return join_processes(chosen_device(params))


def run_training(
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
