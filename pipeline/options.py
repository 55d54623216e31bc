"""What the command line's modules share."""

import json
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import click

from cache.errors import PipelineError


def rerun_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --update and --restart; the command gets `rerun`, what becomes of earlier work."""

    @click.option(
        "--update",
        is_flag=True,
        help="Keep earlier work of the same settings, inputs and stage version; remove any other and make it again.",
    )
    @click.option(
        "--restart",
        is_flag=True,
        help="Remove earlier work, whatever it is, and begin again. Where such a run is stopped, give the same command "
        "without --restart to go on.",
    )
    @wraps(command)
    def with_rerun(*arguments: Any, update: bool, restart: bool, **options: Any) -> None:
        if update and restart:
            raise click.UsageError("--update keeps the same work, --restart keeps none: give one of them")
        command(*arguments, rerun="update" if update else "restart" if restart else "refuse", **options)

    return with_rerun


def examples(text: str) -> str:
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in text.strip().splitlines())


def printable(text: str) -> str:
    """On one line, and for a terminal, which an id or a name from elsewhere must not command."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def print_facts(
    found: list[dict[str, Any]], as_json: bool, lines: Callable[[dict[str, Any]], Iterable[tuple[str, str]]]
) -> None:
    """Each folder's facts, as JSON or under its name as the `lines` (name, text) that are made of them."""
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for each in found:
        print(printable(each["folder"]))
        for name, text in lines(each):
            print(f"  {name:<20} {printable(text)}")


def languages_of(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Codes or names, repeated or separated by commas -> codes."""
    from stages.whisper.languages import language_code

    try:
        return [language_code(part) for value in values for part in value.split(",")]
    except PipelineError as error:
        raise click.BadParameter(str(error)) from None


lang_option = click.option(
    "--lang",
    "languages",
    multiple=True,
    callback=languages_of,
    metavar="LANG",
    help="Code or name, one or several; default: all in the parameters.",
)


def params_of(ctx: click.Context, **flags: Any):
    """The parameters, with the flags that were given on top (`section__name` stands for `section.name`)."""
    from pipeline.params import load_params

    path, overrides = ctx.obj
    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    return load_params(path, {**overrides, **given})
