"""The `pipeline` command: one subcommand per stage. Defaults come from params.yaml, flags override them."""

import errno
import sys
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cache.errors import PipelineError
from pipeline.cli_cache import cache_group
from pipeline.cli_experts import experts_group
from pipeline.options import examples, printable, restart_option

CORPORA = ("fish-fillets", "common-voice", "fleurs", "dataset", "manifest")
METHODS = ("clsr", "clsr-kd", "lora", "full")
SYSTEMS = ("base", "teacher", *METHODS)


def _languages(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Codes or names, repeated or separated by commas -> codes."""
    from stages.whisper.languages import language_code

    try:
        return [language_code(part) for value in values for part in value.split(",")]
    except PipelineError as error:
        raise click.BadParameter(str(error)) from None


lang_option = click.option(
    "--lang",
    "languages",
    multiple=True,
    callback=_languages,
    metavar="LANG",
    help="Code or name, one or several; default: all in the parameters.",
)


@click.group(
    epilog=examples("pipeline --set train.epochs=3 train-student --lang cs"),
    context_settings={"show_default": True},
)
@click.option(
    "--params",
    "path",
    type=click.Path(path_type=Path),
    default="params.yaml",
    envvar="PIPELINE_PARAMS",
    help="The parameters' file.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Overrides a parameter, e.g. --set train.epochs=3."
)
@click.version_option(package_name="whisper-offline-distillation")
@click.pass_context
def cli(ctx: click.Context, path: Path, settings: tuple[str, ...]) -> None:
    """Makes a small Whisper good at a language, from a large teacher that is run once."""
    named = ctx.get_parameter_source("path") != click.core.ParameterSource.DEFAULT
    if named and not path.exists():
        raise click.BadParameter(f"{path}: no such file", param_hint="--params")
    ctx.obj = path, dict(map(_assignment, settings))


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"'{text}': expected NAME=VALUE", param_hint="--set")
    try:
        return name, YAML(typ="safe", pure=True).load(value)
    except YAMLError:
        raise click.BadParameter(f"'{text}': the value is not valid YAML", param_hint="--set") from None


def _params(ctx: click.Context, **flags: Any):
    """The parameters, with the flags that were given on top (`section__name` stands for `section.name`)."""
    from pipeline.params import load_params

    path, overrides = ctx.obj
    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    return load_params(path, {**overrides, **given})


@cli.command(
    "prepare",
    epilog=examples("pipeline prepare --lang cs\npipeline prepare --lang gl --corpus manifest --path recordings.csv"),
)
@lang_option
@click.option("--corpus", type=click.Choice(CORPORA), help="Overrides the language's corpus; with --path.")
@click.option("--path", "corpus_path", help="Where the corpus lies; for a dataset also its hub id.")
@click.option("--format", "format_", type=click.Choice(["parquet", "webdataset"]), help="Of the shards.")
@restart_option
@click.pass_context
def prepare_command(
    ctx: click.Context,
    languages: list[str],
    corpus: str | None,
    corpus_path: str | None,
    format_: str | None,
    restart: bool,
) -> None:
    """Turns a corpus into utterance shards, per language and split."""
    from pipeline.commands.prepare import prepare

    params = _params(ctx, prepare__format=format_)
    prepare(params, languages, corpus, corpus_path, restart)


@cli.command("adapt-teacher", epilog=examples("pipeline adapt-teacher --lang cs"))
@lang_option
@restart_option
@click.pass_context
def adapt_teacher_command(ctx: click.Context, languages: list[str], restart: bool) -> None:
    """Fine-tunes the teacher on the language first, where teacher.adapt says so."""
    from pipeline.commands.train import adapt_teacher

    adapt_teacher(_params(ctx), languages, restart)


@cli.command(
    "teacher-cache",
    epilog=examples(
        "pipeline teacher-cache --lang ca\npipeline teacher-cache --lang gl --teacher openai/whisper-large-v2\n"
        "pipeline teacher-cache --lang gl --engine ray --workers 8"
    ),
)
@lang_option
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
@restart_option
@click.pass_context
def teacher_cache_command(
    ctx: click.Context,
    languages: list[str],
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
    restart: bool,
) -> None:
    """Runs the teacher once over the training split and keeps its top-k distributions."""
    from pipeline.commands.teacher_cache import teacher_cache

    changes = {"teacher": {"model": teacher}} if teacher else {}
    given = {"targets": targets, "top_k": top_k, "top_p": top_p, "batch_size": batch_size, "format": format_}
    flags = {f"teacher_cache__{name}": value for name, value in given.items()}
    cluster = {"cluster__engine": engine, "cluster__workers": workers, "cluster__address": ray_address}
    params = _params(ctx, device=device, **changes, **flags, **cluster)
    if params.cluster.engine != "ray" and (workers or ray_address):
        raise click.UsageError("--workers and --ray-address need --engine ray")
    teacher_cache(params, languages, restart)


@cli.command(
    "train-student",
    epilog=examples(
        "pipeline train-student --lang cs --method clsr-kd\npipeline train-student --lang ca,gl --together"
    ),
)
@lang_option
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
@restart_option
@click.pass_context
def train_student_command(
    ctx: click.Context,
    languages: list[str],
    methods: tuple[Any, ...],
    together: bool,
    student: str | None,
    device: str | None,
    restart: bool,
    **train: Any,
) -> None:
    """Trains experts, or a baseline, on the shards; nothing of the teacher is opened."""
    from pipeline.commands.train import train_student

    changes = {name: value for name, value in train.items() if value is not None}
    params = _params(ctx, student=student, device=device)
    train_student(params, languages, list(methods), changes, restart, together)


@cli.command("evaluate", epilog=examples("pipeline evaluate --lang cs --system base --system clsr-kd"))
@lang_option
@click.option(
    "--system", "systems", type=click.Choice(SYSTEMS), multiple=True, help="One or several; default: all there are."
)
@click.option(
    "--corpus", "further", help="A further test corpus of the language, by name, instead of its own test split."
)
@click.option("--device", help="auto, cpu or cuda.")
@click.pass_context
def evaluate_command(
    ctx: click.Context, languages: list[str], systems: tuple[str, ...], further: str | None, device: str | None
) -> None:
    """Decodes the test split and writes word and character error rates."""
    from pipeline.commands.evaluate import evaluate

    evaluate(_params(ctx, device=device), languages, list(systems), further)


@cli.command("report", epilog=examples("pipeline report"))
@click.pass_context
def report_command(ctx: click.Context) -> None:
    """Writes one page from all metrics, and prints its table."""
    from pipeline.commands.report import report

    report(_params(ctx))


@cli.command("transcribe", epilog=examples("pipeline transcribe talk.mp3 --model models/cs/clsr-kd"))
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--lang", "languages", multiple=True, callback=_languages, metavar="LANG", help="Default: the experts' language."
)
@click.option("--model", required=True, help="A folder of experts, or any Whisper: folder or hub id.")
@click.option("--device", help="auto, cpu or cuda.")
@click.pass_context
def transcribe_command(
    ctx: click.Context, files: tuple[str, ...], languages: list[str], model: str, device: str | None
) -> None:
    """Prints what is said in audio files of any length."""
    from pipeline.commands.transcribe import transcribe

    if len(languages) > 1:
        raise click.BadParameter("one language at a time", param_hint="--lang")
    transcribe(_params(ctx, device=device), list(files), languages[0] if languages else None, model)


cli.add_command(cache_group)
cli.add_command(experts_group)


def main() -> None:
    """Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted. What goes wrong is one line on standard error."""
    try:
        if status := cli.main(standalone_mode=False):  # of ctx.exit()
            sys.exit(status)
    except click.ClickException as error:
        _end(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _end("interrupted; the same command goes on where it was", 130)
    except PipelineError as error:
        _end(str(error), 1)
    except OSError as error:
        if error.errno is None:
            raise
        hint = (
            ": free some space, then run the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        )
        _end(f"{error.filename or 'file system'}: {error.strerror}{hint}", 1)


def _end(message: str, status: int) -> None:
    print(f"pipeline: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
