"""`pipeline cache`: what lies in folders of shards, whether it is whole, in which format, and how two differ."""

from pathlib import Path

import click

from pipeline.options import examples, restart_option

folder_argument = click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FOLDER..."
)
json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")


@click.group("cache", epilog=examples("pipeline cache verify data/teacher/cs/train"))
def cache_group() -> None:
    """Looks at finished folders of utterance or teacher shards; no model is loaded."""


@cache_group.command("info", epilog=examples("pipeline cache info data/utterances/cs/train data/teacher/cs/train"))
@folder_argument
@json_option
def info_command(folders: tuple[Path, ...], as_json: bool) -> None:
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
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The utterance shards that the teacher shards must belong to.",
)
def verify_command(folders: tuple[Path, ...], utterances: Path | None) -> None:
    """Reads every byte and names all that is wrong, one fault per line; exit status 1 if there is any."""
    from pipeline.commands.cache import verify

    verify(folders, utterances)


@cache_group.command(
    "convert", epilog=examples("pipeline cache convert data/teacher/cs/train elsewhere/cs/train --format webdataset")
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", type=click.Choice(["parquet", "webdataset"]), required=True, help="Of OUT's shards."
)
@restart_option
def convert_command(folder: Path, out: Path, format_: str, restart: bool) -> None:
    """Writes the records of FOLDER to OUT in another format, not one bit of them changed."""
    from pipeline.commands.cache import convert

    convert(folder, out, format_, restart)


@cache_group.command("diff", epilog=examples("pipeline cache diff data/teacher/cs/train elsewhere/cs/train"))
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def diff_command(ctx: click.Context, first: Path, second: Path, as_json: bool) -> None:
    """Compares two folders record by record, and teachers' distributions by distance; exit status 1 where they differ."""
    from pipeline.commands.cache import diff

    ctx.exit(0 if diff(first, second, as_json) else 1)
