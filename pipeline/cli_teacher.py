"""`pipeline adapt-teacher` and `pipeline teacher-cache`: the teacher, before any student."""

import click

from cache.resume import Rerun
from pipeline.options import examples, lang_option, params_of, rerun_options, token_option, with_token


@click.command("adapt-teacher", epilog=examples("pipeline adapt-teacher --lang cs"))
@lang_option
@token_option
@rerun_options
@click.pass_context
def adapt_teacher_command(ctx: click.Context, languages: list[str], token: str | None, rerun: Rerun) -> None:
    """Fine-tunes the teacher on the language first, where teacher.adapt says so."""
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
@click.option("--teacher", help="Hub id or folder; used as it is.")
@click.option(
    "--targets",
    type=click.Choice(["reference", "pseudo"]),
    help="What is scored: the transcript, or the teacher's own.",
)
@click.option("--top-k", type=int, help="The most tokens kept at a position.")
@click.option("--top-p", type=float, help="The mass that the kept tokens reach, where top-k allows.")
@click.option("--batch-size", type=int)
@click.option("--format", "format_", type=click.Choice(["parquet", "webdataset"]), help="Of the shards.")
@click.option("--device", help="auto, cpu or cuda.")
@click.option("--engine", type=click.Choice(["local", "ray"]), help="This process, or the workers of a Ray cluster.")
@click.option("--workers", type=int, help="Of the Ray cluster; default: one for each GPU, or as the CPUs allow.")
@click.option("--ray-address", help="Default: RAY_ADDRESS, or a Ray cluster started here for this run.")
@rerun_options
@click.pass_context
def teacher_cache_command(
    ctx: click.Context,
    languages: list[str],
    token: str | None,
    teacher: str | None,
    targets: str | None,
    top_k: int | None,
    top_p: float | None,
    batch_size: int | None,
    format_: str | None,
    device: str | None,
    engine: str | None,
    workers: int | None,
    ray_address: str | None,
    rerun: Rerun,
) -> None:
    """Runs the teacher once over the training split and keeps its top-k distributions."""
    from pipeline.commands.teacher_cache import teacher_cache

    changes = {"teacher": {"model": teacher}} if teacher else {}
    given = {"targets": targets, "top_k": top_k, "top_p": top_p, "batch_size": batch_size, "format": format_}
    flags = {f"teacher_cache__{name}": value for name, value in given.items()}
    cluster = {"cluster__engine": engine, "cluster__workers": workers, "cluster__address": ray_address}
    params = params_of(ctx, device=device, **changes, **flags, **cluster, **with_token(languages, token))
    if params.cluster.engine != "ray" and (workers or ray_address):
        raise click.UsageError("--workers and --ray-address need --engine ray")
    teacher_cache(params, languages, rerun)
