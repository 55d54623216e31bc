"""`pipeline export`: a model in the formats of other programs."""

from typing import Any

import click

from cache.storage import AnyPath
from pipeline.options import base_option, device_option, entry_of, examples, licence_option, params_of, path_of
from stages.export.formats import FORMATS, PRECISIONS, described

FOLDS = ("gates", "wer", "all")


def _entry(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return None if value is None else entry_of(ctx, param, value)


@click.command(
    "export",
    epilog=examples(
        "pipeline export models/cs/lora-kd --to whisper --out exported/cs\n"
        "pipeline export models/cs/lora-kd --to ctranslate2 --out exported/cs-ct2 --precision fp16\n"
        "pipeline export models/cs/clsr-kd --to ggml --out exported/cs-ggml --fold wer"
    ),
)
@click.argument("model")
@click.option(
    "--to",
    "format_",
    type=click.Choice(list(FORMATS)),
    required=True,
    help=f"{described()}.",
)
@click.option(
    "--out", required=True, callback=path_of, metavar="DIR", help="The folder to write; it must be new or empty."
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Type of the stored numbers; default: fp32, and fp16 for ggml, which has no other.",
)
@click.option(
    "--fold",
    type=click.Choice(FOLDS),
    help="For experts with gates, as a plain Whisper has one block in each layer: the block that most tokens of the "
    "validation split take (gates, the default), changed layer by layer where that lowers the error rate (wer), or every "
    "expert's (all).",
)
@click.option(
    "--lang",
    "language",
    callback=_entry,
    metavar="LANG",
    help="Code, name or entry of the parameters; default: the model's. It names the validation split, and the card.",
)
@licence_option
@base_option
@device_option
@click.pass_context
def export_command(
    ctx: click.Context, model: str, format_: str, out: AnyPath, device: str | None, **chosen: Any
) -> None:
    """Write MODEL (experts, an adapter or a Whisper: a folder, a URL or a hub id) for other programs.

    The folder's README.md says what it is, how to run it, and what folding the experts costs.
    """
    from pipeline.commands.export import Choices, export

    export(params_of(ctx, device=device), model, out, Choices(format_, **chosen))
