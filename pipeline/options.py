"""What the command line's modules share."""

import json
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import click

from cache.errors import PipelineError

base_option = click.option(
    "--base",
    metavar="FOLDER_OR_ID",
    help="Where the base model of experts or of an adapter lies, if not where they name it; its weights are checked.",
)


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


def print_json(value: Any) -> None:
    """Prints letters as they are where the console's encoding has them all, else as JSON's escapes."""
    letters = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not letters, indent=2))


def print_facts(
    found: list[dict[str, Any]], as_json: bool, lines: Callable[[dict[str, Any]], Iterable[tuple[str, str]]]
) -> None:
    """Prints each folder's facts, as JSON or under its name as the `lines` (name, text) that are made of them."""
    if as_json and found:
        print_json(found)
        return
    for each in found:
        print(printable(each["folder"]))
        for name, text in lines(each):
            print(f"  {name:<20} {printable(text)}")


def language_of(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A code or a name -> its code; a line says what it is taken as where that is another."""
    from stages.shared.whisper.languages import language_code, taken_as

    try:
        code = language_code(value)
    except PipelineError as error:
        raise click.BadParameter(str(error)) from None
    if line := taken_as(value, code):
        click.echo(printable(line), err=True)
    return code


def languages_of(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Codes or names, repeated or separated by commas -> codes, each once."""
    return list(dict.fromkeys(language_of(ctx, param, part) for value in values for part in value.split(",")))


lang_option = click.option(
    "--lang",
    "languages",
    multiple=True,
    callback=languages_of,
    metavar="LANG",
    help="Code or name, one or several; default: all in the parameters.",
)

token_option = click.option(
    "--token",
    metavar="LANG",
    help="For a language that Whisper has no token for: a related one, by whose token it is prompted.",
)


def with_token(languages: list[str], token: str | None) -> dict[str, Any]:
    """`--token` as flags for `params_of`: it is the one language's parameter."""
    if token is None:
        return {}
    if len(languages) != 1:
        raise click.UsageError("--token needs --lang with one language; of several, name each one's in the parameters")
    return {f"languages__{languages[0]}__token": token}


def params_of(ctx: click.Context, **flags: Any):
    """The parameters, with the flags that were given on top (`section__name` stands for `section.name`)."""
    from pipeline.params import load_params

    path, overrides = ctx.obj
    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    return load_params(path, {**overrides, **given})
