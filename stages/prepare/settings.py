"""The parameters of a language's corpus and of its preparation."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from cache.formats import Format
from stages.prepare.corpora import CORPORA, settings_class
from stages.prepare.corpora.settings import CorpusBase
from stages.shared.settings import Settings

if TYPE_CHECKING:
    CorpusSettings = CorpusBase
else:  # pydantic takes the class by the value of `corpus`
    CorpusSettings = Annotated[Union[tuple(map(settings_class, CORPORA))], Field(discriminator="corpus")]  # noqa: UP007


class PrepareSettings(Settings):
    shard_rows: int = Field(default=512, ge=1)  # items of the corpus per shard; what is left out makes a shard shorter
    min_seconds: float = Field(default=0.2, ge=0)
    # None switches a limit off.
    max_missing_seconds: float | None = Field(
        default=0.1, ge=0, description="leave out a file that is shorter by more than this than its own header says"
    )
    max_clipped: float | None = Field(
        default=0.1, ge=0, le=1, description="leave out a recording with more than this share of samples at full scale"
    )
    # The fastest talkers say eight to ten syllables a second, and no script takes more than five characters for the average
    # syllable (Burmese, Khmer; Latin letters two to three): beyond it the recording does not hold its whole text.
    max_characters_per_second: float | None = Field(
        default=50,
        gt=0,
        description="leave out a recording whose text has more letters, marks and digits per second than anyone can say",
    )
    untranscribed: bool = Field(
        default=False,
        description="keep training recordings without a text, for teacher_cache.targets 'mixed' or 'pseudo'",
    )
    format: Format = "parquet"
