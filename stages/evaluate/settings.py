"""Settings of decoding a split."""

from typing import Literal

from pydantic import Field

from stages.shared.settings import Settings


class EvaluateSettings(Settings):
    batch_size: int = Field(16, ge=1)
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    cut_loops: bool = Field(
        True,
        description="end a text that repeats itself after one copy of the repeated part; false: as in the literature",
    )
