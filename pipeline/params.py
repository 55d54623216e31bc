"""Reads `params.yaml` as YAML 1.2, as DVC does (`no` is a language and 1e-4 a number), and checks every field."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.evaluate.settings import EvaluateSettings
from stages.prepare.settings import CorpusSettings, PrepareSettings
from stages.report.settings import ReportSettings
from stages.shared.methods import CLSR, CLSR_KD, METHODS
from stages.shared.settings import PathOrUrl, Settings
from stages.teacher_cache.settings import ClusterSettings, TeacherCacheSettings
from stages.train_student.settings import AdaptSettings, TrainSettings

GROUPS = ("from_transcripts", "from_teacher")


class Language(Settings):
    corpus: CorpusSettings | None = Field(None, description="null: `prepare` takes --corpus and --path")
    token: str | None = Field(
        None,
        description="the language whose token stands for this one in prompts; needed where Whisper has none for it",
    )

    @field_validator("token")
    @classmethod
    def _of_whisper(cls, token: str | None) -> str | None:
        from stages.shared.whisper.languages import token_language

        return None if token is None else token_language(token)


class Baseline(Settings):
    """A Whisper that is measured as it is, beside the student's base."""

    model: str | None = Field(None, description="a hub id or a folder; null: the student's base")
    audio_window_s: Annotated[int, Field(ge=1, le=30)] | None = Field(
        None, description="seconds; null: the common audio_window_s"
    )


class Teacher(Settings):
    model: str = "openai/whisper-large-v2"
    adapt: AdaptSettings | None = Field(
        None, description="the recipe to fine-tune the teacher first, on the training split; null: no fine-tuning"
    )


