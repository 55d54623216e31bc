"""`pipeline train-student`, `evaluate` and `transcribe`: the commands that train and use a student."""

from typing import Any

import click

from cache.resume import Rerun
from pipeline.options import (
    base_option,
    device_option,
    examples,
    lang_option,
    languages_of,
    name_of,
    params_of,
    path_of,
    pop_section,
    rerun_options,
    token_option,
    with_token,
)
from stages.shared.layout import VALIDATION
from stages.shared.methods import CLSR_KD, METHODS, described
from stages.transcribe.settings import FORMATS

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
    "--method",
    "methods",
    type=click.Choice(list(METHODS)),
    multiple=True,
    default=[CLSR_KD.name],
    help=f"One or several. {described()}.",
)
@click.option(
    "--together",
    is_flag=True,
    help="Train the languages in one run, on batches that mix them.",
)
@click.option("--student", help="Hub id or folder of the base model.")
@click.option("--epochs", "train__epochs", type=float, help="Passes over the training utterances.")
@click.option("--max-steps", "train__max_steps", type=int, help="Optimizer steps; overrides --epochs.")
@click.option("--batch-size", "train__batch_size", type=int, help="Utterances in a batch.")
@click.option("--learning-rate", "train__learning_rate", type=float, help="Learning rate at the end of the warm-up.")
@click.option(
    "--start-from",
    "train__start_from",
    metavar="FOLDER",
    help="Begin as an expert or an adapter of another language, such as a related one.",
)
@click.option("--seed", "train__seed", type=int, help="Seed of all random numbers of the run.")
@click.option("--verify", "train__verify", is_flag=True, default=None, help="First check the hash of every shard.")
@device_option
@rerun_options
@click.pass_context
def train_student_command(
    ctx: click.Context,
    languages: list[str],
    token: str | None,
    methods: tuple[str, ...],
    together: bool,
    rerun: Rerun,
    **flags: Any,
) -> None:
    """Train experts, an adapter or a whole model on the shards. The teacher is not loaded."""
    from pipeline.commands.train import train_student

    changes = pop_section(flags, "train")
    params = params_of(ctx, **flags, **with_token(languages, token))
    train_student(params, languages, list(methods), changes, rerun, together)


@click.command(
    "evaluate",
    epilog=examples(
        "pipeline evaluate --lang cs --system base --system clsr-kd\n"
        "pipeline evaluate --lang cs --model exported/student --name student-int8\n"
        "pipeline evaluate --lang cs --system clsr-kd --untouched nl"
    ),
)
@lang_option
@token_option
@click.option(
    "--system",
    "systems",
    multiple=True,
    metavar="SYSTEM",
    help=f"One or several of {', '.join(SYSTEMS)}, or a name in the parameters' baselines. Default: all there are.",
)
@click.option(
    "--model",
    metavar="FOLDER_OR_ID",
    help="Any model, in place of --system: experts, an adapter, a bundle or any Whisper, by folder or hub id. It has its own "
    "audio window, as in `transcribe`.",
)
@click.option("--name", callback=name_of, help="What the model of --model is called in metrics and in the report.")
@click.option("--corpus", help="A further test corpus of the language, by name, instead of its own test split.")
@click.option(
    "--split",
    type=click.Choice(["test", VALIDATION]),
    default="test",
    show_default=True,
    help="What is decoded. Weights are chosen on the validation split, so that its rates are too good.",
)
@click.option(
    "--untouched",
    multiple=True,
    callback=languages_of,
    metavar="LANG",
    help="Other languages with a prepared test split: check that each text there is the same as the base's.",
)
@base_option
@device_option
@click.pass_context
def evaluate_command(
    ctx: click.Context, languages: list[str], token: str | None, device: str | None, **chosen: Any
) -> None:
    """Decode the test split, and write word and character error rates."""
    from pipeline.commands.evaluate import Request, evaluate

    if (chosen["model"] is None) != (chosen["name"] is None):
        raise click.UsageError("--model and --name go together: a model, and what it is called in the report")
    if chosen["model"] and chosen["systems"]:
        raise click.UsageError("--model and --system exclude each other: give one of them")
    if (split := chosen.pop("split")) == VALIDATION:
        if chosen["corpus"]:
            raise click.UsageError("--corpus is a test corpus: it has no --split validation")
        chosen["corpus"] = split
    evaluate(params_of(ctx, device=device, **with_token(languages, token)), languages, Request(**chosen))


@click.command(
    "transcribe",
    epilog=examples(
        "pipeline transcribe talk.mp3 --model models/cs/clsr-kd\n"
        "pipeline transcribe recordings/ --model models/cs/clsr-kd --format srt --out subtitles"
    ),
)
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--lang",
    "languages",
    multiple=True,
    callback=languages_of,
    metavar="LANG",
    help="Code or name; default: the language that the model was trained for, or else the one that is heard.",
)
@token_option
@click.option(
    "--model", required=True, help="Experts, an adapter, a bundle or any Whisper: a folder, a URL or a hub id."
)
@click.option(
    "--format",
    type=click.Choice(list(FORMATS)),
    default="text",
    help="srt and vtt: subtitles; json and tsv: with times, json of each word.",
)
@click.option(
    "--out",
    callback=path_of,
    metavar="FOLDER",
    help="Write one file for each recording there; default: print.",
)
@base_option
@device_option
@click.pass_context
def transcribe_command(
    ctx: click.Context,
    files: tuple[str, ...],
    languages: list[str],
    token: str | None,
    model: str,
    base: str | None,
    **options: Any,
) -> None:
    """Write down what is said in audio files of any length. FILES may be folders: all recordings in them are taken."""
    from pipeline.commands.transcribe import Output, transcribe

    if len(languages) > 1:
        raise click.BadParameter("one language at a time", param_hint="--lang")
    params = params_of(ctx, device=options["device"], **with_token(languages, token))
    output = Output(options["format"], options["out"])
    transcribe(params, list(files), languages[0] if languages else None, model, base, output)
