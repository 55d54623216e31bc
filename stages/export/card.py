"""Writes the card of an exported folder: what it is, from which model, how to run it, and what was measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stages.export.fold import Fold
from stages.export.formats import ONNX, Format
from stages.shared.card.measured import Measured, section
from stages.shared.card.snippets import about_window, snippet
from stages.shared.card.text import CardFacts, cell
from stages.shared.card.text import card as card_text
from stages.shared.facts import read_training
from stages.shared.student.loading import ModelSource
from stages.shared.whisper.window import FULL_WINDOW_S

CHOICES = {
    "gates": "in each layer the block that most tokens of the validation split took",
    "wer": "the blocks that the gates chose most, changed layer by layer where that lowered the validation error rate. The "
    "fold was chosen on the utterances that measure it here, which flatters it",
    "all": "the expert's block in each layer that has one",
}


@dataclass(frozen=True)
class Written:
    """What was written. fold: of experts with gates. precision: of the stored numbers. licence: as SPDX names it."""

    title: str
    found: ModelSource
    format: Format
    precision: str
    languages: list[str]
    tokens: Mapping[str, str]
    audio_window_s: int
    fold: Fold | None
    measured: Sequence[Measured]
    licence: str | None = None


def card(written: Written) -> str:
    """Returns the whole README.md. The rates of a model whose experts were folded are not its own."""
    lossy = written.fold is not None and written.fold.choice is not None
    facts = CardFacts(
        title=written.title,
        kind=written.found.kind,
        source=f"`{cell(written.found.name)}`",
        base=written.found.whisper.name if written.found.kind != "whisper" else None,
        languages=written.languages,
        tokens=written.tokens,
        audio_window_s=written.audio_window_s,
        library=written.format.library,
        run=read_training(written.found.folder),
        how=_how(written),
        routed=written.found.kind == "experts" and written.format == ONNX,
        rows=[("format", f"{written.format.name}, {written.precision}")],
        sections=list(_sections(written, lossy)),
        licence=written.licence,
    )
    return card_text(facts, [] if lossy else written.measured)


def _how(written: Written) -> str:
    code = written.languages[0] if written.languages else "en"
    text = snippet(
        written.format.name,
        written.tokens.get(code, code),
        written.audio_window_s,
        cell(written.found.whisper.name),
    )
    return "\n\n".join(
        [text, *([about_window(written.audio_window_s)] if written.audio_window_s < FULL_WINDOW_S else [])]
    )


def _sections(written: Written, lossy: bool) -> Iterator[str]:
    if written.fold:
        yield "## Folded experts\n\n" + "\n".join(_fold(written.fold))
    if lossy and written.measured:
        yield (
            "## Measured before the export\n\nError rates of the model with its experts, not of this folded one.\n\n"
            + (section(written.measured))
        )


def fold_lines(fold: Fold) -> list[str]:
    """Returns lines for the user: how many layers keep the expert, and what the fold costs."""
    own = {
        side: [kept for name, kept in fold.layers.items() if name.startswith(side)] for side in ("encoder", "decoder")
    }
    kept = ", ".join(f"{side} {sum(each)} of {len(each)}" for side, each in own.items())
    how = f"fold by {fold.choice}" if fold.choice else "the fold is exact"
    return [f"{how}: layers with the expert's block: {kept}", *_compared(fold)]


def _compared(fold: Fold) -> Iterator[str]:
    if fold.comparison:
        routed, folded = fold.comparison.routed, fold.comparison.folded
        difference, low, high = (100 * value for value in fold.comparison.difference)
        yield (
            f"validation, {routed['utterances']} utterances: routed {100 * routed['wer']:.1f} % WER, folded "
            f"{100 * folded['wer']:.1f} %, difference {difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"
        )


def _fold(fold: Fold) -> Iterator[str]:
    yield "A plain Whisper has one feed-forward block in each layer. The model had two, the base's and the expert's."
    if fold.choice is None:
        yield "Each layer sent all tokens to the same block, so that nothing is lost here."
        return
    yield f"Its gates chose for each token. Here stays {CHOICES[fold.choice]}."
    yield ""
    yield from (f"{line[0].upper()}{line[1:]}." for line in _compared(fold))
    yield "\n| layer | block that stays | tokens that took the expert |\n| --- | --- | --- |"
    for name, kept in fold.layers.items():
        yield f"| {name} | {'expert' if kept else 'base'} | {100 * fold.shares[name]:.0f} % |"
