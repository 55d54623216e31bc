"""The facts beside an expert or an adapter, and the base it was trained with: it must be the same where it is used."""

from collections.abc import Mapping
from typing import Any

from cache import files
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.whisper.models import Whisper, load_whisper

BASE_FACTS = {"base": str, "base_weights": str, "audio_window_s": int}  # what `load_base` reads
KINDS = {str: "text", int: "a whole number", list: "a list"}


def read_facts(path: AnyPath, versions: tuple[int, ...], required: Mapping[str, type]) -> dict[str, Any]:
    """The facts that lie beside an expert or an adapter; `required`: name -> type, of KINDS; `versions`, the newest last.

    Raises PipelineError where the file is of another format version, incomplete, or holds something else.
    """
    facts = files.read_json(path)
    found = facts.get("format_version") if isinstance(facts, dict) else None
    if found not in versions:
        raise PipelineError(f"{path}: format_version is {found!r}, expected {versions[-1]}")
    if missing := [name for name in required if name not in facts]:
        raise PipelineError(f"{path}: no {', '.join(missing)} in it, expected {', '.join(required)}")
    for name, kind in required.items():
        if type(facts[name]) is not kind:
            raise PipelineError(f"{path}: {name} is {facts[name]!r}, expected {KINDS[kind]}")
    return facts


def load_base(config: dict[str, Any], path: AnyPath, audio_window_s: int | None = None) -> Whisper:
    """The Whisper that `config`, read from `path`, names by `base`, `base_weights` and `audio_window_s`.

    Raises PipelineError where another window is asked for, or where its weights are not those of the training.
    """
    trained = config["audio_window_s"]
    if audio_window_s not in (None, trained):
        raise PipelineError(
            f"{path.parent} was trained with audio_window_s {trained}, asked for {audio_window_s}: they must agree"
        )
    whisper = load_whisper(config["base"], trained)
    if whisper.fingerprint != config["base_weights"]:
        raise PipelineError(
            f"{path}: trained on base weights {config['base_weights'][:12]}, but {config['base']} now has "
            f"{whisper.fingerprint[:12]}: expected the same base model"
        )
    return whisper
