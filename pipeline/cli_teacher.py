"""`pipeline adapt-teacher` and `pipeline teacher-cache`: the commands that run the teacher."""

from typing import Any

import click

from cache.formats import FORMATS
from cache.resume import Rerun
from pipeline.options import device_option, examples, lang_option, params_of, rerun_options, token_option, with_token


def _as_it_is(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, str] | None:
    """Returns the parameters of a teacher that is not adapted."""
    return {"model": value} if value else None


@click.command("adapt-teacher", epilog=examples("pipeline adapt-teacher --lang cs"))
@lang_option
@token_option
@rerun_options
@click.pass_context
def adapt_teacher_command(ctx: click.Context, languages: list[str], token: str | None, rerun: Rerun) -> None:
    """Fine-tune the teacher on a language, before teacher-cache, if the parameter teacher.adapt is set.

    With teacher.adapt.folds it trains a teacher for each part of the training split, on the other parts.
    """
    from pipeline.commands.adapt_teacher import adapt_teacher

    adapt_teacher(params_of(ctx, **with_token(languages, token)), languages, rerun)


@click.command(
    "teacher-cache",
    epilog=examples(
        "pipeline teacher-cache --lang ca\npipeline teacher-cache --lang gl --teacher openai/whisper-large-v2\n"
        "pipeline teacher-cache --lang gl --engine ray --workers 8"
    ),
)
@lang_option
@token_option
@click.option("--teacher", callback=_as_it_is, help="Hub id or folder; this teacher is not adapted.")
@click.option(
    "--targets",
    "teacher_cache__targets",
    type=click.Choice(["reference", "pseudo", "mixed"]),
    help="The text that is scored: the corpus' transcript, the teacher's own, or the first where there is one.",
)
@click.option("--top-k", "teacher_cache__top_k", type=int, help="Greatest number of tokens kept at a position.")
@click.option(
    "--top-p",
    "teacher_cache__top_p",
    type=float,
    help="Probability that the kept tokens reach together, if --top-k allows.",
)
@click.option("--batch-size", "teacher_cache__batch_size", type=int, help="Utterances in a batch.")
@click.option("--format", "teacher_cache__format", type=click.Choice(FORMATS), help="Format of the shards.")
@device_option
@click.option(
    "--engine",
    "cluster__engine",
    type=click.Choice(["local", "ray"]),
    help="Where the teacher runs: in this process, or on the workers of a Ray cluster.",
)
@click.option(
    "--workers",
    "cluster__workers",
    type=int,
    help="Number of Ray workers; default: one for each GPU, or as many as the CPUs allow.",
)
@click.option("--ray-address", "cluster__address", help="Default: RAY_ADDRESS, or a Ray cluster started for this run.")
@rerun_options
@click.pass_context
def teacher_cache_command(
    ctx: click.Context, languages: list[str], token: str | None, rerun: Rerun, **flags: Any
) -> None:
    """Run the teacher once over the training split, and keep its top-k distributions."""
    from pipeline.commands.teacher_cache import teacher_cache

    params = params_of(ctx, **flags, **with_token(languages, token))
    if params.cluster.engine != "ray" and (flags["cluster__workers"] or flags["cluster__address"]):
        raise click.UsageError("--workers and --ray-address need --engine ray")
    teacher_cache(params, languages, rerun)
