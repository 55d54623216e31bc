"""Common Voice, as released: train.tsv, dev.tsv, test.tsv and clips/, or ss-corpus-LANG.tsv and audios/."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.prepare.corpora.places import Places
from stages.prepare.corpora.settings import SplitShares
from stages.prepare.corpora.splits import with_all_splits
from stages.prepare.corpora.tables import TAB, read_table
from stages.prepare.items import SPLITS, Corpus, Item, unique_ids
from stages.shared.settings import PathOrUrl

FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
VALIDATED = "validated.tsv"  # every utterance that the others are chosen from
SPONTANEOUS = "ss-corpus-*.tsv"
SUBSETS = {None: None, "3k": 3_000, "10k": 10_000, "28k": 28_000}
COLUMNS = ["client_id", "path", "sentence", "up_votes", "down_votes"]
SPONTANEOUS_COLUMNS = ["client_id", "audio_file", "transcription", "split"]
EXPECTED = f"{', '.join(FILES.values())} or {VALIDATED}, and clips/, or {SPONTANEOUS} and audios/"


class CommonVoiceSettings(SplitShares):
    """A Common Voice release as downloaded and extracted, of read sentences or of spontaneous speech."""

    corpus: Literal["common-voice"]
    # The folder with train.tsv, dev.tsv, test.tsv (or validated.tsv alone) and clips/, or with ss-corpus-LANG.tsv and
    # audios/; or the one above it.
    path: PathOrUrl
    subset: Literal["3k", "10k", "28k"] | None = None  # train utterances, the most up-voted (arXiv 2311.01070)
    max_validation: int = Field(default=500, ge=1)


@dataclass(frozen=True)
class _Release:
    splits: dict[str, list[Item]]
    votes: dict[str, tuple[int, int]]  # by source: up, down
    not_selected: dict[str, int]
    notes: list[str]


def read(settings: CommonVoiceSettings, language: str, wanted: Collection[str] = SPLITS) -> Corpus:
    """Reads a release. A subset takes the most up-voted utterances, and among equals the least down-voted (arXiv 2311.01070).

    Raises PipelineError where `path` holds no release, or a table is not as expected.
    """
    folder = _folder(settings.path, language)
    if _is_scripted(folder):
        release = _scripted(folder, wanted)
    elif settings.subset is None:
        release = _spontaneous(folder, language)
    else:
        raise PipelineError(
            f"{folder}: subset '{settings.subset}' is by votes, which spontaneous speech has not: leave it out"
        )
    facts: dict[str, object] = {"folder": folder.name if folder != settings.path else "."}
    whole = Corpus(release.splits, release.not_selected, facts, release.notes)
    return _selected(settings, with_all_splits(whole, settings.shares), release.votes)


def _folder(path: AnyPath, language: str) -> AnyPath:
    own = [folder for folder in (path, path / language) if _is_release(folder)]
    # A release's own code may name a country, as sv-SE does, and one code may have several, as zh does.
    candidates = own[:1] or [folder for folder in sorted(path.glob(f"{language}-*")) if _is_release(folder)]
    if not candidates:
        raise PipelineError(
            f"{path}: no Common Voice release here, expected {EXPECTED}, or a folder {language} with them; correct `path`"
        )
    if len(candidates) > 1:
        names = ", ".join(folder.name for folder in candidates)
        raise PipelineError(f"{path}: {names} are all '{language}': let `path` name one of them, as {candidates[0]}")
    return candidates[0]


def _is_release(folder: AnyPath) -> bool:
    return _is_scripted(folder) or bool(list(folder.glob(SPONTANEOUS)))


def _is_scripted(folder: AnyPath) -> bool:
    return any((folder / name).is_file() for name in (*FILES.values(), VALIDATED))


def _selected(settings: CommonVoiceSettings, corpus: Corpus, votes: dict[str, tuple[int, int]]) -> Corpus:
    limits = {"train": SUBSETS[settings.subset], "validation": settings.max_validation, "test": None}
    splits, not_selected = {}, dict(corpus.not_selected)
    for split, items in corpus.splits.items():
        limit, usable = limits[split], [item for item in items if item.excluded is None]
        chosen = items
        if limit is not None and len(usable) > limit:
            chosen = sorted(usable, key=lambda item: (-votes[item.source][0], votes[item.source][1]))[:limit]
        not_selected[split] = not_selected.get(split, 0) + len(items) - len(chosen)
        splits[split] = unique_ids(chosen)
    return replace(corpus, splits=splits, not_selected=not_selected)


# Read sentences


def _scripted(folder: AnyPath, wanted: Collection[str]) -> _Release:
    if not (folder / "clips").is_dir():
        raise PipelineError(f"{folder}: clips/ missing, expected a whole Common Voice release")
    tables = {"test": _rows(folder / FILES["test"])}
    if set(wanted) != {"test"} or not tables["test"]:
        tables |= {split: _rows(folder / name) for split, name in FILES.items() if split != "test"}
    notes: list[str] = []
    if "train" in tables and not tables["train"]:
        tables["train"], notes = _validated(folder, tables)
    places = Places(folder)
    votes = {f"clips/{_clip(row)}": _votes(row) for rows in tables.values() for row in rows}
    return _Release({name: [_item(places, row) for row in rows] for name, rows in tables.items()}, votes, {}, notes)


def _validated(folder: AnyPath, tables: dict[str, list[dict[str, str]]]) -> tuple[list[dict[str, str]], list[str]]:
    """Returns validated rows as a training split, which the release of a small language may lack, and a note about it."""
    taken = {row["path"] for rows in tables.values() for row in rows}
    rows = [row for row in _rows(folder / VALIDATED) if row["path"] not in taken]
    if not rows and not taken:
        raise PipelineError(f"{folder}: no utterances in {', '.join(FILES.values())} or {VALIDATED}")
    others = " that are in no other split" if taken else ""
    return rows, [f"{FILES['train']} has no utterances: training is the {len(rows)} of {folder / VALIDATED}{others}"]


def _rows(path: AnyPath) -> list[dict[str, str]]:
    """Returns the rows of the table; none where there is no such file."""
    if not path.is_file():
        return []
    table = read_table(path, TAB, COLUMNS)
    for row in table.rows:
        for column in ("up_votes", "down_votes"):
            if not (row[column] or "0").isdecimal():
                raise PipelineError(f"{path}: {column} of {row['path']} is {row[column]!r}, expected a number")
        if not table.quoted:
            # Releases are written without quoting but with '"' as the escape character: every quote is doubled.
            row["sentence"] = row["sentence"].replace('""', '"')
    return table.rows


def _votes(row: dict[str, str]) -> tuple[int, int]:
    return int(row["up_votes"] or 0), int(row["down_votes"] or 0)


def _clip(row: dict[str, str]) -> str:
    name = row["path"]
    return name if Path(name).suffix else f"{name}.mp3"  # some releases leave it out


def _item(places: Places, row: dict[str, str]) -> Item:
    source, speaker = f"clips/{_clip(row)}", row["client_id"]
    return Item(Path(source).stem, places.folder / source, row["sentence"], speaker, speaker, source)


# Spontaneous speech


def _spontaneous(folder: AnyPath, language: str) -> _Release:
    path = _spontaneous_table(folder, language)
    if not (folder / "audios").is_dir():
        raise PipelineError(f"{folder}: audios/ missing, expected a whole release of Common Voice's spontaneous speech")
    rows = read_table(path, TAB, SPONTANEOUS_COLUMNS).rows
    divided = any(row["split"] for row in rows)
    splits: dict[str, list[Item]] = {split: [] for split in FILES}
    names = {name.removesuffix(".tsv"): split for split, name in FILES.items()}
    not_selected = 0
    for row in rows:
        split = names.get(row["split"] or ("" if divided else "train"))
        if split is not None:
            source, speaker = f"audios/{row['audio_file']}", row["client_id"]
            item = Item(Path(source).stem, folder / source, row["transcription"], speaker, speaker, source)
            splits[split].append(item)
        elif row["split"]:
            raise PipelineError(
                f"{path}: split of {row['audio_file']} is '{row['split']}', expected {', '.join(names)}"
            )
        else:
            not_selected += 1  # not yet transcribed, or not validated
    votes = {item.source: (0, 0) for items in splits.values() for item in items}
    return _Release(splits, votes, {"train": not_selected} if not_selected else {}, [])


def _spontaneous_table(folder: AnyPath, language: str) -> AnyPath:
    tables = sorted(folder.glob(SPONTANEOUS))
    own = [table for table in tables if table.stem == f"ss-corpus-{language}"] or tables
    if len(own) > 1:
        raise PipelineError(f"{folder}: {', '.join(table.name for table in own)}: expected the table of one language")
    return own[0]
