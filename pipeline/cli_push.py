"""`pipeline push`: a model to the Hugging Face hub."""

import click

from cache.storage import AnyPath
from pipeline.options import examples, licence_option, params_of, path_of


@click.command(
    "push",
    epilog=examples(
        "pipeline push models/cs/lora-kd my-name/whisper-base-cs --licence cc-by-4.0\n"
        "pipeline push exported/cs-ct2 my-name/whisper-base-cs-ct2 --private"
    ),
)
@click.argument("model", callback=path_of, metavar="MODEL")
@click.argument("repository", metavar="OWNER/NAME")
@licence_option
@click.option("--private", is_flag=True, help="Make a new repository private. One that is there stays as it is.")
@click.option("--message", default="Upload the model", help="Of the commit.")
@click.option("--yes", is_flag=True, help="Do not ask before it is sent.")
@click.pass_context
def push_command(
    ctx: click.Context, model: AnyPath, repository: str, licence: str | None, private: bool, message: str, yes: bool
) -> None:
    """Send MODEL, a folder that was trained or exported here, to the hub's repository OWNER/NAME.

    First shows each file with its size, and the card with the error rates that `evaluate` has found. Then asks.
    """
    from pipeline.commands.push import push

    push(params_of(ctx), model, repository, licence, private, message, yes)
