"""Options, their callbacks and printing, for all modules of the command line."""

import json
import re
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
    help="Base of experts or an adapter: folder or hub id; default: the one that they name. Its weights are checked.",
)

licence_option = click.option(
    "--licence",
    metavar="NAME",
    help="For the card, as the hub names it: cc-by-4.0, apache-2.0; default: the parameters'.",
)


def rerun_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --update and --restart. The command gets `rerun`: what to do with earlier work."""

    @click.option(
        "--update",
        is_flag=True,
        help="Keep earlier work with the same settings, inputs and stage version. Remove other work and make it again.",
    )
    @click.option(
        "--restart",
        is_flag=True,
        help="Remove all earlier work and begin again. To go on after an interruption, give the same command without "
        "--restart.",
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
    """Escapes line breaks and control characters: a name from a file must not control the terminal."""
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
    """Returns the code of a language. Prints a line if `value` is neither a code nor a usual name."""
    from stages.shared.whisper.languages import language_code, taken_as

    try:
        code = language_code(value)
    except PipelineError as error:
        raise click.BadParameter(str(error)) from None
    if line := taken_as(value, code):
        click.echo(printable(line), err=True)
    return code


def languages_of(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Returns the languages' entries, each once. An option may be repeated, and may have several separated by commas."""
    return list(dict.fromkeys(entry_of(ctx, param, part) for value in values for part in value.split(",")))


def entry_of(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Returns the name of a language's entry in the parameters: a code, or one with a name, such as ca-x-3k."""
    from stages.shared.whisper.languages import NAMED, entry_name

    if NAMED not in value.lower():
        return language_of(ctx, param, value)
    try:
        return entry_name(value)
    except PipelineError as error:
        raise click.BadParameter(str(error)) from None


def name_of(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Returns the name of a system: it becomes a file's name. A name in `baselines` begins with base-."""
    if value is not None and (not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value) or value.startswith("base-")):
        raise click.BadParameter(
            f"{value!r}: expected up to 64 letters of A-Z, digits, '.', '_' and '-', and not base- at its beginning"
        )
    return value


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
    help="Code, name or entry of the parameters (ca-x-3k), one or several; default: all in the parameters.",
)

token_option = click.option(
    "--token",
    metavar="LANG",
    help="For a language without a token in Whisper: the related language whose token is used in its place.",
)


def with_token(languages: list[str], token: str | None) -> dict[str, Any]:
    """Returns `--token` as a flag for `params_of`: the parameter of one language."""
    if token is None:
        return {}
    if len(languages) != 1:
        raise click.UsageError("--token needs --lang with one language; for several, name each token in the parameters")
    return {f"languages__{languages[0]}__token": token}


def params_of(ctx: click.Context, **flags: Any):
    """Returns the parameters, overridden by flags. `section__name` stands for `section.name`. None: the flag was not given."""
    from pipeline.params import load_params

    params_path, overrides = ctx.obj
    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    return load_params(params_path, {**overrides, **given})


def pop_section(flags: dict[str, Any], section: str) -> dict[str, Any]:
    """Removes the flags `section__name` from `flags`. Returns those that were given, by `name`."""
    names = [name for name in flags if name.startswith(f"{section}__")]
    taken = {name.partition("__")[2]: flags.pop(name) for name in names}
    return {name: value for name, value in taken.items() if value is not None}
