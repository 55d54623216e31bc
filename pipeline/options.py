"""What the modules of the command line share."""

import json
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import click

from cache.errors import PipelineError
from cache.storage import AnyPath, path

base_option = click.option(
    "--base",
    metavar="FOLDER_OR_ID",
    help="Folder or hub id of the base model of experts or an adapter, if it is not where they say; its weights are checked.",
)


def rerun_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --update and --restart. The command is given `rerun`: what becomes of earlier work."""

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
    """Escapes line breaks and control characters: a name from elsewhere must not command the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def print_json(value: Any) -> None:
    """Prints JSON. Letters are escaped unless the console's encoding is UTF-8."""
    letters = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not letters, indent=2))


def print_descriptions(
    found: list[dict[str, Any]], as_json: bool, lines: Callable[[dict[str, Any]], Iterable[tuple[str, str]]]
) -> None:
    """Prints each folder's description as JSON, or the folder's name and below it the `lines` (name, text) made from it."""
    if as_json and found:
        print_json(found)
        return
    for each in found:
        print(printable(each["folder"]))
        for name, text in lines(each):
            print(f"  {name:<20} {printable(text)}")


def language_of(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Turns a code or a name into its code. Prints a line where it is taken as another language's."""
    from stages.shared.whisper.languages import language_code, taken_as

    try:
        code = language_code(value)
    except PipelineError as error:
        raise click.BadParameter(str(error)) from None
    if line := taken_as(value, code):
        click.echo(printable(line), err=True)
    return code


def languages_of(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Turns codes or names, repeated or separated by commas, into codes, each once."""
    return list(dict.fromkeys(language_of(ctx, param, part) for value in values for part in value.split(",")))


def path_of(ctx: click.Context, param: click.Parameter, value: str | None) -> AnyPath | None:
    return None if value is None else path(value)


def paths_of(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[AnyPath, ...]:
    return tuple(map(path, values))


folders_argument = click.argument("folders", nargs=-1, required=True, callback=paths_of, metavar="FOLDER...")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
device_option = click.option("--device", help="auto, cpu or cuda.")

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
    help="The related language by whose token Whisper is prompted, for a language that it has no token for.",
)


def with_token(languages: list[str], token: str | None) -> dict[str, Any]:
    """Returns `--token` as a flag for `params_of`: it is a parameter of the one language."""
    if token is None:
        return {}
    if len(languages) != 1:
        raise click.UsageError("--token needs --lang with one language; of several, name each one's in the parameters")
    return {f"languages__{languages[0]}__token": token}


def params_of(ctx: click.Context, **flags: Any):
    """Returns the parameters with the given flags on top. `section__name` stands for `section.name`; None is not given."""
    from pipeline.params import load_params

    params_path, overrides = ctx.obj
    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    return load_params(params_path, {**overrides, **given})


def pop_section(flags: dict[str, Any], section: str) -> dict[str, Any]:
    """Takes the flags `section__name` out of `flags`, and returns those that were given, by `name`."""
    names = [name for name in flags if name.startswith(f"{section}__")]
    taken = {name.partition("__")[2]: flags.pop(name) for name in names}
    return {name: value for name, value in taken.items() if value is not None}
