"""Shards as Parquet: zstd, plain typed columns, page checksums."""

from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.errors import PipelineError
from cache.records import array_dtype, check_record

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
    """Writes `records`; the bytes depend on nothing but them and the pyarrow version."""
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
        # the bytes of numbers apart: high ones resemble each other, and zstd finds them side by side
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in arrays},
    )


def read(file: BinaryIO, fields: dict[str, str], where: str) -> list[dict]:
    """The shard's records in order, with the named `fields` (all, or some of them); arrays as numpy.

    Raises PipelineError, which begins with `where`, on a damaged or foreign file.
    """
    try:
        # Without page_checksum_verification a flipped byte is read in silence.
        table = pq.ParquetFile(file, page_checksum_verification=True).read(columns=list(fields))
        names, expected = table.schema.names, table.schema.equals(arrow_schema(fields))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{where}: not a readable Parquet shard ({str(error).splitlines()[0]})") from None
    if not expected:
        raise PipelineError(f"{where}: columns {names}, expected {list(fields)}: not a shard of this kind")
    columns = {name: _values(table.column(name), array_dtype(kind)) for name, kind in fields.items()}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [check_record(row, fields, where) for row in rows]


def _values(column: pa.ChunkedArray, dtype: np.dtype | None) -> list:
    if dtype is None:
        return column.to_pylist()
    array = column.combine_chunks()
    flat, offsets = array.values.to_numpy(zero_copy_only=False), array.offsets.to_numpy()
    return [flat[start:end] for start, end in zip(offsets[:-1], offsets[1:], strict=True)]
