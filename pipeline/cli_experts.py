"""`pipeline experts`: what lies in folders of experts, published ones taken over, and small ones made."""

from typing import Any

import click

from cache.storage import AnyPath, path
from pipeline.options import base_option, examples, language_of


def _place(ctx: click.Context, param: click.Parameter, value: str) -> AnyPath:
    return path(value)


def _places(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[AnyPath, ...]:
    return tuple(map(path, values))


out_option = click.option("--out", required=True, callback=_place, metavar="DIR", help="A folder without experts.")


@click.group("experts", epilog=examples("pipeline experts info models/cs/clsr-kd"))
def experts_group() -> None:
    """Looks at experts, takes over published ones, and makes them small."""


@experts_group.command(
    "import",
    epilog=examples(
        "pipeline experts import naver/multilingual-distilwhisper-28k --lang catalan --out models/ca/naver\n"
        "pipeline experts import downloads/multilingual-distilwhisper-28k --lang ca --base openai/whisper-small "
        "--out models/ca/naver --check-base"
    ),
)
@click.argument("source", metavar="SRC")
@click.option("--lang", "language", required=True, callback=language_of, metavar="LANG", help="Code or name.")
@out_option
@click.option(
    "--base", help="Hub id or folder of the Whisper they were trained beside; default: the parameters' student."
)
@click.option(
    "--check-base",
    is_flag=True,
    help="Fail where the base cannot be compared with the published checkpoint; from a hub, fetch it (1 GB or more).",
)
@click.pass_context
def import_command(
    ctx: click.Context, source: str, language: str, out: AnyPath, base: str | None, check_base: bool
) -> None:
    """Turns one language's published expert (expert.<language>.bin in SRC, a folder or a hub id) into a folder of ours.

    Its values are kept exactly. A full checkpoint in SRC is compared with the base, and must hold the same one.
    """
    from pipeline.commands.experts import import_published
    from pipeline.params import load_params

    params_path, overrides = ctx.obj
    params = load_params(params_path, {**overrides, "student": base} if base else overrides)
    import_published(params.student, source, language, out, check_base)


@experts_group.command("info", epilog=examples("pipeline experts info models/cs/clsr-kd models/ca/naver"))
@click.argument("folders", nargs=-1, required=True, callback=_places, metavar="FOLDER...")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def info_command(folders: tuple[AnyPath, ...], as_json: bool) -> None:
    """Prints what each folder's expert is for, how it is stored and how large it is; no model is loaded."""
    from pipeline.commands.experts import info

    info(folders, as_json)


@experts_group.command(
    "compress",
    epilog=examples(
        "pipeline experts compress models/cs/clsr-kd --out models/cs/clsr-kd-small --precision int8 --rank 96\n"
        "pipeline experts compress models/cs/clsr-kd --out models/cs/clsr-kd-int8 --precision int8"
    ),
)
@click.argument("folder", callback=_place)
@out_option
@click.option("--precision", type=click.Choice(["fp16", "fp32", "int8"]), default="fp16", help="Of what is stored.")
@click.option("--rank", type=click.IntRange(min=1), help="Of what was changed of each matrix; default: all of it.")
@base_option
def compress_command(folder: AnyPath, out: AnyPath, precision: Any, rank: int | None, base: str | None) -> None:
    """Writes FOLDER's expert to DIR in fewer bytes. How much worse it is there, `pipeline transcribe` and WER must say."""
    from pipeline.commands.experts import compress

    compress(folder, out, precision, rank, base)
