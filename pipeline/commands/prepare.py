"""pipeline prepare"""

import click
from pydantic import TypeAdapter

from cache.errors import PipelineError
from pipeline.commands.common import chosen, say
from pipeline.params import Params, checked
from pipeline.progress import ProgressReport
from stages.prepare.run import prepare as prepare_corpus
from stages.prepare.settings import CorpusSettings


def prepare(params: Params, languages: list[str], corpus: str | None, path: str | None, restart: bool) -> None:
    for language in chosen(params, languages):
        own, further = _corpora(params, language, corpus, path)
        for settings, suffix in [(own, ""), *((one, f"@{one.name}") for one in further)]:
            out = params.paths.utterances / language
            with ProgressReport(f"prepare {language} {settings.name}", "utterances") as progress:
                splits = prepare_corpus(
                    settings, params.prepare, language, out, params.audio_window_s, restart, suffix, progress.audio
                )
            for split in splits:
                say(f"{split}")


def _corpora(
    params: Params, language: str, corpus: str | None, path: str | None
) -> tuple[CorpusSettings, list[CorpusSettings]]:
    if corpus:
        values = {"corpus": corpus, **({"path": path} if path else {})}
        return checked(TypeAdapter(CorpusSettings), values, f"--corpus {corpus}"), []
    if path:
        raise click.UsageError("--path goes with --corpus")
    if language not in params.languages:
        known = ", ".join(params.languages) or "none"
        raise PipelineError(f"no corpus for '{language}' in the parameters (there: {known}): give --corpus and --path")
    return params.languages[language].corpus, params.languages[language].further_tests
