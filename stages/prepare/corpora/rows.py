"""Makes items of the rows of a `datasets` dataset. Audio stays encoded: the library decodes only with torchcodec."""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import PipelineError
from stages.prepare.corpora.places import Places
from stages.prepare.items import Item, unique_ids

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1_000  # rows looked at together


@dataclass(frozen=True)
class Columns:
    audio: str
    text: str
    speaker: str | None = None
    group: str | None = None


def load(path: str, **options: Any) -> dict[str, Any]:
    """Returns the Dataset of each split, by name. Raises PipelineError with the library's own reason."""
    import datasets  # takes seconds to import, and most corpora do without

    try:
        if Path(path).is_dir() and _saved_to_disk(Path(path)):
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path, **options)
    except Exception as error:  # of a dozen kinds, from the network to a damaged file; all come from outside
        cause = error.__cause__ or error
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        # The library turns files into rows only with torchcodec, though it reads rows without.
        hint = (
            "; or read its table of files by `--corpus manifest --path FOLDER/metadata.csv --columns path=file_name`"
            if "torchcodec" in reason
            else ""
        )
        raise PipelineError(f"dataset {path} cannot be loaded: {reason}{hint}") from None
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _saved_to_disk(path: Path) -> bool:
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def items(dataset: Any, columns: Columns, source: str, places: Places) -> list[Item]:
    """Makes an item of each row.

    source: is put before the row's number in ids and addresses. places: finds relative paths.
    Raises PipelineError where a column is missing, or holds no audio.
    """
    wanted = [name for name in (columns.audio, columns.text, columns.speaker, columns.group) if name is not None]
    missing = [name for name in wanted if name not in dataset.column_names]
    if missing:
        raise PipelineError(
            f"{source}: no column {', '.join(missing)}; it has {', '.join(dataset.column_names)}: name them by "
            "--columns audio=…,text=… (in the parameters audio_column, text_column, speaker_column)"
        )
    # Arrow tables are the columns as stored: nothing is decoded, and audio stays on disk until it is asked for.
    stored = dataset.with_format("arrow")
    version = _version(dataset)
    result: list[Item] = []
    for batch in stored.select_columns(wanted).iter(BATCH):
        result += _batch_items(stored, batch, columns, source, len(result), places, version)
    return unique_ids(result)


def _batch_items(
    stored: Any, batch: "pa.Table", columns: Columns, source: str, first: int, places: Places, version: str
) -> list[Item]:
    texts = batch.column(columns.text).to_pylist()
    speakers = batch.column(columns.speaker).to_pylist() if columns.speaker else [None] * len(texts)
    groups = batch.column(columns.group).to_pylist() if columns.group else speakers
    sizes, paths = _sizes_and_paths(batch.column(columns.audio), f"{source}, column '{columns.audio}'")
    result = []
    for row, (text, speaker, group, size, path) in enumerate(
        zip(texts, speakers, groups, sizes, paths, strict=True), first
    ):
        item_id = f"{source.rpartition('/')[2]}-{row:07d}"
        held = size is not None or path is None
        audio = partial(_bytes, stored, columns.audio, row) if held else places.find(str(path))
        where = f"{source}/{row}" + (f"/{Path(path).name}" if path else "")
        result.append(Item(item_id, audio, _text(text), _text(speaker), _text(group) or item_id, where, version))
    return result


def _version(dataset: Any) -> str:
    """Returns a hash that changes with any row: of the library's fingerprint, and of the files that hold the rows."""
    found = [Path(entry["filename"]).stat() for entry in dataset.cache_files]
    facts = [dataset._fingerprint, *([stat.st_size, stat.st_mtime_ns] for stat in found)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _sizes_and_paths(column: "pa.ChunkedArray", where: str) -> tuple[list[int | None], list[str | None]]:
    """Returns for each row the length of its bytes and its path. Only the offsets of the bytes are read."""
    import pyarrow as pa  # here, since every command imports this module for its corpus' settings
    import pyarrow.compute as pc

    kind: Any = column.type
    nothing: list[Any] = [None] * len(column)
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        sizes = pc.binary_length(pc.struct_field(column, "bytes"))
        return sizes.to_pylist(), pc.struct_field(column, "path").to_pylist()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.binary_length(column).to_pylist(), nothing
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return nothing, column.to_pylist()
    raise PipelineError(f"{where} is {kind}, expected audio: bytes, or a path, or both")


def _bytes(stored: Any, column: str, row: int) -> bytes:
    value = stored[row].column(column)[0].as_py()
    data = value["bytes"] if isinstance(value, dict) else value
    return data if data is not None else b""
