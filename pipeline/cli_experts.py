"""`pipeline experts`: inspects, imports, compresses and bundles experts."""

from typing import Any

import click

from cache.storage import AnyPath
from pipeline.options import base_option, examples, folders_argument, json_option, language_of, params_of, path_of

out_option = click.option(
    "--out", required=True, callback=path_of, metavar="DIR", help="The folder to write; it must not hold an expert yet."
)


@click.group("experts", epilog=examples("pipeline experts info models/cs/clsr-kd"))
def experts_group() -> None:
    """Inspect, import, compress and bundle experts."""


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
    "--base",
    help="Hub id or folder of the Whisper that the experts were trained with; default: the parameters' student.",
)
@click.option(
    "--check-base",
    is_flag=True,
    help="Fail if the base cannot be compared with the published checkpoint. From the hub, this downloads it (1 GB or more).",
)
@click.pass_context
def import_command(
    ctx: click.Context, source: str, language: str, out: AnyPath, base: str | None, check_base: bool
) -> None:
    """Import the published expert of one language: expert.<language>.bin in SRC, a folder, a URL or a hub id.

    Its values are kept exactly. If SRC holds a full checkpoint, its base must have the same weights as --base.
    """
    from pipeline.commands.experts import import_published

    import_published(params_of(ctx, student=base).student, source, language, out, check_base)


@experts_group.command("info", epilog=examples("pipeline experts info models/cs/clsr-kd models/ca/naver"))
@folders_argument
@json_option
def info_command(folders: tuple[AnyPath, ...], as_json: bool) -> None:
    """Print the language of each folder's expert or adapter, how it is stored and how large it is; of a bundle each of them.

    No model is loaded.
    """
    from pipeline.commands.experts import info

    info(folders, as_json)


@experts_group.command(
    "compress",
    epilog=examples(
        "pipeline experts compress models/cs/clsr-kd --out models/cs/clsr-kd-small --precision int8 --rank 96\n"
        "pipeline experts compress models/cs/clsr-kd --out models/cs/clsr-kd-int8 --precision int8"
    ),
)
@click.argument("folder", callback=path_of)
@out_option
@click.option(
    "--precision", type=click.Choice(["fp16", "fp32", "int8"]), default="fp16", help="Type of the stored numbers."
)
@click.option(
    "--rank", type=click.IntRange(min=1), help="Rank of the stored change of each matrix; default: full rank."
)
@base_option
def compress_command(folder: AnyPath, out: AnyPath, precision: Any, rank: int | None, base: str | None) -> None:
    """Write FOLDER's expert to DIR in fewer bytes. Compression is lossy: measure what it costs."""
    from pipeline.commands.experts import compress

    compress(folder, out, precision, rank, base)


@experts_group.command(
    "bundle", epilog=examples("pipeline experts bundle models/cs/clsr-kd models/nl/lora-kd --out models/cs-nl")
)
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...")
@click.option(
    "--out", required=True, callback=path_of, metavar="DIR", help="The folder to write; it must be new or empty."
)
@base_option
def bundle_command(folders: tuple[str, ...], out: AnyPath, base: str | None) -> None:
    """Put experts and adapters of several languages into one folder, DIR, for one base.

    Every FOLDER (or URL or hub id) holds the experts or the adapter of other languages than the others. All must have been
    trained with the same base and the same audio window. DIR is a model: `pipeline transcribe --model DIR --lang nl`.
    """
    from pipeline.commands.bundle import bundle

    bundle(folders, out, base)
