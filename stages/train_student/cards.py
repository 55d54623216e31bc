"""Writes the card of what a run has trained, from the run's facts."""

from collections.abc import Mapping, Sequence
from typing import Any

from cache import files
from cache.storage import AnyPath
from stages.shared.card.text import CardFacts, card
from stages.shared.facts import Training
from stages.shared.layout import CARD
from stages.shared.methods import Method, method_named
from stages.shared.whisper.languages import language_name
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.targets import other_tokens

KINDS = {"experts": "experts", "adapter": "adapter", "all": "whisper"}


def write_cards(
    folders: Mapping[AnyPath, Sequence[str]], base: Whisper, result: Mapping[str, Any], licence: str | None
) -> None:
    """Writes README.md into each folder. folders: with the codes of the languages that the model there is for. result: of
    training.json."""
    for folder, languages in folders.items():
        files.write_text(folder / CARD, card(_facts(languages, base, result, licence)))


def _facts(languages: Sequence[str], base: Whisper, result: Mapping[str, Any], licence: str | None) -> CardFacts:
    method = method_named(result["settings"]["method"])
    return CardFacts(
        title=_title(method, base, languages),
        kind=KINDS[method.trains],
        source=method.title,
        base=base.model_id,
        languages=languages,
        tokens=other_tokens(base.model, languages),
        audio_window_s=base.audio_window_s,
        run=Training.model_validate(result),
        routed=method.trains == "experts",
        licence=licence,
    )


def _title(method: Method, base: Whisper, languages: Sequence[str]) -> str:
    name = base.model_id.rstrip("/").rpartition("/")[2]
    return f"{name} for {', '.join(map(language_name, languages))} by {method.title}"
