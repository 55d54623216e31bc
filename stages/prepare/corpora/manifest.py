"""One's own recordings: a CSV, TSV or JSON lines file with `path` and `text`, and perhaps `speaker`, `split`, `id`."""

import json
from collections import Counter

from cache import storage
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.prepare.corpora.tables import read_csv, read_text, require_columns
from stages.prepare.items import Corpus, Item, split_by_group, stable_hash, unique_ids
from stages.prepare.settings import ManifestSettings

REQUIRED, OPTIONAL = ["path", "text"], ["speaker", "split", "id"]
SPLIT_NAMES = {
    "train": "train", "test": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
FEWEST_SPEAKERS = 10  # below that, splitting by speaker would give splits of wildly different sizes


def read(settings: ManifestSettings, language: str) -> Corpus:
    """`language` is not looked at: a manifest is of one language."""
    rows = _rows(settings.path)
    if not rows:
        raise PipelineError(f"{settings.path}: no recordings listed, expected one a line")
    items = [_item(settings.path.parent, row) for row in rows]
    names = _given_splits(settings.path, rows) if "split" in rows[0] else _made_splits(settings, items)
    splits = {}
    for split in dict.fromkeys(names):
        chosen = [item for item, name in zip(items, names, strict=True) if name == split]
        splits[split] = unique_ids(chosen)
    return Corpus(splits)


def _rows(path: AnyPath) -> list[dict[str, str]]:
    match path.suffix.lower():
        case ".csv":
            rows = read_csv(path, ",")
        case ".tsv":
            rows = read_csv(path, "\t")
        case ".jsonl":
            rows = _read_jsonl(path)
        case other:
            raise PipelineError(f"{path}: a manifest ends in .csv, .tsv or .jsonl, not in '{other}'")
    for row in rows[:1]:
        require_columns(path, list(row), REQUIRED)
    return rows


def _read_jsonl(path: AnyPath) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PipelineError(f"{where}: not valid JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise PipelineError(f"{where}: expected an object with {', '.join(REQUIRED)}")
        row = {name: row[name] for name in REQUIRED + OPTIONAL if row.get(name) is not None}
        if rows:
            _same_columns(where, row, rows[0])
        rows.append({name: _string(where, name, value) for name, value in row.items()})
    return rows


def _same_columns(where: str, row: dict, first: dict) -> None:
    """Every line needs what every manifest needs, and a split where the first line has one."""
    require = [name for name in [*REQUIRED, "split"] if name in first or name in row]
    for name in require:
        if name not in row or name not in first:
            raise PipelineError(f"{where}: '{name}' is not given on every line, expected it on all or on none")


def _string(where: str, name: str, value: object) -> str:
    if not isinstance(value, str):
        raise PipelineError(f"{where}: {name} is {value!r}, expected a string")
    return value


def _item(folder: AnyPath, row: dict[str, str]) -> Item:
    path, speaker = row["path"], row.get("speaker", "")
    item_id = row.get("id") or path
    return Item(item_id, storage.join(folder, path), row["text"], speaker, speaker or item_id, path)


def _given_splits(path: AnyPath, rows: list[dict[str, str]]) -> list[str]:
    names = []
    for row in rows:
        name = SPLIT_NAMES.get(row["split"].strip().lower())
        if name is None:
            raise PipelineError(
                f"{path}: split of {row['path']} is '{row['split']}', expected one of {', '.join(SPLIT_NAMES)}"
            )
        names.append(name)
    return names


def _made_splits(settings: ManifestSettings, items: list[Item]) -> list[str]:
    """By speaker where there are enough of them, else item by item; the same on every machine and in every run."""
    shares = {"test": settings.test_fraction, "validation": settings.validation_fraction}
    speakers = Counter(item.speaker for item in items if item.speaker)
    if len(speakers) >= FEWEST_SPEAKERS:
        by_group = split_by_group(dict(Counter(item.group for item in items)), shares)
        names = [by_group[item.group] for item in items]
    else:
        names = [_by_chance(item.id, shares) for item in items]
    wanted = ["train", *(split for split, share in shares.items() if share > 0)]
    if missing := [split for split in wanted if split not in names]:
        raise PipelineError(
            f"{settings.path}: {len(items)} recordings leave none for {', '.join(missing)}: "
            "give a `split` column, or other values of test_fraction and validation_fraction (0: no such split)"
        )
    return names


def _by_chance(item_id: str, shares: dict[str, float]) -> str:
    """An item keeps its split whatever else is added to the manifest."""
    position = stable_hash(item_id) / 2**64
    for split, share in shares.items():
        if position < share:
            return split
        position -= share
    return "train"
