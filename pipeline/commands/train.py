"""pipeline train-student, pipeline adapt-teacher"""

from contextlib import nullcontext
from typing import Any

from cache.files import write_json
from cache.storage import AnyPath
from pipeline.commands.common import adapted_teacher, chosen, chosen_device, load, say
from pipeline.params import Params, train_settings
from pipeline.progress import ProgressReport
from stages.train_student.processes import Processes, join_processes, leave_processes
from stages.train_student.run import train_student as train
from stages.train_student.settings import Method, TrainSettings
from stages.whisper.models import load_whisper

TEACHER_POINTER = "teacher.json"  # stands in the adapted teacher's place where the teacher is used as it is


def train_student(
    params: Params, languages: list[str], methods: list[Method], changes: dict[str, Any], restart: bool
) -> None:
    processes = joined(params)
    for language in chosen(params, languages):
        for method in methods:
            listed = {**params.methods.from_transcripts, **params.methods.from_teacher}.get(method, {})
            settings = train_settings(params, {**listed, **changes}, f"train, for method {method}")
            teacher = params.paths.teacher / language / "train" if method == "clsr-kd" else None
            out = params.paths.models / language / method
            _train(params, language, method, params.student, teacher, out, settings, restart, processes)
    leave_processes()


def adapt_teacher(params: Params, languages: list[str], restart: bool) -> None:
    processes = joined(params)
    for language in chosen(params, languages):
        out = adapted_teacher(params, language)
        if params.teacher.adapt is not None:
            _train(params, language, "full", params.teacher.model, None, out, params.teacher.adapt, restart, processes)
        elif processes.main:
            whisper = load(params.teacher.model, params.audio_window_s)
            write_json(out / TEACHER_POINTER, {"model": params.teacher.model, "weights": whisper.fingerprint})
            say(f"{language}: {params.teacher.model} teaches as it is")
    leave_processes()


def joined(params: Params) -> Processes:
    """This process among those that `accelerate launch` started, if it did."""
    return join_processes(chosen_device(params))


def _train(
    params: Params,
    language: str,
    method: Method,
    source: str,
    teacher: AnyPath | None,
    out: AnyPath,
    settings: TrainSettings,
    restart: bool,
    processes: Processes,
) -> None:
    base = load(source, params.audio_window_s) if processes.main else load_whisper(source, params.audio_window_s)
    utterances = params.paths.utterances / language
    with ProgressReport(f"{method} {language}", "steps") if processes.main else nullcontext() as report:
        progress = report.losses if report else lambda done, total, losses: None
        result = train(
            base, method, language, utterances, teacher, out, settings, processes.device, restart, progress, processes
        )
    if processes.main:
        say(
            f"{out}: {result['parameters'] / 1e6:.1f} M parameters trained on {result['training_utterances']} utterances, "
            f"best validation WER {100 * result['best_validation_wer']:.1f} % at step {result['best_step']} of "
            f"{result['steps']}"
        )
