"""`pipeline cache`: inspects, verifies, converts and compares folders of shards."""

import click

from cache.formats import FORMATS
from cache.resume import Rerun
from cache.storage import AnyPath
from pipeline.options import examples, folders_argument, json_option, path_of, rerun_options


@click.group("cache", epilog=examples("pipeline cache verify data/teacher/cs/train"))
def cache_group() -> None:
    """Inspect, verify, convert and compare finished folders of utterance or teacher shards. No model is loaded."""


@cache_group.command("info", epilog=examples("pipeline cache info data/utterances/cs/train data/teacher/cs/train"))
@folders_argument
@json_option
def info_command(folders: tuple[AnyPath, ...], as_json: bool) -> None:
    """Print what the shards hold and how they were made."""
    from pipeline.commands.cache import info

    info(folders, as_json)


@cache_group.command(
    "verify",
    epilog=examples("pipeline cache verify data/teacher/cs/train --utterances data/utterances/cs/train"),
)
@folders_argument
@click.option(
    "--utterances",
    callback=path_of,
    metavar="FOLDER",
    help="The utterance shards that the teacher shards must belong to.",
)
def verify_command(folders: tuple[AnyPath, ...], utterances: AnyPath | None) -> None:
    """Read every byte and print each fault on a line. Exit status 1 if there is any."""
    from pipeline.commands.cache import verify

    verify(folders, utterances)


@cache_group.command(
    "convert", epilog=examples("pipeline cache convert data/teacher/cs/train elsewhere/cs/train --format webdataset")
)
@click.argument("folder", callback=path_of)
@click.argument("out", callback=path_of)
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    required=True,
    help="Format of the shards in OUT.",
)
@rerun_options
def convert_command(folder: AnyPath, out: AnyPath, format_: str, rerun: Rerun) -> None:
    """Write the records of FOLDER to OUT in another format, bit for bit the same."""
    from pipeline.commands.cache import convert

    convert(folder, out, format_, rerun)


@cache_group.command("diff", epilog=examples("pipeline cache diff data/teacher/cs/train elsewhere/cs/train"))
@click.argument("first", callback=path_of)
@click.argument("second", callback=path_of)
@json_option
@click.pass_context
def diff_command(ctx: click.Context, first: AnyPath, second: AnyPath, as_json: bool) -> None:
    """Compare two folders record by record, and the teachers' distributions by distance. Exit status 1 if they differ."""
    from pipeline.commands.cache import diff

    ctx.exit(0 if diff(first, second, as_json) else 1)
