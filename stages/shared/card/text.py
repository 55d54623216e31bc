"""Writes a card: what the model is, what it was trained on, how to run it, what was measured, and what it is bad at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from stages.shared.card.measured import Measured, eval_results, section
from stages.shared.card.snippets import OURS, OURS_WINDOW
from stages.shared.facts import Training
from stages.shared.methods import LORA, method_named
from stages.shared.whisper.languages import language_name
from stages.shared.whisper.window import FULL_WINDOW_S

KINDS = {"whisper": "a Whisper", "experts": "experts (CLSR)", "adapter": "a LoRA adapter", "bundle": "a bundle"}
OWN_LIBRARY = "whisper-offline-distillation"
LIBRARIES = {"whisper": "transformers", "adapter": "peft"}  # as the hub's metadata names them
# corpus -> its dataset on the hub, if there is one, and its licence
DATA = {
    "common-voice": ("mozilla-foundation/common_voice_13_0", "CC0-1.0"),
    "fleurs": ("google/fleurs", "CC-BY-4.0"),
    "fish-fillets": (None, "GPL-2.0"),
}
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
NOT_MEASURED = "Its error rates on a test split were not known when this card was written."


@dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    source: what the model was made from: the method, or the folder or hub id. base: of experts and adapters, or what was
    fine-tuned. tokens: language -> the other language whose token stands for it in prompts. run: the training's facts,
    None if they are not known. how: the lines that run the model; None: those of this project. routed: other languages go
    through the base's own blocks. rows: further rows of the table. sections: further sections, whole.
    """

    title: str
    kind: str  # of KINDS
    source: str
    base: str | None
    languages: Sequence[str]
    tokens: Mapping[str, str]
    audio_window_s: int
    library: str | None = None
    run: Training | None = None
    how: str | None = None
    routed: bool = False
    rows: Sequence[tuple[str, str]] = ()
    sections: Sequence[str] = ()
    licence: str | None = None


def card(facts: CardFacts, measured: Sequence[Measured] = ()) -> str:
    """Returns the whole README.md, with the hub's metadata at its top."""
    parts = [
        f"---\n{_metadata(facts)}\n---",
        f"# {cell(facts.title)}",
        _table(facts),
        "\n\n".join(["## How to run it", *_how(facts)]),
        *facts.sections,
        f"## Measured\n\n{BEGIN}\n{NOT_MEASURED}\n{END}",
        "## What it is bad at\n\n" + "\n".join(f"- {line}" for line in _limits(facts)),
    ]
    return with_measured("\n\n".join(parts) + "\n", measured)


def with_measured(text: str, measured: Sequence[Measured], licence: str | None = None) -> str:
    """Returns a card with these rates in its section and in the metadata, and with the licence, if one is given.

    A section whose marks somebody has removed stays as it is, and so does the rest of the text. A text without metadata
    gets some.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if measured and begin and end:
        text = f"{before}{BEGIN}\n{section(measured)}\n{END}{after}"
    written = ModelCard(text, ignore_metadata_errors=True)
    data: Any = written.data
    if results := eval_results(measured):
        data.model_name, data.eval_results = _heading(text), results
    if licence:
        data.license = licence
    return str(written)


def _heading(text: str) -> str:
    return next((line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")), "model")


def _metadata(facts: CardFacts) -> str:
    base, library = facts.base or "", facts.library or LIBRARIES.get(facts.kind, OWN_LIBRARY)
    corpora = {DATA[one][0] for one in corpora_of(facts.run) if one in DATA}
    return ModelCardData(
        language=list(facts.languages) or None,
        license=facts.licence,
        library_name=library,
        pipeline_tag="automatic-speech-recognition",
        base_model=base if is_hub_id(base) else None,
        datasets=sorted(one for one in corpora if one) or None,
        tags=["whisper", *([LORA.name] if library == LIBRARIES["adapter"] else [])],
    ).to_yaml()


def is_hub_id(name: str) -> bool:
    """Tells whether a base is one of the hub's, which others can have."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).is_dir()


def corpora_of(run: Training | None) -> list[str]:
    """Returns the names of the corpora of a training."""
    return list(dict.fromkeys(one.corpus for one in run.data.values() if one.corpus)) if run else []


def _table(facts: CardFacts) -> str:
    named = ", ".join(f"{language_name(code)} ({code})" for code in facts.languages) or "not named"
    rows = [
        ("made from", f"{facts.source}: {KINDS[facts.kind]}"),
        *([("base", f"`{cell(facts.base)}`")] if facts.base else []),
        ("language", named),
        *[("prompt", f"`<|{token}|>` stands for {language_name(code)}") for code, token in facts.tokens.items()],
        ("audio window", f"{facts.audio_window_s} s"),
        *facts.rows,
        *_training(facts.run),
    ]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows)])


def cell(text: str) -> str:
    """Leaves out of a name what would end a cell, a code span, a string or a line."""
    return "".join(char if char.isprintable() and char not in '|`"\\' else " " for char in text)


def _training(run: Training | None) -> Iterator[tuple[str, str]]:
    if not run:
        return
    corpora = [f"{cell(one)}{_licence_of(one)}" for one in corpora_of(run)]
    yield "data", f"{', '.join(corpora) or 'not named'}; {run.training_utterances:,} utterances in training"
    if run.teacher_targets:
        yield "words of the teacher", f"the targets of {run.teacher_targets:,} of these utterances"
    if teachers := sorted({name for one in run.data.values() for name in one.teachers}):
        yield "teacher", ", ".join(f"`{cell(one)}`" for one in teachers)
    yield "training", f"{method_named(run.settings.method).title}, {run.steps:,} steps, seed {run.settings.seed}"
    yield (
        "validation WER",
        f"{100 * run.best_validation_wer:.1f} % on {run.validation_utterances:,} utterances, by which the weights of "
        f"step {run.best_step:,} were chosen",
    )


def _licence_of(corpus: str) -> str:
    return f" (licence {DATA[corpus][1]})" if corpus in DATA else ""


def _how(facts: CardFacts) -> Iterator[str]:
    if facts.how is not None:
        yield facts.how
        return
    yield OURS.format(code=facts.languages[0] if facts.languages else "en")
    if facts.audio_window_s < FULL_WINDOW_S:
        yield OURS_WINDOW.format(window=facts.audio_window_s)


def _limits(facts: CardFacts) -> Iterator[str]:
    named = ", ".join(map(language_name, facts.languages)) or "the language of its training"
    if facts.routed:
        yield f"Other languages than {named} go through the base's own blocks: they are as good and as bad as the base's."
    else:
        yield f"Other languages than {named} were changed by the training too, for better or worse."
    if corpora := corpora_of(facts.run):
        yield (
            f"It was trained on {', '.join(map(cell, corpora))} alone. Expect more errors on other speech: other microphones, "
            "noise, free talk, accents."
        )
    if facts.run and not facts.run.settings.timestamps:
        yield "It was trained without timestamps: nobody has checked the times that it writes as tokens."
    if facts.audio_window_s < FULL_WINDOW_S:
        yield f"It knows windows of {facts.audio_window_s} s. In a longer window it says other things than were measured."
    yield "As any Whisper it may write words where nobody speaks, and repeat itself."
    yield "The error rates do not judge capitals and punctuation. Read a text before you publish it."
