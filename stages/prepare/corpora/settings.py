"""What the settings of all corpora have in common."""

import re
from typing import Any

from pydantic import Field, model_validator

from cache import storage
from stages.shared.settings import Settings


class CorpusBase(Settings):
    """The settings of one corpus. Each corpus' own class lies beside its `read()`."""

    corpus: str

    @property
    def name(self) -> str:
        """Names the corpus in manifests, and in the names of files."""
        return self.corpus

    @classmethod
    def columns_as(cls, names: dict[str, str]) -> dict[str, Any] | None:
        """Returns the settings that give columns other names (ours: theirs). None: this corpus' columns have fixed names.

        Raises ValueError for a column that the corpus does not have.
        """
        return None


class SplitShares(CorpusBase):
    """For a corpus that may lack a test or a validation split: the share of training that is drawn for it. 0 draws none."""

    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)

    @model_validator(mode="after")
    def _something_to_train_on(self) -> "SplitShares":
        if self.test_fraction + self.validation_fraction > 0.5:
            raise ValueError("test_fraction and validation_fraction leave too little to train on: at most 0.5 together")
        return self

    @property
    def shares(self) -> dict[str, float]:
        return {"test": self.test_fraction, "validation": self.validation_fraction}


def as_file_name(text: str) -> str:
    """Returns `text` as part of a file name, without '@' and '/', which have a meaning there."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "corpus"


def expand_home(value: Any) -> Any:
    """Replaces a leading '~' by the user's home folder."""
    return str(storage.home(value)) if isinstance(value, str) and value.startswith("~") else value
