"""Trains a student from shards: one language, or several together. Writes a folder for each language."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cache import files
from cache.errors import PipelineError
from cache.locks import sole_writer
from cache.progress import Progress, silent
from cache.records import TARGET_COUNTS, TEACHER
from cache.resume import Rerun, discard_if_changed, plain
from cache.shards import ShardReader
from cache.storage import AnyPath
from stages.shared.facts import read_begun
from stages.shared.layout import CHECKPOINT, LEFT_OUT, PROGRESS, RESULT
from stages.shared.methods import method_named
from stages.shared.student.experts import shared_of
from stages.shared.student.metadata import base_metadata
from stages.shared.student.packing import check_choice
from stages.shared.subset import Fold
from stages.shared.validation import Clip, validation_clips
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.device import compute_dtype, round_weights
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.targets import token_of, use_token
from stages.train_student import checkpoint
from stages.train_student.cards import write_cards
from stages.train_student.data import TrainingData
from stages.train_student.loop import Losses, TrainingLoop
from stages.train_student.mixture import Mixture
from stages.train_student.processes import SINGLE_PROCESS, Processes
from stages.train_student.settings import NO_RECIPE, TrainSettings
from stages.train_student.start import chosen_layers, find_start
from stages.train_student.tracking import tracked
from stages.train_student.trainee import Trainee
from stages.train_student.validation import Validation, validate_languages

# Raise it whenever the same shards, base and settings give other weights: work of another version is made again.
TRAIN_VERSION = 1


@dataclass(frozen=True)
class LanguageData:
    """The shards of one language, and the folder of what is trained on them."""

    language: str
    utterances: AnyPath  # the folder of `train` and `validation`
    teacher: AnyPath | None  # the folder of the teacher's shards, for a method that needs them
    out: AnyPath
    token: str | None = None  # the language whose token stands for `language` in prompts; None: as the base has it
    fold: Fold | None = None  # the part of `train` that is not trained on

    @cached_property
    def training(self) -> ShardReader:
        return ShardReader(self.utterances / "train", "utterances")

    @cached_property
    def validation(self) -> ShardReader:
        return ShardReader(self.utterances / "validation", "utterances")

    @cached_property
    def scored(self) -> ShardReader | None:
        return None if self.teacher is None else ShardReader(self.teacher, "teacher")

    @property
    def origin(self) -> dict[str, Any]:
        """Returns what the results can be compared by: the corpus and its subset, the teacher and what it has scored."""
        scored = self.scored.provenance if self.scored else {}
        return {
            "corpus": self.training.manifest.get("corpus"),
            "corpus_utterances": self.training.corpus_utterances,
            "subset": self.training.provenance.get("corpus.subset"),
            **{name: scored.get(name) for name in ("teacher", "targets")},
        }

    def check_hashes(self) -> None:
        """Raises PipelineError where a shard is not as its manifest says."""
        for reader in (self.training, self.validation, self.scored):
            if reader is not None:
                reader.check_hashes()


@dataclass(frozen=True)
class Execution:
    """How a run is carried out: where, by which processes, what becomes of earlier work, and who is told of progress."""

    device: torch.device
    rerun: Rerun = "refuse"
    progress: Progress[Losses] = silent  # steps done, steps in all, losses of the step
    processes: Processes = SINGLE_PROCESS
    runs: Path = Path("runs")  # the folder of trackers that write files
    warn: Callable[[str], None] = lambda line: None
    licence: str | None = None  # of what is trained, for its card


def train_student(
    base: Whisper,
    method: str,
    languages: Sequence[LanguageData],
    out: AnyPath,
    settings: TrainSettings,
    execution: Execution,
) -> dict[str, Any]:
    """Trains `base` on the `train` splits, and keeps the weights with the lowest WER on the `validation` splits.

    With several languages every batch mixes them, and the mean of their WERs chooses the weights. Each language's experts
    go to its own folder. What the languages share goes to `out`, with the curve and the run's facts; the training.json of
    each language says where its model lies. With one language, `out` is its folder.

    Goes on where the same run was interrupted. Returns the facts of the run, which also lie in `out`/training.json.
    Raises PipelineError where a folder holds another run and `execution.rerun` is `refuse`.
    """
    for one in languages:
        use_token(base.model, one.language, one.token)
    run = _Run(base, method, list(languages), out, settings, execution)
    with _sole_writer([*(one.out for one in languages), out], execution.processes):
        return run.result()


@contextmanager
def _sole_writer(folders: list[AnyPath], processes: Processes) -> Iterator[None]:
    """Locks the folders. Of the processes that train together only the main one writes."""
    with ExitStack() as held:
        processes.on_main(lambda: held.enter_context(sole_writer(*folders)))
        yield


class _Run:
    """One run, from shards to the folders of what it has trained."""

    def __init__(
        self,
        base: Whisper,
        method: str,
        languages: list[LanguageData],
        out: AnyPath,
        settings: TrainSettings,
        execution: Execution,
    ):
        self.base, self.method, self.languages, self.out = base, method, languages, out
        self.settings, self.execution, self.processes = settings, execution, execution.processes
        self.dtype = compute_dtype(settings.dtype, execution.device, training=True)
        if method_named(method).trains == "experts":
            check_choice(shared_of(base.model), "fp16", settings.expert_rank)
            chosen_layers(settings.expert_layers, shared_of(base.model))
        self.start = find_start(settings.start_from, method, base, settings) if settings.start_from else None

    def result(self) -> dict[str, Any]:
        """Returns the facts of the run: it may have been finished before."""
        run_settings, rerun = self._settings(), self.execution.rerun
        if found := self.processes.on_main(lambda: _finished(self.out, self.languages, run_settings, rerun)):
            return found
        # before the folder is claimed: what is refused here must not stand in the way of the next run
        for one in self.languages if self.settings.verify else []:
            one.check_hashes()
        data = self._data()
        clips = [validation_clips(one.validation, self.base, self.settings.max_validation) for one in self.languages]
        self.processes.on_main(lambda: _claim(self.out, run_settings, data.left_out))
        trainee, position = self._train(data, clips)
        if position.best_step < 0:
            raise PipelineError(f"{self.out}: no validation gave a word error rate, so that no weights were kept")
        result = {
            "settings": run_settings,
            "changes": self.settings.model_dump(mode="json", exclude=NO_RECIPE, exclude_defaults=True),
            "data": {one.language: one.origin for one in self.languages},
            "steps": position.step,
            "best_step": position.best_step,
            "best_validation_wer": position.best_wer,
            "validation_utterances": sum(map(len, clips)),
            "training_utterances": len(data),
            **{name: data.target_sources[source] for source, name in TARGET_COUNTS.items()},
            "left_out": len(data.left_out),
            "not_chosen": data.not_chosen,
            "parameters": sum(parameter.numel() for parameter in trainee.parameters.values()),
        }
        self.processes.on_main(lambda: self._finish(result, shared=trainee.student is None))
        return result

    def _finish(self, result: dict[str, Any], shared: bool) -> None:
        """shared: one model in `out` is for all the languages."""
        codes = {one.out: [one.language] for one in self.languages}
        write_cards({self.out: sum(codes.values(), [])} if shared else codes, self.base, result, self.execution.licence)
        for one in self.languages:
            if one.out != self.out:
                where = {"run": str(self.out), "model": str(self.out if shared else one.out)}
                files.write_json(one.out / RESULT, {**result, **where})
        files.write_json(self.out / RESULT, result)
        _remove_working_files(self.out)

    def _data(self) -> TrainingData | Mixture:
        parts = [
            TrainingData(one.training, one.scored, self.base, one.language, self.settings, one.fold)
            for one in self.languages
        ]
        data = parts[0] if len(parts) == 1 else Mixture(parts)
        if self.settings.token_weights != "none" and data.tail_V is not None and not data.target_sources[TEACHER]:
            raise PipelineError(
                f"token_weights is '{self.settings.token_weights}', but all targets are transcripts, whose tokens weigh 1: "
                "set train.token_weights to none, or teacher_cache.targets to mixed or pseudo"
            )
        return data

    def _train(self, data: TrainingData | Mixture, clips: list[list[Clip]]) -> tuple[Trainee, checkpoint.Position]:
        base = self.base
        named = base_metadata(base.model_id, dict(base.model.named_parameters()), base.audio_window_s, base.fingerprint)
        torch.manual_seed(self.settings.seed)  # the gates' first weights
        trainee = Trainee(base, self.method, [one.language for one in self.languages], self.settings)
        if self.start:
            trainee.begin_as(self.start)
        trainee.model.to(self.execution.device)
        round_weights(trainee.whisper.model, self.dtype)
        validations = [
            Validation(one.language, own, Transcriber(trainee.whisper, one.language, self.dtype))
            for one, own in zip(self.languages, clips, strict=True)
        ]

        def save_best(position: checkpoint.Position) -> None:
            facts = {"method": self.method, **named, "step": position.step, "validation_wer": position.best_wer}
            trainee.save(self.out, {one.language: one.out for one in self.languages}, facts)

        def validate() -> dict[str, float]:
            return validate_languages(validations, self.processes)

        loop = TrainingLoop(trainee, data, self.settings, self.dtype, self.out, validate, save_best, self.processes)
        run, execution = f"{self.out.parent.name}/{self.out.name}", self.execution
        with tracked(
            self.settings.track, run, execution.runs, self._settings(), execution.warn, self.processes
        ) as track:
            return trainee, loop.train(execution.progress, track)

    def _settings(self) -> dict[str, Any]:
        """Returns whatever the weights depend on; with several languages some of it as lists, one value a language."""
        needs_teacher = method_named(self.method).needs_teacher
        if any(needs_teacher != (one.teacher is not None) for one in self.languages):
            raise PipelineError(f"method {self.method} {'needs' if needs_teacher else 'takes no'} teacher shards")
        of_each: dict[str, list[Any]] = {
            "language": [one.language for one in self.languages],
            "token": [token_of(self.base.model, one.language) for one in self.languages],
            "training_utterances": [one.training.fingerprint() for one in self.languages],
            "validation_utterances": [one.validation.fingerprint() for one in self.languages],
            "teacher_shards": [one.scored and one.scored.fingerprint() for one in self.languages],
        }
        if any(one.fold for one in self.languages):
            of_each["fold"] = [one.fold and [one.fold.number, one.fold.count] for one in self.languages]
        return plain(
            {
                "train_version": TRAIN_VERSION,
                "method": self.method,
                "base": self.base.model_id,
                "base_weights": self.base.fingerprint,
                "audio_window_s": self.base.audio_window_s,
                **{name: values[0] if len(self.languages) == 1 else values for name, values in of_each.items()},
                **self.settings.recipe(),
                **({"start_weights": self.start.fingerprint()} if self.start else {}),
                "dtype": str(self.dtype).removeprefix("torch."),
                **({"processes": self.processes.count} if self.processes.count > 1 else {}),
            }
        )


def _finished(
    out: AnyPath, languages: Sequence[LanguageData], run_settings: dict[str, Any], rerun: Rerun
) -> dict[str, Any] | None:
    """Returns the result where the run is already done in all its folders, else None.

    Raises PipelineError where one of them holds another run and `rerun` is `refuse`.
    """
    results = []
    for folder in dict.fromkeys([*(one.out for one in languages), out]):
        found = None
        for name in (RESULT, PROGRESS):
            if (folder / name).exists():
                earlier = read_begun(folder / name)
                if not discard_if_changed(folder, earlier["settings"], run_settings, rerun) and name == RESULT:
                    found = earlier
        results.append(found)
        files.remove_temporaries(folder)
    if None in results:
        (out / RESULT).unlink(missing_ok=True)
        return None
    _remove_working_files(out)
    return results[-1]


def _claim(out: AnyPath, run_settings: dict[str, Any], left_out: list[dict[str, str]]) -> None:
    files.write_json(out / PROGRESS, {"settings": run_settings})
    files.write_jsonl(out / LEFT_OUT, left_out)


def _remove_working_files(out: AnyPath) -> None:
    for name in (PROGRESS, CHECKPOINT):
        (out / name).unlink(missing_ok=True)
