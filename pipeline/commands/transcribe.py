"""pipeline transcribe"""

import click

from cache import storage
from pipeline.commands.common import chosen_device, load_any
from pipeline.params import Params
from stages.student.experts import is_experts_folder, read_config
from stages.transcribe import transcribe as transcribe_file


def transcribe(params: Params, paths: list[str], language: str | None, source: str) -> None:
    folder = storage.path(source)
    if language is None:
        if not is_experts_folder(folder):
            raise click.UsageError(f"--lang is needed: {source} is not a folder of experts, which know their language")
        language = read_config(folder)["language"]
    device = chosen_device(params)
    model = load_any(source)
    for path in paths:
        if len(paths) > 1:
            print(f"{path}:")
        for text in transcribe_file(model, storage.path(path), language, device):
            print(text, flush=True)
