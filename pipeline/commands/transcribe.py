"""pipeline transcribe"""

import click

from cache import storage
from pipeline.commands.common import chosen_device, load_any, say, token
from pipeline.errors import each
from pipeline.params import Params
from stages.shared.student.loading import locate
from stages.shared.whisper.languages import code_of
from stages.shared.whisper.targets import use_token
from stages.transcribe.run import transcribe as transcribe_file


def transcribe(params: Params, paths: list[str], language: str | None, source: str, base: str | None) -> None:
    found = locate(source, base)
    if language is None and len(found.languages) != 1:
        knows = f"was trained for {', '.join(found.languages)}" if found.languages else "does not say its language"
        raise click.UsageError(f"--lang is needed: {source} {knows}")
    language = language or found.languages[0]
    device = chosen_device(params)
    model, how = load_any(found), params.evaluate
    entry, language = language, code_of(language)
    use_token(model.whisper.model, language, token(params, entry))

    def transcribe_one(path: str) -> None:
        if len(paths) > 1:
            print(f"{path}:", flush=True)
        for said in transcribe_file(model, storage.path(path), language, device, how.dtype, how.cut_loops, say):
            if said.text:
                print(said.text, flush=True)

    each(paths, str, transcribe_one)
