"""`pipeline train-student`, `evaluate` and `transcribe`: a student, from training to use."""

from typing import Any

import click

from cache.resume import Rerun
from pipeline.options import (
    base_option,
    examples,
    lang_option,
    languages_of,
    params_of,
    rerun_options,
    token_option,
    with_token,
)

METHODS = ("clsr", "clsr-kd", "lora", "full")
SYSTEMS = ("base", "teacher", *METHODS)


@click.command(
    "train-student",
    epilog=examples(
        "pipeline train-student --lang cs --method clsr-kd\npipeline train-student --lang ca,gl --together"
    ),
)
@lang_option
@token_option
@click.option(
    "--method", "methods", type=click.Choice(METHODS), multiple=True, default=["clsr-kd"], help="One or several."
)
@click.option("--together", is_flag=True, help="One run on batches of all the languages, each with its own expert.")
@click.option("--student", help="Hub id or folder of the base model.")
@click.option("--epochs", type=float)
@click.option("--max-steps", type=int)
@click.option("--batch-size", type=int)
@click.option("--learning-rate", type=float)
@click.option("--seed", type=int)
@click.option("--verify", is_flag=True, default=None, help="First check the hash of every shard that is read.")
@click.option("--device", help="auto, cpu or cuda.")
@rerun_options
@click.pass_context
def train_student_command(
    ctx: click.Context,
    languages: list[str],
    token: str | None,
    methods: tuple[Any, ...],
    together: bool,
    student: str | None,
    device: str | None,
    rerun: Rerun,
    **train: Any,
) -> None:
    """Trains experts, or a baseline, on the shards; nothing of the teacher is opened."""
    from pipeline.commands.train import train_student

    changes = {name: value for name, value in train.items() if value is not None}
    params = params_of(ctx, student=student, device=device, **with_token(languages, token))
    train_student(params, languages, list(methods), changes, rerun, together)


@click.command("evaluate", epilog=examples("pipeline evaluate --lang cs --system base --system clsr-kd"))
@lang_option
@token_option
@click.option(
    "--system", "systems", type=click.Choice(SYSTEMS), multiple=True, help="One or several; default: all there are."
)
@click.option(
    "--corpus", "further", help="A further test corpus of the language, by name, instead of its own test split."
)
@base_option
@click.option("--device", help="auto, cpu or cuda.")
@click.pass_context
def evaluate_command(
    ctx: click.Context,
    languages: list[str],
    token: str | None,
    systems: tuple[str, ...],
    further: str | None,
    base: str | None,
    device: str | None,
) -> None:
    """Decodes the test split and writes word and character error rates."""
    from pipeline.commands.evaluate import evaluate

    evaluate(params_of(ctx, device=device, **with_token(languages, token)), languages, list(systems), further, base)


@click.command("transcribe", epilog=examples("pipeline transcribe talk.mp3 --model models/cs/clsr-kd"))
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--lang", "languages", multiple=True, callback=languages_of, metavar="LANG", help="Default: the experts' language."
)
@token_option
@click.option("--model", required=True, help="A folder of experts, or any Whisper: folder or hub id.")
@base_option
@click.option("--device", help="auto, cpu or cuda.")
@click.pass_context
def transcribe_command(
    ctx: click.Context,
    files: tuple[str, ...],
    languages: list[str],
    token: str | None,
    model: str,
    base: str | None,
    device: str | None,
) -> None:
    """Prints what is said in audio files of any length."""
    from pipeline.commands.transcribe import transcribe

    if len(languages) > 1:
        raise click.BadParameter("one language at a time", param_hint="--lang")
    params = params_of(ctx, device=device, **with_token(languages, token))
    transcribe(params, list(files), languages[0] if languages else None, model, base)
