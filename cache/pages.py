"""What decoding a Parquet file will really take, from its pages' own headers.

pyarrow goes by the page headers: a footer that says 3 values does not keep it from decoding the 200 million of a page of
60 bytes (run-length coding), nor a small size in the footer from decompressing what a page claims. It has no limit to set
on memory either. So the headers, which stand uncompressed before each page, are read here first and must agree with the
footer. The format: parquet.thrift (PageHeader) in Thrift's compact protocol.
"""

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from cache.records import VALUE_BYTES

HEADER_BYTES = 1 << 16  # pyarrow keeps a column's least and greatest value in it, where they are short
PAGE_BYTES = 1024  # what a page takes besides what is in it
_TYPE, _UNCOMPRESSED, _COMPRESSED = 1, 2, 3  # field ids of PageHeader
_DICTIONARY = 2
_VALUES_OF = {0: 5, _DICTIONARY: 7, 3: 8}  # page type (0 data, 3 data v2) -> field id of the struct of that type ...
_VALUES = 1  # ... in which this field counts its values


@dataclass
class Cost:
    """bytes: decompressed pages, decoded values. longest: the sum over the columns of each one's largest page."""

    bytes: int
    longest: int


def decoding_cost(file: BinaryIO, metadata: pq.FileMetaData, columns: set[str]) -> Cost:
    """Of the named `columns`. Raises ValueError where headers and footer contradict each other or the file's size."""
    end = file.seek(0, os.SEEK_END)
    total, largest = 0, dict.fromkeys(columns, 0)
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            chunk = row_group.column(number)
            column = chunk.path_in_schema.partition(".")[0]
            if column in columns:
                sizes = _page_sizes(file, chunk, end)
                total += sum(sizes) + VALUE_BYTES * chunk.num_values
                largest[column] = max(largest[column], *sizes, 0)
    return Cost(total, sum(largest.values()))


def _page_sizes(file: BinaryIO, chunk: pq.ColumnChunkMetaData, file_end: int) -> list[int]:
    """What each page of a column chunk takes, decompressed."""
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < at:
        at = chunk.dictionary_page_offset
    end = at + chunk.total_compressed_size
    if chunk.file_path or not 0 <= at <= end <= file_end:
        raise ValueError(f"column {chunk.path_in_schema} lies at bytes {at}-{end} of {chunk.file_path or file_end}")
    sizes, values = [], 0
    while at < end:
        page, length = _page(file, at, end)
        at += length + page.compressed
        values += 0 if page.is_dictionary else page.values
        entries = page.values if page.is_dictionary else 0
        sizes.append(PAGE_BYTES + max(page.compressed, page.uncompressed) + VALUE_BYTES * entries)
    if at != end or values != chunk.num_values:
        raise ValueError(f"column {chunk.path_in_schema}: pages of {values} values, its footer says {chunk.num_values}")
    return sizes


@dataclass(frozen=True)
class _Page:
    compressed: int
    uncompressed: int
    values: int
    is_dictionary: bool


def _page(file: BinaryIO, at: int, end: int) -> tuple[_Page, int]:
    """The page at `at`, and how long its header is."""
    file.seek(at)
    reader = _Compact(file.read(min(HEADER_BYTES, end - at)))
    header = reader.struct()
    kind = _number(header, _TYPE)
    counts = header.get(_VALUES_OF.get(kind, 0))
    if not isinstance(counts, dict):
        raise ValueError(f"the page at byte {at} is of a kind that is not known here")
    sizes = _number(header, _COMPRESSED), _number(header, _UNCOMPRESSED)
    return _Page(*sizes, _number(counts, _VALUES), kind == _DICTIONARY), reader.at


def _number(fields: dict[int, Any], field: int) -> int:
    number = fields.get(field)
    if type(number) is not int or not 0 <= number < 1 << 31:
        raise ValueError(f"a page header with {str(number)[:40]} in field {field}")
    return number


class _Compact:
    """A struct in Thrift's compact protocol -> field id: int, bytes, bool or struct. Raises ValueError on anything else."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        field = 0
        while head := self.byte():
            field = field + (head >> 4) if head >> 4 else self.zigzag()
            if field in fields or depth > 4:
                raise ValueError("a page header that contradicts itself")
            fields[field] = self.value(head & 15, depth)
        return fields

    def value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self.byte()
        if kind in (4, 5, 6):
            return self.zigzag()
        if kind == 8:
            return self.take(self.varint())
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"a page header with a field of Thrift type {kind}")

    def zigzag(self) -> int:
        number = self.varint()
        return number >> 1 ^ -(number & 1)

    def varint(self) -> int:
        number = shift = 0
        while (byte := self.byte()) & 128:
            number |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a page header with a number of more than 64 bits")
        return number | byte << shift

    def byte(self) -> int:
        return self.take(1)[0]

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            raise ValueError("a page header that is cut or too long")
        self.at += length
        return self.data[self.at - length : self.at]