class Methods(Settings):
    """The methods that `dvc repro` trains, each with its changes to `train`."""

    from_transcripts: dict[str, dict[str, Any]] = Field({CLSR.name: {}}, description="those without a teacher")
    from_teacher: dict[str, dict[str, Any]] = Field(
        {CLSR_KD.name: {}}, description="those that need a teacher's shards"
    )

    @field_validator(*GROUPS)
    @classmethod
    def _in_their_group(cls, methods: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Raises ValueError for a method in the wrong group: DVC gives its stages the inputs of their group."""
        for name in methods:
            if name not in METHODS:
                raise ValueError(f"'{name}' is no method: expected one of {', '.join(METHODS)}")
            if (group := METHODS[name].group) != info.field_name:
                needs = "needs" if METHODS[name].needs_teacher else "takes no"
                raise ValueError(f"{name} {needs} teacher shards: list it in methods.{group}")
        return methods

    def changes(self, method: str) -> dict[str, Any]:
        """Returns the method's changes to `train`; none if the method is not listed."""
        return getattr(self, METHODS[method].group).get(method, {})


class Paths(Settings):
    """The folders and their layout."""

    utterances: PathOrUrl = Path("data/utterances")
    teacher: PathOrUrl = Path("data/teacher")
    models: PathOrUrl = Path("models")
    metrics: PathOrUrl = Path("metrics")
    report: PathOrUrl = Path("report")
    runs: Path = Field(Path("runs"), description="what the trackers TensorBoard and DVCLive of train.track write")

    def split(self, language: str, split: str) -> AnyPath:
        """Returns the folder of a split's utterance shards."""
        return self.utterances / language / split

    def test_split(self, language: str, corpus: str | None = None) -> AnyPath:
        """Returns the folder of the test split, or of a further test corpus (by its name in `further_tests`)."""
        return self.split(language, f"test@{corpus}" if corpus else "test")

    def teacher_shards(self, language: str) -> AnyPath:
        """Returns the folder of the teacher's shards of the training split."""
        return self.teacher / language / "train"

    def model(self, languages: Sequence[str], method: str) -> AnyPath:
        """Returns the folder of what a method trains for a language, or for several languages together."""
        return self.models / "+".join(languages) / method

    def adapted_teacher(self, language: str) -> AnyPath:
        """Returns the folder of the adapted teacher, or of one for each fold."""
        return self.models / language / "teacher"

    def adapted_teachers(self, language: str, folds: int) -> list[AnyPath]:
        """Returns the folder of each adapted teacher, that of fold 1 first."""
        folder = self.adapted_teacher(language)
        return [folder] if folds == 1 else [folder / f"fold-{number}" for number in range(1, folds + 1)]

    def metrics_file(self, language: str, system: str, corpus: str | None = None) -> AnyPath:
        """Returns the file of a system's metrics on the test split, or on a further test corpus."""
        return self.metrics / language / (f"{system}@{corpus}.json" if corpus else f"{system}.json")


class Params(Settings):
    languages: dict[str, Language] = {}
    further_tests: dict[str, CorpusSettings] = Field(
        {}, description="by name: corpora whose test split is used in addition"
    )
    baselines: dict[Annotated[str, Field(pattern=r"^base-[a-z0-9.-]+$")], Baseline] = Field(
        {}, description="by name (base-...): further models to measure untrained, such as the base in its own window"
    )
    audio_window_s: Annotated[int, Field(ge=1, le=30)] = 30
    device: str = "auto"
    student: str = "openai/whisper-small"
    licence: str | None = Field(
        None, description="of what is trained, for its card: as the hub names it, such as cc-by-4.0"
    )
    teacher: Teacher = Teacher()
    methods: Methods = Methods()
    prepare: PrepareSettings = PrepareSettings()
    teacher_cache: TeacherCacheSettings = TeacherCacheSettings()
    cluster: ClusterSettings = ClusterSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()
    paths: Paths = Paths()

    @field_validator("languages")
    @classmethod
    def _by_their_codes(cls, languages: dict[str, Language]) -> dict[str, Language]:
        """Accepts codes, also with a name (ca-x-3k): DVC reads the keys as they are written, and folders have their names."""
        from stages.shared.whisper.languages import entry_name, language_name

        for key in languages:
            if (entry := entry_name(key)) != key:
                raise ValueError(
                    f"'{key}' is taken as {language_name(entry)}: write {entry}, as in the names of its folders"
                )
        return languages

    @model_validator(mode="after")
    def _one_cache_for_all_methods(self) -> "Params":
        """Raises ValueError for a method with a teacher and another share of times than the teacher's shards have."""
        cached = self.train.timestamps
        for name, changes in self.methods.from_teacher.items():
            if changes.get("timestamps", cached) != cached:
                raise ValueError(
                    f"methods.from_teacher.{name}.timestamps is {changes['timestamps']}, train.timestamps is {cached}, by "
                    "which the teacher's shards are made: set train.timestamps alone"
                )
        return self


def load_params(path: Path, overrides: dict[str, Any]) -> Params:
    """Returns the file's parameters with `overrides` (dotted names) on top; the defaults where there is no file.

    An override of `train` counts more than a method's change of it in the file. An override of `methods` counts most.

    Raises PipelineError naming the file, the field, what was found and what was expected.
    """
    values = file_values(path, overrides)
    for name, value in overrides.items():
        _set(values, name, value)
    return checked(Params, values, str(path))


def file_values(path: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns what the file says, without the methods' changes to `train` that `overrides` make void.

    Raises PipelineError where it is not YAML with names and values.
    """
    values: dict[str, Any] = {}
    if path.exists():
        try:
            values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}
        except (YAMLError, UnicodeDecodeError) as error:
            raise PipelineError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise PipelineError(f"{path}: holds a {type(values).__name__}, expected names with values")
    for name, value in overrides.items():
        _override_methods(values, name, value)
    return values


def _override_methods(values: dict[str, Any], name: str, value: Any) -> None:
    """Removes from `methods` the changes to fields of `train` that `name` overrides."""
    section, _, field = name.partition(".")
    fields = {field} if field else set(value) if isinstance(value, dict) else set()
    groups = values.get("methods") if section == "train" else None
    for methods in groups.values() if isinstance(groups, dict) else ():
        for changes in methods.values() if isinstance(methods, dict) else ():
            for changed in fields.intersection(changes) if isinstance(changes, dict) else ():
                del changes[changed]


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[last] = value


def checked(model: Any, values: dict[str, Any], where: str) -> Any:
    """Makes `model` (a pydantic model or TypeAdapter) of `values`. Raises PipelineError with all complaints on one line."""
    try:
        return model.validate_python(values) if isinstance(model, TypeAdapter) else model.model_validate(values)
    except ValidationError as error:
        complaints = [
            f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']} (found {_abbreviated(e['input'])})"
            for e in error.errors()
        ]
        raise PipelineError(f"{where}: {'; '.join(complaints)}") from None


def _abbreviated(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def method_settings(params: Params, method: str, flags: dict[str, Any]) -> TrainSettings:
    """Returns `train` with the method's changes in the parameters, and with those of `flags` on top."""
    changes = {**params.methods.changes(method), **flags}
    return checked(TrainSettings, {**params.train.model_dump(), **changes}, f"train, for method {method}")
