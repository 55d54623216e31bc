"""Reads `metrics/<lang>/<system>[@<corpus>].json` and the utterances beside it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, StringConstraints, ValidationError

from cache.errors import PipelineError
from cache.files import read_json, read_jsonl
from cache.storage import AnyPath
from stages.shared.methods import METHODS
from stages.shared.whisper.languages import code_of

SYSTEM_ORDER = ("base", "teacher", *METHODS)

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Amount = Annotated[FiniteFloat, Field(ge=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Percent = Annotated[int, Field(ge=0, le=100)]
LayerName = Annotated[str, StringConstraints(pattern=r"^(encoder|decoder)\.layers\.\d+$")]
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


@dataclass(frozen=True)
class Result:
    metrics: Metrics
    rows: list[dict[str, Any]] | None  # None: no utterances file
    path: AnyPath

    @property
    def name(self) -> str:
        """Names the system for readers. The base is called by the name of its model."""
        model = Path(self.metrics.model.replace("\\", "/")).name
        if self.metrics.system == "base":
            return model
        if is_baseline(self.metrics.system):
            return f"{model}, {self.metrics.audio_window_s:g} s window"
        if self.metrics.system == "teacher":
            own = model == "teacher" or model.startswith("fold-")  # an adapted one
            return f"teacher ({self.metrics.model if own else model})"
        return system_title(self.metrics.system)

    @property
    def entry(self) -> str:
        """Names the language's entry in the parameters, such as ca-x-3k: the file's folder."""
        return self.path.parent.name

    @property
    def corpus(self) -> str:
        """Names the corpus. A further corpus has the name that the user has chosen, which is in the file's name."""
        return self.further or self.metrics.corpus

    @property
    def further(self) -> str:
        """Names the further test corpus, '' for the language's own."""
        return self.path.stem.partition("@")[2]

    @property
    def utterances_path(self) -> AnyPath:
        return self.path.with_suffix(".utterances.jsonl")


def read_results(metrics: AnyPath) -> list[Result]:
    """Returns results sorted by language, with the main corpus before further ones, and systems in SYSTEM_ORDER.

    Raises PipelineError where there is none, and where one is not as expected.
    """
    paths = [path for path in sorted(metrics.glob("*/*.json")) if not path.name.startswith(".")]
    if not paths:
        raise PipelineError(
            f"{metrics}: no results, expected <lang>/<system>.json; `pipeline evaluate --lang cs` makes them"
        )
    results = sorted(map(_read_result, paths), key=_order)
    seen: dict[tuple[str, str, str], AnyPath] = {}
    for result in results:
        key = (result.entry, result.corpus, result.metrics.system)
        if key in seen:
            raise PipelineError(
                f"{result.path}: corpus is {key[1]!r}, as in {seen[key]}; expected one result; remove one"
            )
        seen[key] = result.path
    return results


def system_title(system: str) -> str:
    """Returns what readers know a method by; any other system goes by its own name."""
    return METHODS[system].title if system in METHODS else system


def is_baseline(system: str) -> bool:
    """Whether the system is the base, or one of the parameters' `baselines`: untrained."""
    return system == "base" or system.startswith("base-")


def system_order_key(system: str) -> tuple[int, str]:
    """Sorts systems: those of SYSTEM_ORDER first, in that order, with the baselines after the base."""
    if is_baseline(system):
        return 0, system
    return SYSTEM_ORDER.index(system) if system in SYSTEM_ORDER else len(SYSTEM_ORDER), system


def _order(result: Result) -> tuple[tuple[tuple[int, str], ...], str, tuple[int, str]]:
    return _by_number(result.entry), result.further, system_order_key(result.metrics.system)


def _by_number(entry: str) -> tuple[tuple[int, str], ...]:
    """Sorts ca-x-3k before ca-x-10k."""
    return tuple((int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", entry))


def _read_result(path: AnyPath) -> Result:
    metrics = validated(Metrics, read_json(path), str(path))
    for field, value in {"language": code_of(path.parent.name), "system": path.stem.partition("@")[0]}.items():
        if (found := getattr(metrics, field)) != value:
            raise PipelineError(
                f"{path}: {field} is {found!r}, expected {value!r} from the file's place; evaluate again"
            )
    result = Result(metrics, None, path)
    if not result.utterances_path.exists():
        return result
    return Result(metrics, _read_rows(result), path)


def _read_rows(result: Result) -> list[dict[str, Any]]:
    path = result.utterances_path
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        validated(Utterance, row, f"{path}, line {number}")
    if len({row["id"] for row in rows}) < len(rows):
        raise PipelineError(f"{path}: field 'id': the same id occurs twice, expected distinct ids; evaluate again")
    found = len(rows), sum(row["words"] for row in rows)
    if found != (expected := (result.metrics.utterances, result.metrics.words)):
        raise PipelineError(
            f"{path}: {found[0]} utterances with {found[1]} words, expected {expected[0]} with {expected[1]} "
            f"as in {result.path.name}; evaluate again"
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
