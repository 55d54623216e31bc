"""pipeline transcribe"""

import click

from cache import storage
from cache.storage import AnyPath
from pipeline.commands.common import chosen_device, load_any, say, token
from pipeline.errors import each
from pipeline.params import Params
from stages.shared.student.experts import is_experts_folder, read_config
from stages.shared.student.lora import is_lora_folder, read_lora_config
from stages.shared.whisper.targets import use_token
from stages.transcribe.run import transcribe as transcribe_file


def transcribe(params: Params, paths: list[str], language: str | None, source: str, base: str | None) -> None:
    folder = storage.path(source)
    language = language or _language(folder)
    if language is None:
        raise click.UsageError(f"--lang is needed: {source} is not a folder of experts, which know their language")
    device = chosen_device(params)
    model, how = load_any(source, base=base), params.evaluate
    use_token(model.whisper.model, language, token(params, language))

    def transcribe_one(path: str) -> None:
        if len(paths) > 1:
            print(f"{path}:", flush=True)
        for said in transcribe_file(model, storage.path(path), language, device, how.dtype, how.cut_loops, say):
            if said.text:
                print(said.text, flush=True)

    each(paths, str, transcribe_one)


def _language(folder: AnyPath) -> str | None:
    """The one that the folder's experts or adapter were trained for."""
    if is_experts_folder(folder):
        return read_config(folder)["language"]
    languages = read_lora_config(folder)["languages"] if is_lora_folder(folder) else []
    return languages[0] if len(languages) == 1 else None
