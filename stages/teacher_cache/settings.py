"""What a teacher cache depends on."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TeacherCacheSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: int = Field(64, ge=1, le=4096, description="tokens kept at each position; the rest is kept as one mass")
    batch_size: int = Field(16, ge=1)
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    format: Literal["parquet", "webdataset"] = "parquet"
