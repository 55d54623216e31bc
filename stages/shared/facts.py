"""Reads what stages leave beside their outputs for others: a training's facts, and what `evaluate` has measured.

Each file is checked when it is read. So whoever uses a fact needs no check of its own.
"""

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, StringConstraints, ValidationError

from cache.errors import PipelineError
from cache.files import read_json, read_jsonl
from cache.storage import AnyPath
from stages.shared.layout import RESULT, rows_path
from stages.shared.methods import METHODS


def _known(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"expected one of {', '.join(METHODS)}")
    return method


Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Amount = Annotated[FiniteFloat, Field(ge=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Percent = Annotated[int, Field(ge=0, le=100)]
LayerName = Annotated[str, StringConstraints(pattern=r"^(encoder|decoder)\.layers\.\d+$")]
MethodName = Annotated[str, AfterValidator(_known)]
Model = TypeVar("Model", bound=BaseModel)


class Unscored(BaseModel):
    id: str
    reason: str


class Metrics(BaseModel):
    language: str
    system: str
    corpus: str
    split: str
    corpus_utterances: Count | None = None  # of the corpus' split, before any was left out; None: not known
    normaliser: str
    utterances: Positive
    words: Positive
    characters: Count
    hits: Count
    substitutions: Count
    deletions: Count
    insertions: Count
    wer: Amount
    cer: Amount
    basic_wer: Amount | None  # None: nothing was left of the references
    basic_cer: Amount | None
    raw_wer: Amount
    raw_cer: Amount
    audio_seconds: Amount
    seconds: Amount
    audio_window_s: Amount
    dtype: str
    model: str
    loops: Count
    cut_loops: bool
    unended: Count
    gates: dict[LayerName, Share]
    unscored: list[Unscored]


class Utterance(BaseModel):
    """The fields that the report needs of a row. Other fields are kept."""

    id: str
    group: str = ""
    seconds: Amount | None = None
    reference: str
    hypothesis: str
    words: Count
    word_errors: Count
    characters: Count
    character_errors: Count
    substitutions: Count
    deletions: Count
    insertions: Count
    looped: bool = False
    unended: bool = False
    expert_words: list[Percent] | None = None  # by word of the hypothesis as it is written


class Data(BaseModel):
    """The training data of one language."""

    corpus: str | None
    corpus_utterances: Count  # of the corpus' training split, before any was left out or not selected
    subset: str | None
    teacher: str | list[str] | None  # a list: of each fold
    targets: str | None

    @property
    def teachers(self) -> list[str]:
        return [self.teacher] if isinstance(self.teacher, str) else self.teacher or []


class BegunSettings(BaseModel):
    fold: tuple[Count, Positive] | None = None  # of a teacher: which of how many


class Begun(BaseModel):
    """What is known of a training from its beginning. Other settings are kept."""

    settings: BegunSettings


class TrainingSettings(BaseModel):
    method: MethodName
    base: str
    audio_window_s: Amount
    batch_size: Count
    accumulate: Count
    processes: Count = 1
    seed: int
    timestamps: Share = 0.0


class Training(BaseModel):
    """What training.json says of a finished training, as far as a card or the report tells it."""

    settings: TrainingSettings
    changes: dict[str, Any] = {}  # the settings that are not the paper's
    data: dict[str, Data] = {}  # by language; {}: not known, so that nothing can be compared
    training_utterances: Count  # of all languages
    validation_utterances: Count
    teacher_targets: Count = 0  # utterances whose target is the teacher's own words
    steps: Count
    best_step: Count
    best_validation_wer: Amount


def read_begun(path: AnyPath) -> dict[str, Any]:
    """Returns a training.json, or the progress.json of a training that has not ended, whole."""
    facts = read_json(path)
    validated(Begun, facts, str(path))
    return dict(facts)


def read_training(folder: AnyPath) -> Training | None:
    """Returns the facts of the training that made what lies in `folder`, None where training.json is not there."""
    path = folder / RESULT
    return validated(Training, read_json(path), str(path)) if path.exists() else None


def metrics_files(metrics: AnyPath) -> list[AnyPath]:
    """Returns the metrics files of all languages and systems, without those that are being written."""
    return [path for path in sorted(metrics.glob("*/*.json"), key=str) if not path.name.startswith(".")]


def read_metrics(path: AnyPath) -> Metrics:
    return validated(Metrics, read_json(path), str(path))


def read_rows(path: AnyPath, metrics: Metrics) -> list[dict[str, Any]] | None:
    """Returns the utterances beside the metrics file `path`, with all their fields; None where the file is not there.

    Raises PipelineError where a row is not as expected, or where the rows are not those of the metrics.
    """
    if not (beside := rows_path(path)).exists():
        return None
    rows = read_jsonl(beside)
    for number, row in enumerate(rows, start=1):
        validated(Utterance, row, f"{beside}, line {number}")
    if len({row["id"] for row in rows}) < len(rows):
        raise PipelineError(f"{beside}: field 'id': the same id occurs twice, expected distinct ids; evaluate again")
    found = len(rows), sum(row["words"] for row in rows)
    if found != (expected := (metrics.utterances, metrics.words)):
        raise PipelineError(
            f"{beside}: {found[0]} utterances with {found[1]} words, expected {expected[0]} with {expected[1]} "
            f"as in {path.name}; evaluate again"
        )
    return rows


def validated(model: type[Model], value: Any, where: str) -> Model:
    """Raises PipelineError naming the place and the first field that is missing or wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise PipelineError(f"{where}: field {field!r}: {first['msg']}; make the file again") from None
