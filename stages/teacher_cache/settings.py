"""TeacherCacheSettings change the cache's content. ClusterSettings only say where it is computed."""

from typing import Literal

from pydantic import Field, model_validator

from cache.formats import Format
from stages.shared.settings import Settings


class TeacherCacheSettings(Settings):
    targets: Literal["reference", "pseudo", "mixed"] = Field(
        "reference",
        description="what is scored: reference: the transcript; pseudo: the teacher's own words, for speech without "
        "transcripts; mixed: the transcript where there is one, else the teacher's own words",
    )
    transcribed_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="mixed only: share of the transcripts that are used, in whole groups, those that train.train_fraction "
        "takes; the rest counts as speech without transcripts: it shows what such speech is worth",
    )
    transcribe: bool = Field(
        False,
        description="also where the targets are transcripts, keep the teacher's own: train.max_teacher_wer needs it",
    )
    top_p: float = Field(0.95, gt=0, le=1, description="at each position the fewest tokens that reach this mass ...")
    min_k: int = Field(8, ge=1, description="... but at least so many")
    top_k: int = Field(64, ge=1, le=4096, description="... and at most so many; the rest is kept as one mass")
    bits: int = Field(7, ge=4, le=8, description="of a stored probability")
    batch_size: int = Field(16, ge=1)
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    format: Format = "parquet"

    @property
    def effective_min_k(self) -> int:
        """The least number of kept tokens: min_k, but at most top_k."""
        return min(self.min_k, self.top_k)

    @property
    def transcribes(self) -> bool:
        """Whether the teacher transcribes audio itself, all of it or some."""
        return self.targets != "reference" or self.transcribe

    @model_validator(mode="after")
    def _fraction_of_mixed(self) -> "TeacherCacheSettings":
        if self.transcribed_fraction != 1 and self.targets != "mixed":
            raise ValueError(
                f"transcribed_fraction {self.transcribed_fraction} goes with targets 'mixed' alone, found '{self.targets}'"
            )
        return self


class ClusterSettings(Settings):
    """Not part of a cache's provenance: the shards are the same with any number of workers."""

    engine: Literal["local", "ray"] = Field("local", description="this process, or workers of a Ray cluster")
    workers: int | None = Field(None, ge=1, description="null: one for each GPU, or as many as the CPUs allow")
    cpus_per_worker: int | None = Field(
        None, ge=1, description="null: a GPU's share of its machine's cores, or the machine's, and at most 8"
    )
    address: str | None = Field(None, description="null: RAY_ADDRESS, or a cluster started here for this run")
