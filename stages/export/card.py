"""Writes the card of an exported folder: what it is, from which model, how to run it, and what was measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData

from stages.export.fold import Fold
from stages.export.formats import PEFT, Format
from stages.export.snippets import about_window, snippet
from stages.shared.methods import LORA
from stages.shared.student.loading import ModelSource
from stages.shared.whisper.languages import language_name
from stages.shared.whisper.window import FULL_WINDOW_S

KINDS = {"whisper": "a Whisper", "experts": "experts (CLSR)", "adapter": "a LoRA adapter"}
CHOICES = {
    "gates": "in each layer the block that most tokens of the validation split took",
    "wer": "the blocks that the gates chose most, changed layer by layer where that lowered the validation error rate. The "
    "fold was chosen on the utterances that measure it here, which flatters it",
    "all": "the expert's block in each layer that has one",
}


@dataclass(frozen=True)
class Measured:
    """What `evaluate` found for the model before its export."""

    corpus: str
    split: str
    utterances: int
    wer: float  # a fraction, as cer
    cer: float
    dtype: str


@dataclass(frozen=True)
class Facts:
    """What the card tells. tokens: language -> the other language whose token stands for it in prompts."""

    title: str
    found: ModelSource
    format: Format
    precision: str
    languages: list[str]
    tokens: Mapping[str, str]
    audio_window_s: int
    fold: Fold | None
    measured: list[Measured]


def card(facts: Facts) -> str:
    """Returns the whole README.md, with the hub's metadata at its top."""
    parts = [f"---\n{_metadata(facts)}\n---", f"# {_cell(facts.title)}", _what(facts), _how(facts)]
    if facts.fold:
        parts.append("## Folded experts\n\n" + "\n".join(_fold(facts.fold)))
    if facts.measured:
        parts.append("## Measured before the export\n\n" + "\n".join(_measured(facts)))
    return "\n\n".join(parts) + "\n"


def _metadata(facts: Facts) -> str:
    base = facts.found.whisper.name
    of_hub = base.count("/") == 1 and not Path(base).is_dir()
    return ModelCardData(
        language=facts.languages or None,
        library_name=facts.format.library,
        pipeline_tag="automatic-speech-recognition",
        base_model=base if of_hub else None,
        tags=["whisper", *([LORA.name] if facts.format == PEFT else [])],
    ).to_yaml()


def _what(facts: Facts) -> str:
    named = ", ".join(f"{language_name(code)} ({code})" for code in facts.languages) or "not named"
    rows = [
        ("made from", f"`{_cell(facts.found.name)}`: {KINDS[facts.found.kind]}"),
        *([("base", f"`{_cell(facts.found.whisper.name)}`")] if facts.found.kind != "whisper" else []),
        ("language", named),
        *[("prompt", f"`<|{token}|>` stands for {language_name(code)}") for code, token in facts.tokens.items()],
        ("audio window", f"{facts.audio_window_s} s"),
        ("format", f"{facts.format.name}, {facts.precision}"),
    ]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows)])


def _cell(text: str) -> str:
    """Leaves out of a name what would end a cell, a code span, a string or a line."""
    return "".join(char if char.isprintable() and char not in '|`"\\' else " " for char in text)


def _how(facts: Facts) -> str:
    code = facts.languages[0] if facts.languages else "en"
    text = snippet(
        facts.format.name, facts.tokens.get(code, code), facts.audio_window_s, _cell(facts.found.whisper.name)
    )
    window = [about_window(facts.audio_window_s)] if facts.audio_window_s < FULL_WINDOW_S else []
    return "\n\n".join(["## How to run it", text, *window])


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


def _measured(facts: Facts) -> Iterator[str]:
    what = "the model with its experts, not of this folded one" if facts.fold and facts.fold.choice else "the model"
    yield f"Error rates of {what}, by `pipeline evaluate` in its own window.\n"
    yield "| corpus | split | utterances | WER % | CER % | precision |\n| --- | --- | --- | --- | --- | --- |"
    for one in facts.measured:
        rates = f"{100 * one.wer:.1f} | {100 * one.cer:.1f}"
        yield f"| {one.corpus} | {one.split} | {one.utterances:,} | {rates} | {one.dtype} |"
