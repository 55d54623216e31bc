"""The leading rate of a comparison: of words, or of characters where a script has no spaces between words."""

from dataclasses import dataclass

from stages.shared.facts import Metrics
from stages.shared.whisper.languages import WITHOUT_SPACES, code_of


@dataclass(frozen=True)
class Lead:
    """The names of the leading rate, and of the second rate that is shown with it."""

    rate: str  # field in metrics
    name: str
    unit: str
    lengths: str  # column of the utterances' rows, and the plural of the unit for readers
    errors: str
    beside: str
    beside_name: str
    operations: str  # the units of substitutions, deletions and insertions
    validation: str

    def of(self, metrics: Metrics) -> float:
        return float(getattr(metrics, self.rate))


WORDS = Lead(
    "wer", "WER", "word", "words", "word_errors", "cer", "CER", "words", "Validation WER (%)"
)  # fmt: skip
CHARACTERS = Lead(
    "cer", "CER", "character", "characters", "character_errors", "wer", "Cluster error rate", "clusters",
    "Validation error rate of clusters (%)",
)  # fmt: skip


def lead_of(language: str) -> Lead:
    return CHARACTERS if code_of(language) in WITHOUT_SPACES else WORDS
