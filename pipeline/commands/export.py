"""pipeline export"""

from dataclasses import dataclass
from typing import Any

import click

from cache.locks import sole_writer
from cache.storage import AnyPath
from pipeline.commands.common import chosen_device, say
from pipeline.params import Params
from pipeline.progress import ProgressReport
from stages.export.formats import FORMATS
from stages.export.run import Export, Validation, check_export, folds
from stages.export.run import export as export_model
from stages.shared.card.measured import find_measured
from stages.shared.student.loading import ModelSource, locate
from stages.shared.whisper.device import compute_dtype
from stages.shared.whisper.languages import code_of


@dataclass(frozen=True)
class Choices:
    """What the options say. None: the option was not given."""

    format: str
    precision: str | None
    fold: Any
    language: str | None  # a code or an entry of the parameters
    base: str | None
    licence: str | None = None


def export(params: Params, source: str, out: AnyPath, choices: Choices) -> None:
    chosen = FORMATS[choices.format]
    precision = choices.precision or chosen.precisions[0]
    if precision not in chosen.precisions:
        raise click.UsageError(f"--precision {precision}: {chosen.name} has {', '.join(chosen.precisions)} alone")
    found = locate(source, choices.base)
    entry = _entry(found, choices.language)
    folded = folds(found) and chosen.plain
    if choices.fold and not folded:
        raise click.UsageError(
            f"--fold {choices.fold}: has no effect here, expected experts whose gates decide for each token, and a format "
            "that has no gates: leave it out"
        )
    wanted = Export(
        chosen,
        precision,
        [code_of(entry)] if entry else [],
        choices.fold or "gates",
        _validation(params, entry) if folded else None,
        find_measured(params.paths.metrics, source),
        choices.licence or params.licence,
    )
    check_export(found, out, wanted)
    for line in found.lines:
        say(line)
    with sole_writer(out), ProgressReport(f"export {source}", "utterances") as progress:
        size = export_model(found, out, wanted, say, progress)
    say(f"{out}: {chosen.name}, {precision}, {size / 1e6:.1f} MB; its README.md says how to run it")


def _entry(found: ModelSource, named: str | None) -> str | None:
    """Returns the language's entry; None for a model that names no language or several, if the user names none either."""
    if named and found.languages and code_of(named) not in found.languages:
        raise click.BadParameter(
            f"{named}: {found.name} was trained for {', '.join(found.languages)}", param_hint="--lang"
        )
    return named or (found.languages[0] if len(found.languages) == 1 else None)


def _validation(params: Params, entry: str | None) -> Validation:
    assert entry is not None  # a folder of experts is for one language
    device, how = chosen_device(params), params.evaluate
    return Validation(params.paths.split(entry, "validation"), device, compute_dtype(how.dtype, device), how.cut_loops)
