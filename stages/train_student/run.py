"""One training run from shards to a student's folder."""

from collections.abc import Callable
from typing import Any

import torch

from cache import files
from cache.errors import PipelineError
from cache.settings import plain, superseded
from cache.shards import ShardReader
from cache.storage import AnyPath
from stages.train_student import checkpoint
from stages.train_student.data import TrainingData
from stages.train_student.loop import Losses, Run
from stages.train_student.processes import ALONE, Processes
from stages.train_student.settings import LEARNING_RATES, Method, TrainSettings
from stages.train_student.trainee import Trainee
from stages.train_student.validation import validate_clips, validation_clips
from stages.whisper.decode import Transcriber
from stages.whisper.models import Whisper, compute_dtype, round_weights

RESULT, PROGRESS, LEFT_OUT = "training.json", "progress.json", "left_out.jsonl"


def train_student(
    base: Whisper,
    method: Method,
    language: str,
    utterances: AnyPath,
    teacher: AnyPath | None,
    out: AnyPath,
    settings: TrainSettings,
    device: torch.device,
    restart: bool = False,
    progress: Callable[[int, int, Losses], None] = lambda done, total, losses: None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Trains on `utterances`/train, keeps the weights with the lowest WER on `utterances`/validation in `out`.

    teacher: the folder of the teacher shards for method `clsr-kd`, else None. Goes on where it was interrupted;
    returns the facts of the run, which also lie in `out`/training.json.
    """
    training = ShardReader(utterances / "train", "utterances")
    validation = ShardReader(utterances / "validation", "utterances")
    shards = ShardReader(teacher, "teacher") if teacher is not None else None
    dtype = compute_dtype(settings.dtype, device)
    facts = _facts(base, method, language, training, validation, shards, settings, dtype)
    if processes.count > 1:
        facts["processes"] = processes.count
    if (done := processes.on_main(lambda: _finished(out, facts, restart))) is not None:
        return done
    # before the folder is claimed: what is refused here must not stand in the way of the next run
    for reader in [training, validation, *([shards] if shards is not None else [])] if settings.verify else []:
        reader.check_hashes()
    data = TrainingData(training, shards, base, language, settings)
    clips = validation_clips(validation, base, settings.max_validation)
    processes.on_main(lambda: _claim(out, facts, data))
    torch.manual_seed(settings.seed)  # the gates' first weights
    trainee = Trainee(base, method, language, settings)
    base = trainee.whisper
    base.model.to(device)
    round_weights(base.model, dtype)
    transcribe = Transcriber(base, language, dtype)
    config = {
        "method": method,
        "base": base.source,
        "base_weights": facts["base_weights"],
        "audio_window_s": base.audio_window_s,
    }

    def validate() -> dict[str, float]:
        with trainee.route():
            return validate_clips(transcribe, clips, language, processes)

    def save_best(position: checkpoint.Position) -> None:
        trainee.save(out, {**config, "step": position.step, "validation_wer": position.best_wer})

    rate = settings.learning_rate or LEARNING_RATES[method]
    run = Run(trainee, data, settings, rate, dtype, out, validate, save_best, processes)
    position = run.train(progress)
    if position.best_step < 0:
        raise PipelineError(f"{out}: no validation gave a word error rate, so that no weights were kept")
    result = {
        "settings": facts,
        "steps": position.step,
        "best_step": position.best_step,
        "best_validation_wer": position.best_wer,
        "validation_utterances": len(clips),
        "training_utterances": len(data),
        "left_out": len(data.left_out),
        "not_chosen": data.not_chosen,
        "parameters": sum(parameter.numel() for parameter in trainee.parameters.values()),
    }
    processes.on_main(lambda: _finish(out, result))
    return result


def _claim(out: AnyPath, facts: dict[str, Any], data: TrainingData) -> None:
    files.write_json(out / PROGRESS, {"settings": facts})
    files.write_jsonl(out / LEFT_OUT, data.left_out)


def _finish(out: AnyPath, result: dict[str, Any]) -> None:
    files.write_json(out / RESULT, result)
    _remove_working_files(out)


def _facts(
    base: Whisper,
    method: Method,
    language: str,
    training: ShardReader,
    validation: ShardReader,
    teacher: ShardReader | None,
    settings: TrainSettings,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Whatever the weights depend on."""
    if (method == "clsr-kd") != (teacher is not None):
        raise PipelineError(f"method {method} {'needs' if teacher is None else 'takes no'} teacher shards")
    return plain(
        {
            "method": method,
            "language": language,
            "base": base.source,
            "base_weights": base.fingerprint,
            "audio_window_s": base.audio_window_s,
            "training_utterances": training.fingerprint(),
            "validation_utterances": validation.fingerprint(),
            "teacher_shards": teacher and teacher.fingerprint(),
            **settings.model_dump(exclude={"dtype", "log_every", "save_every", "verify"}),
            "dtype": str(dtype).removeprefix("torch."),
        }
    )


def _finished(out: AnyPath, facts: dict[str, Any], restart: bool) -> dict[str, Any] | None:
    """The result where the run is already done. Raises PipelineError where `out` holds another run, unless `restart`."""
    for name in (RESULT, PROGRESS):
        if (out / name).exists():
            found = files.read_json(out / name)
            if not superseded(out, found["settings"], facts, restart) and name == RESULT:
                _remove_working_files(out)
                return found
    files.remove_temporaries(out)
    return None


def _remove_working_files(out: AnyPath) -> None:
    for name in (PROGRESS, checkpoint.NAME):
        (out / name).unlink(missing_ok=True)
