"""One training run from shards to a student's folder, or to one for each of several languages."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from cache import files
from cache.errors import PipelineError
from cache.locks import sole_writer
from cache.resume import Rerun, discard_if_changed, plain
from cache.shards import ShardReader
from cache.storage import AnyPath
from stages.shared.student.metadata import base_metadata
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.device import compute_dtype, round_weights
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.targets import token_of, use_token
from stages.train_student import checkpoint
from stages.train_student.data import TrainingData
from stages.train_student.loop import Losses, Run
from stages.train_student.mixture import Mixture
from stages.train_student.processes import ALONE, Processes
from stages.train_student.settings import LEARNING_RATES, Method, TrainSettings
from stages.train_student.trainee import Trainee
from stages.train_student.validation import Validation, validate_languages, validation_clips

# Raise it whenever the same shards, base and settings give other weights: work of another version is made again.
TRAIN_VERSION = 1
RESULT, PROGRESS, LEFT_OUT = "training.json", "progress.json", "left_out.jsonl"
Progress = Callable[[int, int, Losses], None]


def _silent(done: int, total: int, losses: Losses) -> None:
    return None


@dataclass(frozen=True)
class Source:
    """A language's shards, and the folder of what is trained on them."""

    language: str
    utterances: AnyPath  # the folder of `train` and `validation`
    teacher: AnyPath | None  # of the teacher's shards, for method `clsr-kd` alone
    out: AnyPath
    token: str | None = None  # the language whose token stands for `language` in prompts; None: as the base has it

    @cached_property
    def training(self) -> ShardReader:
        return ShardReader(self.utterances / "train", "utterances")

    @cached_property
    def validation(self) -> ShardReader:
        return ShardReader(self.utterances / "validation", "utterances")

    @cached_property
    def scored(self) -> ShardReader | None:
        return None if self.teacher is None else ShardReader(self.teacher, "teacher")

    def check_hashes(self) -> None:
        for reader in (self.training, self.validation, self.scored):
            if reader is not None:
                reader.check_hashes()


