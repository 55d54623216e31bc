"""Writes the card of a folder that holds experts, an adapter, a bundle or a Whisper, from what lies in it."""

from transformers import AutoConfig

from cache import files
from cache.storage import AnyPath
from stages.shared.card.text import CardFacts, card
from stages.shared.facts import read_training
from stages.shared.layout import CARD
from stages.shared.student.loading import ModelSource, locate
from stages.shared.whisper.window import FULL_WINDOW_S, recorded_window


def write_card(folder: AnyPath, base: str | None) -> None:
    """Writes README.md beside what lies in `folder`. base: where its base lies; None: where its metadata says."""
    files.write_text(folder / CARD, card_of(locate(str(folder), base), folder.name))


def card_of(found: ModelSource, title: str) -> str:
    """Returns the whole README.md, without error rates."""
    if found.kind == "whisper":
        window = recorded_window(AutoConfig.from_pretrained(found.folder)) or FULL_WINDOW_S
    else:
        window = found.metadata["audio_window_s"]
    facts = CardFacts(
        title=title,
        kind=found.kind,
        source=f"`{title}`",
        base=found.whisper.name if found.kind != "whisper" else None,
        languages=found.languages,
        tokens=tokens_of(found),
        audio_window_s=window,
        run=read_training(found.folder),
        routed=found.kind in ("experts", "bundle"),
    )
    return card(facts)


def tokens_of(found: ModelSource) -> dict[str, str]:
    """Returns language -> the other language whose token stands for it in prompts."""
    if found.kind == "experts":
        language, token = found.metadata["language"], found.metadata["token"]
        return {language: token} if token != language else {}
    if found.kind == "bundle":
        return {code: entry["token"] for code, entry in found.metadata["languages"].items() if "token" in entry}
    return dict(found.metadata.get("language_tokens", {}))
