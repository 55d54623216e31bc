"""Any dataset of the `datasets` library: of the hub, saved to disk, or a folder of Parquet and the like."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from cache.errors import PipelineError
from stages.prepare.corpora import rows
from stages.prepare.corpora.places import Places
from stages.prepare.corpora.settings import SplitShares, as_file_name, expand_home
from stages.prepare.corpora.splits import with_all_splits
from stages.prepare.items import SPLITS, Corpus

COLUMNS = ("audio", "text", "speaker")
USUAL_NAMES = {"train": ["train"], "validation": ["validation", "dev", "valid", "val"], "test": ["test"]}


class DatasetSettings(SplitShares):
    """Any dataset that the `datasets` library loads: a repository of the hub, or a folder."""

    corpus: Literal["dataset"]
    path: Annotated[str, BeforeValidator(expand_home)]
    config: str | None = None
    revision: str | None = None
    audio_column: str = "audio"
    text_column: str = "text"
    speaker_column: str | None = None
    splits: dict[Literal["train", "validation", "test"], str] | None = None  # ours: theirs; None: the usual names

    @property
    def name(self) -> str:
        return as_file_name(Path(self.path).name)

    @classmethod
    def columns_as(cls, names: dict[str, str]) -> dict[str, Any]:
        if unknown := sorted(names.keys() - set(COLUMNS)):
            raise ValueError(f"{unknown[0]}: a dataset has {', '.join(COLUMNS)}")
        return {f"{ours}_column": theirs for ours, theirs in names.items()}


def read(settings: DatasetSettings, language: str, wanted: Collection[str] = SPLITS) -> Corpus:
    """Reads the dataset. Its `config` chooses the language: `language` is not used.

    Raises PipelineError where the dataset cannot be loaded, or lacks a split or a column.
    """
    options = {"name": settings.config, "revision": settings.revision}
    loaded = rows.load(settings.path, **options)
    columns = rows.Columns(settings.audio_column, settings.text_column, settings.speaker_column)
    name = "/".join(part for part in (settings.path, settings.config) if part)
    places = Places(Path(settings.path) if Path(settings.path).is_dir() else Path())
    splits = _splits(settings, list(loaded))
    if set(wanted) <= splits.keys():
        splits = {ours: theirs for ours, theirs in splits.items() if ours in wanted}
    found = {ours: rows.items(loaded[theirs], columns, f"{name}/{theirs}", places) for ours, theirs in splits.items()}
    return with_all_splits(Corpus(found, notes=places.notes()), settings.shares)


def _splits(settings: DatasetSettings, found: list[str]) -> dict[str, str]:
    """Returns the dataset's name of each of our splits."""
    if settings.splits is None:
        usual = {ours: [name for name in names if name in found] for ours, names in USUAL_NAMES.items()}
        chosen = {ours: names[0] for ours, names in usual.items() if names}
    else:
        chosen = {str(ours): theirs for ours, theirs in settings.splits.items()}
    missing = [theirs for theirs in chosen.values() if theirs not in found]
    if missing or not chosen:
        raise PipelineError(
            f"dataset {settings.path} has the splits {', '.join(found)}, expected "
            f"{', '.join(missing) or 'train, validation or test'}: set `splits` (ours: theirs)"
        )
    return chosen
