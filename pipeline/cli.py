"""The `pipeline` command: one subcommand per stage. Defaults come from params.yaml, flags override them."""

import sys
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cache.formats import FORMATS
from cache.resume import Rerun
from cache.storage import AnyPath
from pipeline.cli_cache import cache_group
from pipeline.cli_experts import experts_group
from pipeline.cli_export import export_command
from pipeline.cli_push import push_command
from pipeline.cli_student import evaluate_command, train_student_command, transcribe_command
from pipeline.cli_teacher import adapt_teacher_command, teacher_cache_command
from pipeline.errors import Commands, run
from pipeline.options import examples, json_option, lang_option, params_of, path_of, rerun_options
from stages.prepare.corpora import CORPORA
from stages.shared.methods import METHODS


@click.group(
    cls=Commands,
    epilog=examples("pipeline --set train.epochs=3 train-student --lang cs"),
    context_settings={"show_default": True},
)
@click.option(
    "--params",
    "path",
    type=click.Path(path_type=Path),
    default="params.yaml",
    envvar="PIPELINE_PARAMS",
    help="The parameter file.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Overrides a parameter, e.g. --set train.epochs=3."
)
@click.version_option(package_name="whisper-offline-distillation")
@click.pass_context
def cli(ctx: click.Context, path: Path, settings: tuple[str, ...]) -> None:
    """Make a small Whisper good at a language, with a large teacher that runs once."""
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


@cli.command(
    "prepare",
    epilog=examples(
        "pipeline prepare --lang cs\n"
        "pipeline prepare --lang gl --corpus manifest --path recordings.csv\n"
        "pipeline prepare --lang gl --corpus manifest --path nemo.json --columns path=audio_filepath"
    ),
)
@lang_option
@click.option(
    "--corpus", type=click.Choice(list(CORPORA)), help="Overrides the language's corpus; --path tells where it lies."
)
@click.option("--path", "corpus_path", help="Folder, file or URL of the corpus; for a dataset also its hub id.")
@click.option(
    "--columns",
    metavar="OURS=THEIRS,…",
    help="With --corpus manifest or dataset: the names in its table of our columns path, text, speaker, split and id "
    "(for a dataset audio, text and speaker), such as text=transcription,path=audio_filepath.",
)
@click.option("--format", "prepare__format", type=click.Choice(FORMATS), help="Format of the shards.")
@rerun_options
@click.pass_context
def prepare_command(
    ctx: click.Context,
    languages: list[str],
    corpus: str | None,
    corpus_path: str | None,
    columns: str | None,
    rerun: Rerun,
    **flags: Any,
) -> None:
    """Turn a corpus into utterance shards, for each language and split."""
    from pipeline.commands.prepare import CorpusChoice, prepare

    prepare(params_of(ctx, **flags), languages, CorpusChoice(corpus, corpus_path, columns), rerun)


@cli.command(
    "params",
    epilog=examples(
        "pipeline params\npipeline params --method lora --lang cs\n"
        "pipeline --params presets/paper.yaml --set train.epochs=3 params --json\n"
        "pipeline params --out params.resolved.json"
    ),
)
@click.option(
    "--method", type=click.Choice(list(METHODS)), help="Show `train` with the defaults and changes of this method."
)
@lang_option
@json_option
@click.option(
    "--out",
    metavar="FILE",
    callback=path_of,
    help="Print nothing. Write all values as JSON, grouped as in the file. `dvc repro` compares these.",
)
@click.pass_obj
def params_command(
    given: tuple[Path, dict[str, Any]], method: str | None, languages: list[str], as_json: bool, out: AnyPath | None
) -> None:
    """Print the resolved parameters, each with its origin: default, the file, --set, or methods.GROUP.METHOD."""
    from pipeline.commands.params import show_params, write_params

    if out is None:
        show_params(*given, method, languages, as_json)
    elif method or languages or as_json:
        raise click.UsageError("--out writes all parameters: give it without --method, --lang and --json")
    else:
        write_params(*given, out)


@cli.command("report", epilog=examples("pipeline report\npipeline report --audio-minutes 0"))
@click.option(
    "--audio-minutes",
    "report__audio_minutes",
    type=float,
    help="Minutes of recordings beside the page, for each test split.",
)
@click.pass_context
def report_command(ctx: click.Context, **flags: Any) -> None:
    """Write pages from all metrics, with every utterance and its recording, and print the table."""
    from pipeline.commands.report import report

    report(params_of(ctx, **flags))


cli.add_command(adapt_teacher_command)
cli.add_command(teacher_cache_command)
cli.add_command(train_student_command)
cli.add_command(evaluate_command)
cli.add_command(transcribe_command)
cli.add_command(export_command)
cli.add_command(push_command)
cli.add_command(cache_group)
cli.add_command(experts_group)


def main() -> None:
    """Runs the command. Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated."""
    if status := run(lambda: cli.main(standalone_mode=False)):
        sys.exit(status)


if __name__ == "__main__":
    main()
