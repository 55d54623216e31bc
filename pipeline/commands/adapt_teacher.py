"""pipeline adapt-teacher"""

from cache.files import write_json
from cache.locks import sole_writer
from cache.resume import Rerun, discard_if_changed
from cache.storage import AnyPath
from pipeline.commands.common import languages_or_all, load, say
from pipeline.commands.train import joined, language_data, run_training
from pipeline.errors import each
from pipeline.params import Params
from stages.shared.facts import read_begun
from stages.shared.layout import PROGRESS, RESULT
from stages.shared.methods import FULL
from stages.shared.subset import Fold
from stages.train_student.processes import leave_processes

TEACHER_POINTER = "teacher.json"  # stands in the adapted teacher's place where the teacher is used as it is


def adapt_teacher(params: Params, languages: list[str], rerun: Rerun) -> None:
    processes = joined(params)

    def adapt_one(language: str) -> None:
        out, recipe = params.paths.adapted_teacher(language), params.teacher.adapt
        if recipe is not None:
            processes.on_main(lambda: _make_room(out, recipe.folds, rerun))
            for number, folder in enumerate(params.paths.adapted_teachers(language, recipe.folds), 1):
                fold = Fold(number, recipe.folds) if recipe.folds > 1 else None
                data = [language_data(params, language, FULL.name, folder, fold)]
                run_training(params, FULL.name, params.teacher.model, data, folder, recipe.of_each, rerun, processes)
        elif processes.main:
            _write_pointer(params, out, rerun)
            say(f"{language}: {params.teacher.model} teaches as it is")

    each(languages_or_all(params, languages), str, adapt_one, go_on=processes.count == 1)
    leave_processes()


def _make_room(out: AnyPath, folds: int, rerun: Rerun) -> None:
    """Removes what another number of folds has left, if `rerun` allows, and the name of an unchanged teacher."""
    with sole_writer(out):
        (out / TEACHER_POINTER).unlink(missing_ok=True)
        if (found := _folds_in(out)) and found != folds:
            discard_if_changed(out, {"teacher.adapt.folds": found}, {"teacher.adapt.folds": folds}, rerun)


def _folds_in(out: AnyPath) -> int:
    """Returns how many folds the adapted teachers there are of, 0 where there is none, finished or begun."""
    for folder in (out, *sorted(out.glob("fold-*"), key=str)):
        for name in (RESULT, PROGRESS):
            if (folder / name).exists():
                return int((read_begun(folder / name)["settings"].get("fold") or [1, 1])[1])
    return 0


def _write_pointer(params: Params, out: AnyPath, rerun: Rerun) -> None:
    """Names the unchanged teacher in the adapted one's place. An adapted one that lies there is treated as other work."""
    whisper = load(params.teacher.model, params.audio_window_s)
    with sole_writer(out):
        if _folds_in(out):
            discard_if_changed(out, {"teacher.adapt": "settings"}, {"teacher.adapt": None}, rerun)
        write_json(out / TEACHER_POINTER, {"model": params.teacher.model, "weights": whisper.fingerprint})
