"""`params.yaml`: read as YAML 1.2 (as DVC does: `no` is a language and 1e-4 a number), checked, and never guessed at."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cache.errors import PipelineError
from stages.evaluate.settings import EvaluateSettings
from stages.prepare.settings import CorpusSettings, PrepareSettings
from stages.shared.settings import PathOrUrl, Settings
from stages.teacher_cache.settings import ClusterSettings, TeacherCacheSettings
from stages.train_student.settings import TrainSettings


class Language(Settings):
    corpus: CorpusSettings | None = Field(None, description="null: `prepare` is told by --corpus and --path")
    token: str | None = Field(
        None,
        description="a language by whose token Whisper is prompted; needed where it has none of the language's own",
    )

    @field_validator("token")
    @classmethod
    def _of_whisper(cls, token: str | None) -> str | None:
        from stages.shared.whisper.languages import token_language

        return None if token is None else token_language(token)


class Teacher(Settings):
    model: str = "openai/whisper-large-v2"
    adapt: TrainSettings | None = Field(
        None, description="fine-tune it on the training split first, by this recipe; null: it teaches as it is"
    )


class Methods(Settings):
    """Which methods `dvc repro` trains, each with its changes to `train`."""

    from_transcripts: dict[str, dict[str, Any]] = {"clsr": {}}
    from_teacher: dict[str, dict[str, Any]] = {"clsr-kd": {}}


class Paths(Settings):
    utterances: PathOrUrl = Path("data/utterances")
    teacher: PathOrUrl = Path("data/teacher")
    models: PathOrUrl = Path("models")
    metrics: PathOrUrl = Path("metrics")
    report: PathOrUrl = Path("report")


class Params(Settings):
    languages: dict[str, Language] = {}
    further_tests: dict[str, CorpusSettings] = Field({}, description="by name: corpora whose test split is used, too")
    audio_window_s: Annotated[int, Field(ge=1, le=30)] = 30
    device: str = "auto"
    student: str = "openai/whisper-small"
    teacher: Teacher = Teacher()
    methods: Methods = Methods()
    prepare: PrepareSettings = PrepareSettings()
    teacher_cache: TeacherCacheSettings = TeacherCacheSettings()
    cluster: ClusterSettings = ClusterSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    paths: Paths = Paths()

    @field_validator("languages")
    @classmethod
    def _by_their_codes(cls, languages: dict[str, Language]) -> dict[str, Language]:
        """As the command line has them. DVC reads the keys as they stand, and they name folders: so they must be the codes."""
        from stages.shared.whisper.languages import language_code, language_name

        for key in languages:
            if (code := language_code(key)) != key:
                raise ValueError(
                    f"'{key}' is taken as {language_name(code)}: write {code}, which its folders are named by"
                )
        return languages


def load_params(path: Path, overrides: dict[str, Any]) -> Params:
    """The file's parameters with `overrides` (dotted names) on top; the defaults where there is no file.

    What a method changes of `train` in the file counts less than an override of `train`, and one of `methods` most.

    Raises PipelineError naming the file, the field, what was found and what was expected.
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
    for name, value in overrides.items():
        _set(values, name, value)
    return checked(Params, values, str(path))


def _override_methods(values: dict[str, Any], name: str, value: Any) -> None:
    """Drops what the file's `methods` change of `train` where `name` overrides the same of `train`."""
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
    """`model` (a pydantic model or TypeAdapter) of `values`; PipelineError with every complaint on one line."""
    try:
        return model.validate_python(values) if isinstance(model, TypeAdapter) else model.model_validate(values)
    except ValidationError as error:
        complaints = [
            f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']} (found {_short(e['input'])})"
            for e in error.errors()
        ]
        raise PipelineError(f"{where}: {'; '.join(complaints)}") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def train_settings(params: Params, changes: dict[str, Any], where: str) -> TrainSettings:
    return checked(TrainSettings, {**params.train.model_dump(), **changes}, where)
