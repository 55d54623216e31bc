"""What `params.yaml` can say about a language's corpus and about its preparation."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from cache import storage
from cache.formats import Format
from cache.storage import AnyPath


def _path(value: Any) -> AnyPath:
    if not isinstance(value, (str, Path, storage.RemotePath)):
        raise ValueError("Input is not a path or a URL")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError("a name that is not UTF-8: rename it, or give a link to it") from None
    return storage.path(value)


PathOrUrl = Annotated[AnyPath, PlainValidator(_path), PlainSerializer(str, when_used="json")]


def _local(value: Any) -> Any:
    if isinstance(value, str) and "://" in value:
        raise ValueError("a URL, expected a folder of this machine: copy it here first")
    return _home(value)


def _home(value: Any) -> Any:
    return str(storage.home(value)) if isinstance(value, str) and value.startswith("~") else value


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PrepareSettings(Settings):
    shard_rows: int = Field(default=512, ge=1)  # items of the corpus per shard; what is left out makes a shard shorter
    min_seconds: float = Field(default=0.2, ge=0)
    # None switches a limit off.
    max_missing_seconds: float | None = Field(
        default=0.1, ge=0, description="leave out a file that ends this much before its own header says"
    )
    max_clipped: float | None = Field(
        default=0.1, ge=0, le=1, description="leave out a recording with more than this share of samples at full scale"
    )
    # The fastest talkers say eight to ten syllables a second, and no script takes more than five characters for the average
    # syllable (Burmese, Khmer; Latin letters two to three): beyond it the recording does not hold its whole text.
    max_characters_per_second: float | None = Field(
        default=50,
        gt=0,
        description="leave out what has more letters, marks and digits in a second than anyone can say",
    )
    untranscribed: bool = Field(
        default=False, description="keep training recordings without a text, for teacher_cache.targets 'pseudo'"
    )
    format: Format = "parquet"


class Shares(Settings):
    """For a corpus that may lack a test or a validation split: how much of training is drawn for it, 0: nothing."""

    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)

    @model_validator(mode="after")
    def _something_to_train_on(self) -> "Shares":
        if self.test_fraction + self.validation_fraction > 0.5:
            raise ValueError("test_fraction and validation_fraction leave too little to train on: at most 0.5 together")
        return self

    @property
    def shares(self) -> dict[str, float]:
        return {"test": self.test_fraction, "validation": self.validation_fraction}


class FishFilletsSettings(Settings):
    """Czech or Dutch lines of the game Fish Fillets NG (GPL-2), from Debian's packages."""

    corpus: Literal["fish-fillets"]
    path: Annotated[Path | None, BeforeValidator(_local)] = (
        None  # the game's data, extracted; None: fetched with apt-get
    )

    @property
    def name(self) -> str:
        return self.corpus


class CommonVoiceSettings(Shares):
    """A Common Voice release as downloaded and extracted, of read sentences or of spontaneous speech."""

    corpus: Literal["common-voice"]
    # The folder with train.tsv, dev.tsv, test.tsv (or validated.tsv alone) and clips/, or with ss-corpus-LANG.tsv and
    # audios/; or the one above it.
    path: PathOrUrl
    subset: Literal["3k", "10k", "28k"] | None = None  # train utterances, the most up-voted (arXiv 2311.01070)
    max_validation: int = Field(default=500, ge=1)

    @property
    def name(self) -> str:
        return self.corpus


class FleursSettings(Shares):
    """FLEURS, as released (path) or from the hub (no path)."""

    corpus: Literal["fleurs"]
    path: PathOrUrl | None = None  # the folder with train.tsv, dev.tsv, test.tsv and the audio, or the one above it
    text: Literal["raw_transcription", "transcription"] = "raw_transcription"

    @property
    def name(self) -> str:
        return self.corpus


class DatasetSettings(Shares):
    """Any dataset that the `datasets` library loads: a repository of the hub, or a folder."""

    corpus: Literal["dataset"]
    path: Annotated[str, BeforeValidator(_home)]
    config: str | None = None
    revision: str | None = None
    audio_column: str = "audio"
    text_column: str = "text"
    speaker_column: str | None = None
    splits: dict[Literal["train", "validation", "test"], str] | None = None  # ours: theirs; None: the usual names

    @property
    def name(self) -> str:
        return _slug(Path(self.path).name)


class ManifestSettings(Shares):
    """A CSV, TSV or JSON lines file with `path` and `text`, and where known `speaker`, `split` and `id`."""

    corpus: Literal["manifest"]
    path: PathOrUrl
    columns: dict[Literal["path", "text", "speaker", "split", "id"], str] = {}  # ours: the file's, where it differs

    @property
    def name(self) -> str:
        return _slug(self.path.stem)


def _slug(text: str) -> str:
    """`text` as part of a file name; '@' and '/' have a meaning there."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "corpus"


CorpusSettings = Annotated[
    FishFilletsSettings | CommonVoiceSettings | FleursSettings | DatasetSettings | ManifestSettings,
    Field(discriminator="corpus"),
]
