"""pipeline train-student, pipeline adapt-teacher"""

from typing import Any

from cache.files import write_json
from cache.storage import AnyPath
from pipeline.commands.common import adapted_teacher, chosen, chosen_device, load, say
from pipeline.params import Params, train_settings
from pipeline.progress import ProgressReport
from stages.train_student.run import train_student as train
from stages.train_student.settings import Method, TrainSettings

TEACHER_POINTER = "teacher.json"  # stands in the adapted teacher's place where the teacher is used as it is


def train_student(
    params: Params, languages: list[str], methods: list[Method], changes: dict[str, Any], restart: bool
) -> None:
    for language in chosen(params, languages):
        for method in methods:
            listed = {**params.methods.from_transcripts, **params.methods.from_teacher}.get(method, {})
            settings = train_settings(params, {**listed, **changes}, f"train, for method {method}")
            teacher = params.paths.teacher / language / "train" if method == "clsr-kd" else None
            out = params.paths.models / language / method
            _train(params, language, method, params.student, teacher, out, settings, restart)


def adapt_teacher(params: Params, languages: list[str], restart: bool) -> None:
    for language in chosen(params, languages):
        out = adapted_teacher(params, language)
        if params.teacher.adapt is None:
            whisper = load(params.teacher.model, params.audio_window_s)
            write_json(out / TEACHER_POINTER, {"model": params.teacher.model, "weights": whisper.fingerprint})
            say(f"{language}: {params.teacher.model} teaches as it is")
        else:
            _train(params, language, "full", params.teacher.model, None, out, params.teacher.adapt, restart)


def _train(
    params: Params,
    language: str,
    method: Method,
    source: str,
    teacher: AnyPath | None,
    out: AnyPath,
    settings: TrainSettings,
    restart: bool,
) -> None:
    device = chosen_device(params)
    base = load(source, params.audio_window_s)
    utterances = params.paths.utterances / language
    with ProgressReport(f"{method} {language}", "steps") as progress:
        result = train(base, method, language, utterances, teacher, out, settings, device, restart, progress.losses)
    say(
        f"{out}: {result['parameters'] / 1e6:.1f} M parameters trained on {result['training_utterances']} utterances, "
        f"best validation WER {100 * result['best_validation_wer']:.1f} % at step {result['best_step']} of {result['steps']}"
    )
