"""The base beside which an expert or an adapter was trained: it must be the same where it is used."""

from typing import Any

from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.whisper.models import Whisper, load_whisper


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
