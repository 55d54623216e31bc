"""Common Voice, as its releases come: train.tsv, dev.tsv, test.tsv and clips/."""

from pathlib import Path

from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.prepare.corpora.tables import read_raw_tsv, require_columns
from stages.prepare.items import Corpus, Item, unique_ids
from stages.prepare.settings import CommonVoiceSettings

FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
SUBSETS = {None: None, "3k": 3_000, "10k": 10_000, "28k": 28_000}
COLUMNS = ["client_id", "path", "sentence", "up_votes", "down_votes"]


def read(settings: CommonVoiceSettings, language: str) -> Corpus:
    """The subsets are those of arXiv 2311.01070: the most up-voted utterances, among equals the least down-voted."""
    release = _release(settings.path, language)
    limits = {"train": SUBSETS[settings.subset], "validation": settings.max_validation, "test": None}
    splits, not_selected = {}, {}
    for split, name in FILES.items():
        rows = _rows(release / name)
        limit = limits[split]
        chosen = rows if limit is None or len(rows) <= limit else sorted(rows, key=_most_liked_first)[:limit]
        not_selected[split] = len(rows) - len(chosen)
        splits[split] = unique_ids([_item(release / "clips", row) for row in chosen])
    return Corpus(splits, not_selected)


def _release(path: AnyPath, language: str) -> AnyPath:
    # A release's own code may name a country, as sv-SE does.
    for folder in [path, path / language, *sorted(path.glob(f"{language}-*"))]:
        if any((folder / name).is_file() for name in FILES.values()):
            missing = [name for name in FILES.values() if not (folder / name).is_file()]
            missing += ["clips/"] if not (folder / "clips").is_dir() else []
            if missing:
                raise PipelineError(f"{folder}: {', '.join(missing)} missing, expected a whole Common Voice release")
            return folder
    raise PipelineError(
        f"{path}: no Common Voice release here, expected {', '.join(FILES.values())} and clips/, "
        f"or a folder {language} with them; correct `path`"
    )


def _rows(path: AnyPath) -> list[dict[str, str]]:
    rows = read_raw_tsv(path)
    if rows:
        require_columns(path, list(rows[0]), COLUMNS)
    for row in rows:
        for column in ("up_votes", "down_votes"):
            if not (row[column] or "0").isdecimal():
                raise PipelineError(f"{path}: {column} of {row['path']} is {row[column]!r}, expected a number")
    return rows


def _most_liked_first(row: dict[str, str]) -> tuple[int, int]:
    return -int(row["up_votes"] or 0), int(row["down_votes"] or 0)


def _item(clips: AnyPath, row: dict[str, str]) -> Item:
    name = row["path"]
    if not Path(name).suffix:
        name += ".mp3"  # some releases leave it out
    # The releases are written without quoting but with '"' as the escape character, which doubles every quote.
    text = row["sentence"].replace('""', '"')
    return Item(Path(name).stem, clips / name, text, row["client_id"], row["client_id"], f"clips/{name}")