def train_student(
    base: Whisper,
    method: Method,
    language: str,
    utterances: AnyPath,
    teacher: AnyPath | None,
    out: AnyPath,
    settings: TrainSettings,
    device: torch.device,
    rerun: Rerun = "refuse",
    progress: Progress = _silent,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Trains on `utterances`/train, keeps the weights with the lowest WER on `utterances`/validation in `out`.

    teacher: the folder of the teacher shards for method `clsr-kd`, else None. Goes on where it was interrupted;
    returns the facts of the run, which also lie in `out`/training.json.
    """
    source = Source(language, utterances, teacher, out)
    return train_together(base, method, [source], out, settings, device, rerun, progress, processes)


def train_together(
    base: Whisper,
    method: Method,
    sources: Sequence[Source],
    out: AnyPath,
    settings: TrainSettings,
    device: torch.device,
    rerun: Rerun = "refuse",
    progress: Progress = _silent,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """As `train_student`, on batches that mix the languages of `sources`; the mean of their WERs chooses the weights.

    Experts go to their language's folder. What the languages share goes to `out`, with the curve and the run's facts; each
    language's training.json says where its model lies.
    """
    for one in sources:
        use_token(base.model, one.language, one.token)
    with _sole_writer([*(source.out for source in sources), out], processes):
        return _train(base, method, sources, out, settings, device, rerun, progress, processes)


@contextmanager
def _sole_writer(folders: list[AnyPath], processes: Processes) -> Iterator[None]:
    """Of the processes that train together the main one alone writes."""
    with ExitStack() as held:
        processes.on_main(lambda: held.enter_context(sole_writer(*folders)))
        yield


def _train(
    base: Whisper,
    method: Method,
    sources: Sequence[Source],
    out: AnyPath,
    settings: TrainSettings,
    device: torch.device,
    rerun: Rerun,
    progress: Progress,
    processes: Processes,
) -> dict[str, Any]:
    dtype = compute_dtype(settings.dtype, device, training=True)
    facts = _facts(base, method, sources, settings, dtype, processes)
    if (done := processes.on_main(lambda: _finished(out, sources, facts, rerun))) is not None:
        return done
    # before the folder is claimed: what is refused here must not stand in the way of the next run
    for source in sources if settings.verify else []:
        source.check_hashes()
    parts = [TrainingData(one.training, one.scored, base, one.language, settings) for one in sources]
    data = parts[0] if len(parts) == 1 else Mixture(parts)
    clips = [validation_clips(one.validation, base, settings.max_validation) for one in sources]
    processes.on_main(lambda: _claim(out, facts, data.left_out))
    named = base_metadata(base.source, dict(base.model.named_parameters()), base.audio_window_s, base.fingerprint)
    torch.manual_seed(settings.seed)  # the gates' first weights
    trainee = Trainee(base, method, [one.language for one in sources], settings)
    trainee.model.to(device)
    round_weights(trainee.whisper.model, dtype)
    validations = [
        Validation(one.language, own, Transcriber(trainee.whisper, one.language, dtype))
        for one, own in zip(sources, clips, strict=True)
    ]
    config = {"method": method, **named}

    def save_best(position: checkpoint.Position) -> None:
        folders = {one.language: one.out for one in sources}
        trainee.save(out, folders, {**config, "step": position.step, "validation_wer": position.best_wer})

    def validate() -> dict[str, float]:
        return validate_languages(validations, processes)

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
        "validation_utterances": sum(map(len, clips)),
        "training_utterances": len(data),
        "left_out": len(data.left_out),
        "not_chosen": data.not_chosen,
        "parameters": sum(parameter.numel() for parameter in trainee.parameters.values()),
    }
    processes.on_main(lambda: _finish(out, sources, result, shared=trainee.student is None))
    return result


def _facts(
    base: Whisper,
    method: Method,
    sources: Sequence[Source],
    settings: TrainSettings,
    dtype: torch.dtype,
    processes: Processes,
) -> dict[str, Any]:
    """Whatever the weights depend on; of several languages, lists."""
    if any((method == "clsr-kd") != (source.teacher is not None) for source in sources):
        raise PipelineError(f"method {method} {'needs' if method == 'clsr-kd' else 'takes no'} teacher shards")
    of_each: dict[str, list[Any]] = {
        "language": [source.language for source in sources],
        "token": [token_of(base.model, source.language) for source in sources],
        "training_utterances": [source.training.fingerprint() for source in sources],
        "validation_utterances": [source.validation.fingerprint() for source in sources],
        "teacher_shards": [source.scored and source.scored.fingerprint() for source in sources],
    }
    return plain(
        {
            "train_version": TRAIN_VERSION,
            "method": method,
            "base": base.source,
            "base_weights": base.fingerprint,
            "audio_window_s": base.audio_window_s,
            **{name: values[0] if len(sources) == 1 else values for name, values in of_each.items()},
            **settings.model_dump(exclude={"dtype", "log_every", "save_every", "verify"}),
            "dtype": str(dtype).removeprefix("torch."),
            **({"processes": processes.count} if processes.count > 1 else {}),
        }
    )


def _finished(out: AnyPath, sources: Sequence[Source], facts: dict[str, Any], rerun: Rerun) -> dict[str, Any] | None:
    """The result where the run is already done, in all its folders.

    Raises PipelineError where one of them holds another run and `rerun` is `refuse`.
    """
    results = []
    for folder in dict.fromkeys([*(source.out for source in sources), out]):
        found = None
        for name in (RESULT, PROGRESS):
            if (folder / name).exists():
                earlier = files.read_json(folder / name)
                if not discard_if_changed(folder, earlier["settings"], facts, rerun) and name == RESULT:
                    found = earlier
        results.append(found)
        files.remove_temporaries(folder)
    if None in results:
        (out / RESULT).unlink(missing_ok=True)
        return None
    _remove_working_files(out)
    return results[-1]


def _claim(out: AnyPath, facts: dict[str, Any], left_out: list[dict[str, str]]) -> None:
    files.write_json(out / PROGRESS, {"settings": facts})
    files.write_jsonl(out / LEFT_OUT, left_out)


def _finish(out: AnyPath, sources: Sequence[Source], result: dict[str, Any], shared: bool) -> None:
    for source in sources:
        if source.out != out:
            files.write_json(
                source.out / RESULT, {**result, "run": str(out), "model": str(out if shared else source.out)}
            )
    files.write_json(out / RESULT, result)
    _remove_working_files(out)


def _remove_working_files(out: AnyPath) -> None:
    for name in (PROGRESS, checkpoint.NAME):
        (out / name).unlink(missing_ok=True)
