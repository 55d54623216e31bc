"""pipeline prepare"""

from dataclasses import dataclass
from typing import Any

import click
from pydantic import TypeAdapter

from cache.errors import PipelineError
from cache.resume import Rerun
from cache.shards import LEFT_OUT, NOTICED
from pipeline.commands.common import languages_or_all, say, token
from pipeline.errors import each
from pipeline.options import printable
from pipeline.params import Params, checked
from pipeline.progress import ProgressReport
from stages.prepare.corpora import settings_class
from stages.prepare.run import SplitSummary
from stages.prepare.run import prepare as prepare_corpus
from stages.prepare.settings import CorpusSettings
from stages.shared.whisper.languages import LANGUAGES, code_of, how_to_name_a_token


@dataclass(frozen=True)
class CorpusChoice:
    """The corpus that the command line names instead of the parameters."""

    corpus: str | None
    path: str | None
    columns: str | None  # pairs OURS=THEIRS, separated by commas


def prepare(params: Params, languages: list[str], choice: CorpusChoice, rerun: Rerun) -> None:
    further = [] if choice.corpus else list(params.further_tests)

    def prepare_one(item: tuple[str, str | None]) -> None:
        language, test = item
        if test is None and token(params, language) is None and code_of(language) not in LANGUAGES:
            say(f"{how_to_name_a_token(language)}; `prepare` does not need one")
        settings = params.further_tests[test] if test else _own_corpus(params, language, choice)
        _prepare(params, language, settings, f"@{test}" if test else "", rerun)

    items = [(language, test) for language in languages_or_all(params, languages) for test in [None, *further]]
    each(items, lambda item: f"{item[0]} {item[1] or ''}".strip(), prepare_one)


def _prepare(params: Params, language: str, settings: CorpusSettings, suffix: str, rerun: Rerun) -> None:
    out = params.paths.utterances / language
    with ProgressReport(f"prepare {language} {settings.name}", "utterances") as progress:
        splits = prepare_corpus(
            settings, params.prepare, code_of(language), out, params.audio_window_s, rerun, suffix, progress.audio
        )
    for split in splits:
        _say_split(split)
    for note in splits[0].notes:
        say(f"{out}: {printable(note)}")


def _say_split(split: SplitSummary) -> None:
    reasons, noticed = _counts(split.left_out), _counts(split.noticed)
    say(
        f"{split.folder}: {split.utterances} utterances, {split.seconds / 3600:.2f} h"
        + (f"; left out: {reasons}, see {split.folder / LEFT_OUT}" if reasons else "")
        + (f"; kept but noticed: {noticed}, see {split.folder / NOTICED}" if noticed else "")
        + (f"; {split.not_selected} not selected" if split.not_selected else "")
    )


def _counts(by_reason: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in by_reason.items())


def _own_corpus(params: Params, language: str, choice: CorpusChoice) -> CorpusSettings:
    if choice.corpus:
        values: dict[str, Any] = {"corpus": choice.corpus, **({"path": choice.path} if choice.path else {})}
        if choice.columns:
            values |= _columns(choice.corpus, choice.columns)
        return checked(TypeAdapter(CorpusSettings), values, f"--corpus {choice.corpus}")
    for option, value in (("--path", choice.path), ("--columns", choice.columns)):
        if value:
            raise click.UsageError(f"{option} goes with --corpus")
    listed = {code: own.corpus for code, own in params.languages.items() if own.corpus}
    if language not in listed:
        known = ", ".join(listed) or "none"
        raise PipelineError(f"no corpus for '{language}' in the parameters (there: {known}): give --corpus and --path")
    return listed[language]


def _columns(corpus: str, text: str) -> dict[str, Any]:
    """Returns --columns as settings of the corpus."""
    pairs = [part.partition("=") for part in text.split(",")]
    if wrong := [part[0] for part in pairs if not all(part)]:
        raise click.BadParameter(f"'{wrong[0]}': expected OURS=THEIRS, …", param_hint="--columns")
    names = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    try:
        values = settings_class(corpus).columns_as(names)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--columns") from None
    if values is None:
        raise click.UsageError(f"--columns goes with --corpus manifest or dataset: {corpus} has columns of its own")
    return values
