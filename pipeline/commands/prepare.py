"""pipeline prepare"""

import click
from pydantic import TypeAdapter

from cache.errors import PipelineError
from cache.settings import Rerun
from cache.shards import LEFT_OUT
from pipeline.commands.common import chosen, say
from pipeline.params import Params, checked
from pipeline.progress import ProgressReport
from stages.prepare.run import prepare as prepare_corpus
from stages.prepare.settings import CorpusSettings


def prepare(params: Params, languages: list[str], corpus: str | None, path: str | None, rerun: Rerun) -> None:
    for language in chosen(params, languages):
        own = _own_corpus(params, language, corpus, path)
        further = {} if corpus else params.further_tests
        for settings, suffix in [(own, ""), *((settings, f"@{name}") for name, settings in further.items())]:
            out = params.paths.utterances / language
            with ProgressReport(f"prepare {language} {settings.name}", "utterances") as progress:
                splits = prepare_corpus(
                    settings, params.prepare, language, out, params.audio_window_s, rerun, suffix, progress.audio
                )
            for split in splits:
                reasons = ", ".join(f"{count} {reason}" for reason, count in split.left_out.items())
                say(
                    f"{split.folder}: {split.utterances} utterances, {split.seconds / 3600:.2f} h"
                    + (f"; left out: {reasons}, see {split.folder / LEFT_OUT}" if reasons else "")
                    + (f"; {split.not_selected} not selected" if split.not_selected else "")
                )


def _own_corpus(params: Params, language: str, corpus: str | None, path: str | None) -> CorpusSettings:
    if corpus:
        values = {"corpus": corpus, **({"path": path} if path else {})}
        return checked(TypeAdapter(CorpusSettings), values, f"--corpus {corpus}")
    if path:
        raise click.UsageError("--path goes with --corpus")
    if language not in params.languages:
        known = ", ".join(params.languages) or "none"
        raise PipelineError(f"no corpus for '{language}' in the parameters (there: {known}): give --corpus and --path")
    return params.languages[language].corpus
