"""Computes the memory that decoding a Parquet file takes, from the headers of its pages.

pyarrow decodes what the page headers say. With run-length coding a page of 60 bytes can hold 200 million values: pyarrow
decodes them even if the footer says 3, and it decompresses what a page claims even if the footer gives a small size.
pyarrow has no limit on memory. Therefore the headers, which stand uncompressed before each page, are read here first and
must agree with the footer. The footer is read here, too: asked for a column's metadata, pyarrow ends the process at some
damaged footers, though not when it reads the column. Field numbers: parquet.thrift.
"""

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from cache.records import VALUE_BYTES
from cache.thrift import Compact

MAGIC = b"PAR1"
FOOTER_BYTES = 1 << 23  # a shard with the most records that are allowed has a footer of 6 MB
HEADER_BYTES = 1 << 16  # it holds a column's least and greatest value, if they are small
PAGE_BYTES = 1024  # memory of a page in addition to its content
_DICTIONARY = 2
_STRUCT_OF = {0: 5, _DICTIONARY: 7, 3: 8}  # page type (0 data, 3 data v2) -> field of PageHeader that describes it


@dataclass
class Cost:
    """rows: of the file. bytes: of decompressed pages and decoded values. longest: the columns' largest pages, summed."""

    rows: int
    bytes: int
    longest: int


def decoding_cost(file: BinaryIO, columns: set[str]) -> Cost:
    """Returns the cost of `columns`. Raises ValueError where headers and footer contradict each other or the file's size."""
    end = file.seek(0, os.SEEK_END)
    footer = _footer(file, end)
    groups = [_number(group, 3) for group in _field(footer, 4, list)]
    if (rows := _number(footer, 3)) != sum(groups):
        raise ValueError(f"a footer that says {rows} rows, with row groups of {sum(groups)}")
    total, largest = 0, dict.fromkeys(columns, 0)
    for group in _field(footer, 4, list):
        for chunk in _field(group, 1, list):
            metadata = _field(chunk, 3, dict)
            column = _top_level(_field(metadata, 3, list))
            if column in columns:
                sizes = _page_sizes(file, column, metadata, end)
                total += sum(sizes) + VALUE_BYTES * _number(metadata, 5)
                largest[column] = max(largest[column], *sizes, 0)
            if 1 in chunk:
                raise ValueError(f"column {column} in another file")
    return Cost(rows, total, sum(largest.values()))


def _top_level(path: list[Any]) -> str:
    """Returns the name of the top-level column. A part after a dot is cut off, and counts with the column before the dot."""
    if not path or not all(isinstance(part, bytes) for part in path):
        raise ValueError(f"a column called {path}")
    return path[0].decode().partition(".")[0]


def _footer(file: BinaryIO, end: int) -> dict[int, Any]:
    file.seek(max(0, end - 8))
    size, magic = int.from_bytes(file.read(4), "little"), file.read(4)
    if magic != MAGIC or not size <= min(end - 8, FOOTER_BYTES):
        raise ValueError(f"no footer of at most {FOOTER_BYTES} bytes")
    file.seek(end - 8 - size)
    return Compact(file.read(size)).struct()


def _page_sizes(file: BinaryIO, column: str, metadata: dict[int, Any], file_end: int) -> list[int]:
    """Returns the bytes that each page of a column chunk takes, decompressed."""
    at, dictionary = _number(metadata, 9), metadata.get(11, 0)
    if isinstance(dictionary, int) and 0 < dictionary < at:
        at = dictionary
    end = at + _number(metadata, 7)
    if not 0 <= at <= end <= file_end:
        raise ValueError(f"column {column} lies at bytes {at}-{end} of {file_end}")
    sizes, values = [], 0
    while at < end:
        page, length = _page(file, at, end)
        at += length + page.compressed
        values += 0 if page.is_dictionary else page.values
        entries = page.values if page.is_dictionary else 0
        sizes.append(PAGE_BYTES + max(page.compressed, page.uncompressed) + VALUE_BYTES * entries)
    if at != end or values != _number(metadata, 5):
        raise ValueError(f"column {column}: pages of {values} values, its footer says {metadata[5]}")
    return sizes


@dataclass(frozen=True)
class _Page:
    compressed: int
    uncompressed: int
    values: int
    is_dictionary: bool


def _page(file: BinaryIO, at: int, end: int) -> tuple[_Page, int]:
    """Returns the page at byte `at`, and the length of its header."""
    file.seek(at)
    reader = Compact(file.read(min(HEADER_BYTES, end - at)))
    header = reader.struct()
    kind = _number(header, 1)
    if kind not in _STRUCT_OF:
        raise ValueError(f"the page at byte {at} is of type {kind}")
    values = _number(_field(header, _STRUCT_OF[kind], dict), 1)
    return _Page(_number(header, 3), _number(header, 2), values, kind == _DICTIONARY), reader.at


def _field(fields: Any, field: int, kind: type) -> Any:
    """Returns a field of a struct. Raises ValueError where it is missing or not of type `kind`."""
    value = fields.get(field) if isinstance(fields, dict) else None
    if type(value) is not kind:
        raise ValueError(f"{str(value)[:40]!r} in field {field}, expected a {kind.__name__}")
    return value


def _number(fields: Any, field: int) -> int:
    """Returns a count, a size or an offset. Raises ValueError where it is negative or too large."""
    value: int = _field(fields, field, int)
    if not 0 <= value < 1 << 62:
        raise ValueError(f"{value} in field {field}")
    return value
