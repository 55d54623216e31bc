"""Your own recordings: a CSV, TSV or JSON lines file with `path` and `text`, and optionally `speaker`, `split`, `id`."""

import json
from collections.abc import Collection
from typing import Any, Literal

from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.prepare.corpora.places import Places
from stages.prepare.corpora.settings import SplitShares, as_file_name
from stages.prepare.corpora.splits import with_all_splits
from stages.prepare.corpora.tables import TAB, read_table, read_text, require_columns
from stages.prepare.items import SPLITS, Corpus, Item, unique_ids
from stages.shared.settings import PathOrUrl

REQUIRED, OPTIONAL = ["path", "text"], ["speaker", "split", "id"]
ADVICE = ": name them by --columns path=…,text=… (in the parameters `columns`)"
SPLIT_NAMES = {
    "train": "train", "test": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip


class ManifestSettings(SplitShares):
    """A CSV, TSV or JSON lines file with `path` and `text`, and where known `speaker`, `split` and `id`."""

    corpus: Literal["manifest"]
    path: PathOrUrl
    columns: dict[Literal["path", "text", "speaker", "split", "id"], str] = {}  # ours: the file's, where it differs

    @property
    def name(self) -> str:
        return as_file_name(self.path.stem)

    @classmethod
    def columns_as(cls, names: dict[str, str]) -> dict[str, Any]:
        return {"columns": names}


def read(settings: ManifestSettings, language: str, wanted: Collection[str] = SPLITS) -> Corpus:
    """Reads the whole file, whatever is `wanted`. A manifest has one language: `language` is not used.

    Raises PipelineError naming the line or the column that is wrong.
    """
    rows = _rows(settings)
    if not rows:
        raise PipelineError(f"{settings.path}: no recordings listed, expected one a line")
    places = Places(settings.path.parent)
    splits: dict[str, list[Item]] = {}
    for row in rows:
        splits.setdefault(_split(settings.path, row), []).append(_item(places, row))
    found = Corpus({split: unique_ids(items) for split, items in splits.items()}, notes=places.notes())
    return with_all_splits(found, settings.shares)


def _rows(settings: ManifestSettings) -> list[dict[str, str]]:
    """Returns the rows by our names of the columns."""
    path = settings.path
    names = {name: name for name in REQUIRED + OPTIONAL} | {str(ours): name for ours, name in settings.columns.items()}
    wanted = [names[name] for name in (*REQUIRED, *settings.columns)]
    match path.suffix.lower():
        case ".csv":
            found = read_table(path, f",;{TAB}", wanted, advice=ADVICE).rows
        case ".tsv":
            found = read_table(path, f"{TAB},;", wanted, advice=ADVICE).rows
        case ".jsonl" | ".json" | ".ndjson":
            return _read_jsonl(path, names, wanted)
        case other:
            raise PipelineError(f"{path}: a manifest ends in .csv, .tsv, .jsonl or .json, not in '{other}'")
    return [{ours: row[theirs] for ours, theirs in names.items() if theirs in row} for row in found]


def _read_jsonl(path: AnyPath, names: dict[str, str], wanted: list[str]) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    seen: dict[str, None] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        found = _json_object(where, line)
        row = {ours: found[theirs] for ours, theirs in names.items() if found.get(theirs) is not None}
        if rows:
            _same_columns(where, row, rows[0])
        else:
            require_columns(path, _given(found), [names[name] for name in REQUIRED], ADVICE)
        rows.append({name: _string(where, name, value) for name, value in row.items()})
        seen |= dict.fromkeys(_given(found))
    if rows:
        require_columns(path, list(seen), wanted, ADVICE)
    return rows


def _given(row: dict[str, Any]) -> list[str]:
    return [name for name, value in row.items() if value is not None]


def _json_object(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise PipelineError(f"{where}: not valid JSON ({error}), expected an object on each line") from None
    if not isinstance(row, dict):
        raise PipelineError(f"{where}: expected an object with {', '.join(REQUIRED)}")
    return row


def _same_columns(where: str, row: dict, first: dict) -> None:
    """Raises PipelineError unless the line has the required columns, and a split where the first line has one."""
    require = [name for name in [*REQUIRED, "split"] if name in first or name in row]
    for name in require:
        if name not in row or name not in first:
            raise PipelineError(f"{where}: '{name}' is not given on every line, expected it on all or on none")


def _string(where: str, name: str, value: object) -> str:
    """Returns the value as text. Speakers and ids may be numbers."""
    if name in ("speaker", "id") and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise PipelineError(f"{where}: {name} is {value!r}, expected a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PipelineError(f"{where}: {name} is not valid Unicode, correct it") from None
    return value


def _item(places: Places, row: dict[str, str]) -> Item:
    path, speaker = row["path"], row.get("speaker", "")
    item_id = row.get("id") or path
    return Item(item_id, places.find(path), row["text"], speaker, speaker or item_id, path)


def _split(path: AnyPath, row: dict[str, str]) -> str:
    """Returns our name of the row's split. Without one it is training, from which the other splits are drawn."""
    if "split" not in row:
        return "train"
    name = SPLIT_NAMES.get(row["split"].strip().lower())
    if name is None:
        raise PipelineError(
            f"{path}: split of {row['path']} is '{row['split']}', expected one of {', '.join(SPLIT_NAMES)}"
        )
    return name
