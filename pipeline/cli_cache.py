"""`pipeline cache`: what lies in folders of shards, whether it is whole, in which format, and how two differ."""

import click

from cache.formats import FORMATS
from cache.resume import Rerun
from cache.storage import AnyPath, path
from pipeline.options import examples, rerun_options


def _place(ctx: click.Context, param: click.Parameter, value: str | None) -> AnyPath | None:
    return None if value is None else path(value)


def _places(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[AnyPath, ...]:
    return tuple(map(path, values))


folder_argument = click.argument("folders", nargs=-1, required=True, callback=_places, metavar="FOLDER...")
json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")


@click.group("cache", epilog=examples("pipeline cache verify data/teacher/cs/train"))
def cache_group() -> None:
    """Looks at finished folders of utterance or teacher shards; no model is loaded."""


@cache_group.command("info", epilog=examples("pipeline cache info data/utterances/cs/train data/teacher/cs/train"))
@folder_argument
@json_option
def info_command(folders: tuple[AnyPath, ...], as_json: bool) -> None:
    """Prints what the shards hold and how they were made."""
    from pipeline.commands.cache import info

    info(folders, as_json)


@cache_group.command(
    "verify",
    epilog=examples("pipeline cache verify data/teacher/cs/train --utterances data/utterances/cs/train"),
)
@folder_argument
@click.option(
    "--utterances",
    callback=_place,
    metavar="FOLDER",
    help="The utterance shards that the teacher shards must belong to.",
)
def verify_command(folders: tuple[AnyPath, ...], utterances: AnyPath | None) -> None:
    """Reads every byte and names all that is wrong, one fault per line; exit status 1 if there is any."""
    from pipeline.commands.cache import verify

    verify(folders, utterances)


@cache_group.command(
    "convert", epilog=examples("pipeline cache convert data/teacher/cs/train elsewhere/cs/train --format webdataset")
)
@click.argument("folder", callback=_place)
@click.argument("out", callback=_place)
@click.option("--format", "format_", type=click.Choice(FORMATS), required=True, help="Of OUT's shards.")
@rerun_options
def convert_command(folder: AnyPath, out: AnyPath, format_: str, rerun: Rerun) -> None:
    """Writes the records of FOLDER to OUT in another format, not one bit of them changed."""
    from pipeline.commands.cache import convert

    convert(folder, out, format_, rerun)


@cache_group.command("diff", epilog=examples("pipeline cache diff data/teacher/cs/train elsewhere/cs/train"))
@click.argument("first", callback=_place)
@click.argument("second", callback=_place)
@json_option
@click.pass_context
def diff_command(ctx: click.Context, first: AnyPath, second: AnyPath, as_json: bool) -> None:
    """Compares two folders record by record, and teachers' distributions by distance; exit status 1 where they differ."""
    from pipeline.commands.cache import diff

    ctx.exit(0 if diff(first, second, as_json) else 1)
