"""pipeline evaluate"""

import click
import torch

from cache.errors import PipelineError
from cache.files import read_json
from cache.locks import sole_writer
from pipeline.commands.common import chosen_device, languages_or_all, load_any, say, teacher_sources, token
from pipeline.errors import each
from pipeline.params import Params
from pipeline.progress import ProgressReport
from stages.evaluate.run import Subject
from stages.evaluate.run import evaluate as evaluate_split
from stages.shared.methods import METHODS
from stages.shared.student.loading import locate
from stages.shared.whisper.languages import code_of
from stages.shared.whisper.targets import use_token


def evaluate(
    params: Params, languages: list[str], systems: list[str], further: str | None, base: str | None = None
) -> None:
    known = ["base", *params.baselines, "teacher", *METHODS]
    for system in systems:
        if system not in known:
            raise click.UsageError(f"--system {system}: no such system, expected one of {', '.join(known)}")
    device = chosen_device(params)

    def evaluate_one(item: tuple[str, str]) -> None:
        _evaluate(params, *item, further, base, device)

    items = [
        (language, system)
        for language in languages_or_all(params, languages)
        for system in systems or _systems(params, language)
    ]
    each(items, " ".join, evaluate_one)


def _evaluate(
    params: Params, language: str, system: str, further: str | None, base: str | None, device: torch.device
) -> None:
    utterances = params.paths.test_split(language, further)
    source, window = _source(params, language, system), params.audio_window_s
    if system in params.baselines:
        window = params.baselines[system].audio_window_s or window
    model = load_any(locate(source, base), window)
    use_token(model.whisper.model, code_of(language), token(params, language))
    out = params.paths.metrics_file(language, system, further)
    with sole_writer(out), ProgressReport(f"evaluate {language} {system}", "utterances") as progress:
        metrics = evaluate_split(
            model, utterances, Subject(code_of(language), system, source), out, params.evaluate, device, progress.audio
        )
    say(
        f"{out}: WER {100 * metrics['wer']:.1f} %, CER {100 * metrics['cer']:.1f} %, {metrics['utterances']} utterances"
    )


def _systems(params: Params, language: str) -> list[str]:
    """Returns the base, the baselines, the teacher, and every method with a finished student."""
    trained = [m for m in METHODS if (params.paths.model([language], m) / "training.json").exists()]
    return ["base", *params.baselines, "teacher", *trained]


def _source(params: Params, language: str, system: str) -> str:
    if system == "base":
        return params.student
    if system in params.baselines:
        return params.baselines[system].model or params.student
    if system == "teacher":
        first, *others = teacher_sources(params, language)
        if others:
            say(f"{language} teacher: that of the first of {1 + len(others)} folds")
        return first
    folder = params.paths.model([language], system)
    if not (folder / "training.json").exists():
        raise PipelineError(
            f"{folder}: no finished student there: run `pipeline train-student --lang {language} --method {system}` first"
        )
    # one model of several languages lies in another folder
    return str(read_json(folder / "training.json").get("model", folder))
