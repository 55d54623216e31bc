"""Functions for several commands: which languages, device and teacher to use, and loading a model."""

import sys

import torch
import transformers

from cache.errors import PipelineError
from cache.resume import differences
from cache.shards import ShardReader
from cache.storage import AnyPath
from pipeline.params import Params
from stages.shared.facts import read_begun
from stages.shared.layout import RESULT
from stages.shared.student.loading import LoadedModel, ModelSource, load_model
from stages.shared.subset import Fold
from stages.shared.whisper.device import choose_device, keep_freed_memory, use_all_cores
from stages.shared.whisper.languages import LANGUAGES, code_of, how_to_name_a_token
from stages.shared.whisper.models import Whisper, find_model, load_whisper

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def languages_or_all(params: Params, languages: list[str]) -> list[str]:
    """Returns `languages`, or all of the parameters if it is empty. Raises PipelineError if both are."""
    if not languages and not params.languages:
        raise PipelineError("no language: give --lang, or name languages in params.yaml (expected in this folder)")
    return languages or list(params.languages)


def token(params: Params, language: str) -> str | None:
    """Returns the language whose token stands for `language` in prompts, None if the parameters name none."""
    return params.languages[language].token if language in params.languages else None


def needed_token(params: Params, language: str) -> str | None:
    """Returns what `token` does. Raises PipelineError if that is None and Whisper has no token for the language."""
    if token(params, language) is None and code_of(language) not in LANGUAGES:
        raise PipelineError(how_to_name_a_token(language))
    return token(params, language)


def chosen_device(params: Params) -> torch.device:
    """Returns the device of the parameters. Also sets torch's threads and glibc's memory."""
    use_all_cores()
    keep_freed_memory()
    return choose_device(params.device)


def load(source: str, audio_window_s: int | None) -> Whisper:
    """Loads a plain Whisper. First prints where it comes from."""
    found = find_model(source)
    say(found.line)
    return load_whisper(found, audio_window_s)


def load_any(found: ModelSource, audio_window_s: int | None = None) -> LoadedModel:
    """Loads a Whisper, or experts or an adapter with their base. First prints what they are."""
    for line in found.lines:
        say(line)
    return load_model(found, audio_window_s)


def teacher_sources(params: Params, language: str) -> tuple[str, ...]:
    """Returns the folder or hub id of the language's teacher; with `teacher.adapt.folds` the folder of each fold's.

    Raises PipelineError where an adapted teacher is missing, or was trained on another part of another training split.
    """
    adapt = params.teacher.adapt
    if adapt is None:
        return (params.teacher.model,)
    folders = params.paths.adapted_teachers(language, adapt.folds)
    for number, folder in enumerate(folders, 1):
        if not (folder / RESULT).exists():
            raise PipelineError(
                f"{folder}: no adapted teacher there, though teacher.adapt asks for one: run "
                f"`pipeline adapt-teacher --lang {language}` first"
            )
        if adapt.folds > 1:
            _check_fold(folder, Fold(number, adapt.folds), params.paths.split(language, "train"))
    return tuple(map(str, folders))


def _check_fold(folder: AnyPath, fold: Fold, utterances: AnyPath) -> None:
    """Raises PipelineError where the teacher of a fold may have seen what it is to score."""
    settings = read_begun(folder / RESULT)["settings"]
    found = {name: settings.get(name) for name in ("fold", "training_utterances")}
    fingerprint = ShardReader(utterances, "utterances").fingerprint()
    if differing := differences(found, {"fold": [fold.number, fold.count], "training_utterances": fingerprint}):
        raise PipelineError(
            f"{folder} was not trained on the other folds of {utterances} ({differing}): run `pipeline adapt-teacher` again"
        )
