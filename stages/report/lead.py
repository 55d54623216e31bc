"""The rate that a comparison goes by: words, or characters where a script has no spaces between words."""

from dataclasses import dataclass

from stages.report.results import Metrics
from stages.shared.whisper.languages import WITHOUT_SPACES


@dataclass(frozen=True)
class Lead:
    """A rate's names for readers, and those of the rate that stands beside it."""

    rate: str  # its field in metrics
    name: str
    unit: str
    lengths: str  # columns of the utterances' rows, and their plural for readers
    errors: str
    beside: str
    beside_name: str
    operations: str  # what substitutions, deletions and insertions are of
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
    return CHARACTERS if language in WITHOUT_SPACES else WORDS
