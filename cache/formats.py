"""The formats of shards, by the names that users give and manifests hold."""

from typing import Literal, get_args

Format = Literal["parquet", "webdataset"]
FORMATS: tuple[Format, ...] = get_args(Format)
