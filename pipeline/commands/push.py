"""pipeline push"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from cache.errors import PipelineError
from cache.storage import AnyPath
from pipeline.commands.common import say
from pipeline.options import printable
from pipeline.params import Params
from stages.push import run
from stages.shared.card.measured import find_measured


def push(
    params: Params, model: AnyPath, repository: str, licence: str | None, private: bool, message: str, yes: bool
) -> None:
    _check_repository(repository)
    if not isinstance(model, Path):
        raise PipelineError(f"{model}: a URL, expected a folder of this machine: copy it first")
    api = HfApi()
    measured = find_measured(params.paths.metrics, str(model))
    planned = run.plan(model, repository, measured, licence or params.licence, private, api)
    for line in _lines(planned):
        print(printable(line))
    for line in planned.warnings:
        say(printable(f"{model}: {line}"))
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("nobody is there to answer: give --yes to send what is listed")
    if not yes and not click.confirm(f"Send {planned.bytes / 1e6:.1f} MB to {repository}?"):
        raise click.Abort
    address = run.push(planned, message, api)
    say(f"{repository}: {1 + len(planned.files)} files, {planned.bytes / 1e6:.1f} MB: {address}")


def _check_repository(repository: str) -> None:
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise click.BadParameter(f"{error}", param_hint="OWNER/NAME") from None
    if repository.count("/") != 1:
        raise click.BadParameter(f"'{repository}': expected OWNER/NAME", param_hint="OWNER/NAME")


def _lines(planned: run.Plan) -> Iterator[str]:
    kind = ("new, private" if planned.private else "new") if planned.new else "is there already"
    yield f"to {planned.repository} ({kind}):"
    for name, size in planned.files.items():
        yield f"  {size:>14,}  {name}"
    yield f"  {len(planned.card.encode()):>14,}  README.md, this card:"
    yield ""
    yield from (f"    {line}" for line in planned.card.splitlines())
    yield ""
    if planned.left:
        yield f"not sent, of the training alone: {', '.join(planned.left)}"
    if planned.kept:
        yield f"stays there: {', '.join(planned.kept)}"
