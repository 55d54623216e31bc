"""Writes and reads shards as Parquet: zstd, plain typed columns, page checksums."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.errors import PipelineError
from cache.pages import Cost, decoding_cost
from cache.records import READ_BYTES, READ_RECORDS, array_dtype, check_record

SUFFIX = ".parquet"
ROWS_PER_GROUP = 1024
_SCALARS = {"str": pa.string(), "float": pa.float64(), "int": pa.int64(), "bytes": pa.binary()}


def arrow_schema(fields: dict[str, str]) -> pa.Schema:
    return pa.schema([pa.field(name, _arrow_type(kind), nullable=kind.endswith("?")) for name, kind in fields.items()])


def _arrow_type(field_type: str) -> pa.DataType:
    dtype = array_dtype(field_type)
    return (
        _SCALARS[field_type.removesuffix("?")]
        if dtype is None
        else pa.list_(pa.field("item", pa.from_numpy_dtype(dtype), False))
    )


def write(file: BinaryIO, fields: dict[str, str], records: list[dict]) -> None:
    """Writes `records`. The bytes depend only on them and on the pyarrow version."""
    schema = arrow_schema(fields)
    columns = [pa.array([record[field.name] for record in records], field.type) for field in schema]
    table = pa.Table.from_arrays(columns, schema=schema)
    arrays = [name for name, kind in fields.items() if array_dtype(kind) is not None]
    pq.write_table(
        table,
        file,
        compression="zstd",
        compression_level=6,
        row_group_size=ROWS_PER_GROUP,
        write_page_checksum=True,
        use_dictionary=False,
        # stores the k-th bytes of all numbers together: high bytes resemble each other, so that zstd packs them better
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in arrays},
    )


def read(file: BinaryIO, fields: dict[str, str], where: str) -> list[dict]:
    """Returns the shard's records in order, with the named `fields` (all, or some of them); arrays are numpy arrays.

    Raises PipelineError, beginning with `where`, on a damaged or foreign file, and on one that would take more memory than
    any shard does.
    """
    try:
        cost = decoding_cost(file, set(fields))
        batch_rows = _batch_rows(cost)
        # Without page_checksum_verification a flipped byte is read silently.
        shard = pq.ParquetFile(file, page_checksum_verification=True)
        found = [field for field in shard.schema_arrow if field.name in fields]
        if pa.schema(sorted(found, key=lambda field: list(fields).index(field.name))) != arrow_schema(fields):
            names = shard.schema_arrow.names
            raise PipelineError(f"{where}: columns {names}, expected {list(fields)}: not a shard of this kind")
        rows = list(_rows(shard, fields, batch_rows))
        if len(rows) != cost.rows:  # batches end with the shortest column
            raise ValueError(f"columns of {len(rows)} rows, expected {cost.rows}")
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        if isinstance(error, PipelineError):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise PipelineError(f"{where}: not a readable Parquet shard ({reason})") from None
    return [check_record(row, fields, where) for row in rows]


def _batch_rows(cost: Cost) -> int:
    """Returns how many rows to decode at once. Raises ValueError where the file would take too much memory.

    A page's size does not bound its strings: all rows may refer to one long string in a dictionary. Therefore a batch has so
    few rows that it fits even if each row holds the longest string, at Python's four bytes per character.
    """
    if cost.rows > READ_RECORDS or cost.bytes > READ_BYTES:
        raise ValueError(
            f"{cost.rows} rows, for which {cost.bytes} bytes are needed; expected at most {READ_RECORDS} and {READ_BYTES}"
        )
    return max(1, min(ROWS_PER_GROUP, READ_BYTES // (4 * cost.longest + 1)))


def _rows(shard: pq.ParquetFile, fields: dict[str, str], batch_rows: int) -> Iterator[dict]:
    decoded = 0
    for batch in shard.iter_batches(batch_rows, columns=list(fields)):
        columns = {name: batch.column(name) for name in fields}
        decoded += sum(column.nbytes * (4 if fields[name].startswith("str") else 1) for name, column in columns.items())
        if decoded > READ_BYTES:
            raise ValueError(f"its columns decode to more than {READ_BYTES} bytes")
        values = [_values(column, array_dtype(fields[name])) for name, column in columns.items()]
        yield from (dict(zip(fields, row, strict=True)) for row in zip(*values, strict=True))


def _values(column: pa.Array, dtype: np.dtype | None) -> list:
    if dtype is None:
        return column.to_pylist()
    flat, offsets = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
    return [flat[start:end] for start, end in zip(offsets[:-1], offsets[1:], strict=True)]
