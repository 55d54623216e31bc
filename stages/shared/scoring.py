"""Word and character error rates, and their confidence intervals."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jiwer
import numpy as np

from cache.errors import PipelineError
from stages.shared.normaliser import NORMALISER, basic, basic_characters, characters, normalise, words

__all__ = [
    "NORMALISER",
    "RATES",
    "Row",
    "Stretch",
    "alignment",
    "interval",
    "normalise",
    "paired_interval",
    "score",
    "totals",
]

RATES = {  # rate: its columns, (errors, reference length)
    "wer": ("word_errors", "words"),
    "cer": ("character_errors", "characters"),
    "basic_wer": ("basic_word_errors", "basic_words"),
    "basic_cer": ("basic_character_errors", "basic_characters"),
    "raw_wer": ("raw_word_errors", "raw_words"),
    "raw_cer": ("raw_character_errors", "raw_characters"),
}
OPERATIONS = ("hits", "substitutions", "deletions", "insertions")
# Shapes are written out: (columns, utterances) and (columns, resamples)

CHUNK = 2_000_000  # drawn utterances held at once: 8 MB of indices and 16 MB per gathered column

Row = dict[str, Any]


@dataclass(frozen=True)
class Stretch:
    """Neighbouring words of an alignment with the same operation: equal, substitute, delete or insert.

    Of a substitution, both sides have as many words; the reference of an insertion is empty, the hypothesis of a deletion.
    """

    operation: str
    reference: list[str]
    hypothesis: list[str]


def score(reference: str, hypothesis: str, language: str) -> dict[str, int]:
    """Returns one utterance's counts. With an empty reference each word of the hypothesis is an insertion.

    Counts are made three times: with the default normaliser, with Whisper's basic one (`basic_`) and of the texts as written
    (`raw_`). In a script without spaces between words, "words" are grapheme clusters with the default normaliser, and letters
    with the basic one if it splits the script.
    """
    texts = reference, hypothesis
    default = [normalise(text, language) for text in texts]
    units = _units(default, language)
    plain = [basic(text, language) for text in texts]
    written = [" ".join(text.split()) for text in texts]
    return {
        **_counts(units, [characters(text, language) for text in default]),
        **{operation: getattr(units, operation) for operation in OPERATIONS},
        **_counts(_words(plain), [basic_characters(text, language) for text in plain], "basic_"),
        **_counts(_words(written), written, "raw_"),
    }


def alignment(reference: str, hypothesis: str, language: str) -> list[Stretch]:
    """Returns the alignment by which `score` counts with the default normaliser, from left to right."""
    output = _units([normalise(text, language) for text in (reference, hypothesis)], language)
    (theirs,), (ours,), (chunks,) = output.references, output.hypotheses, output.alignments
    return [
        Stretch(
            chunk.type,
            theirs[chunk.ref_start_idx : chunk.ref_end_idx],
            ours[chunk.hyp_start_idx : chunk.hyp_end_idx],
        )
        for chunk in chunks
    ]


def _units(normalised: list[str], language: str) -> jiwer.WordOutput:
    return _words([" ".join(words(text, language)) for text in normalised])


def _words(texts: list[str]) -> jiwer.WordOutput:
    reference, hypothesis = texts
    return jiwer.process_words(reference, hypothesis)


def _counts(words: jiwer.WordOutput, texts: list[str], prefix: str = "") -> dict[str, int]:
    """texts: the reference and the hypothesis in the form whose characters are counted."""
    reference, hypothesis = texts
    characters = jiwer.process_characters(reference, hypothesis)
    return {
        f"{prefix}words": _length(words),
        f"{prefix}word_errors": _errors(words),
        f"{prefix}characters": _length(characters),
        f"{prefix}character_errors": _errors(characters),
    }


def _length(output: jiwer.WordOutput | jiwer.CharacterOutput) -> int:
    return output.hits + output.substitutions + output.deletions


def _errors(output: jiwer.WordOutput | jiwer.CharacterOutput) -> int:
    return output.substitutions + output.deletions + output.insertions


def totals(rows: list[Row]) -> dict[str, Any]:
    """Returns the counts summed over utterances, and rates as fractions: summed errors divided by summed lengths.

    A rate is None where its normaliser leaves nothing of any reference. Raises PipelineError where no reference has a word.
    """
    _require_words(rows)
    counts = {name: sum(row[name] for row in rows) for name in ("words", "characters", *OPERATIONS)}
    rates: dict[str, float | None] = {}
    for rate, (errors, reference_length) in RATES.items():
        length = sum(row[reference_length] for row in rows)
        rates[rate] = sum(row[errors] for row in rows) / length if length else None
    return {"utterances": len(rows), **counts, **rates}


def _require_words(rows: list[Row]) -> None:
    if not rows:
        raise PipelineError("no utterances to score, expected at least one; check the test split")
    if not sum(row["words"] for row in rows):
        raise PipelineError(f"the {len(rows)} references hold no words after normalisation; check the test transcripts")


def interval(rows: list[Row], rate: str = "wer", resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Returns (low, high), fractions: the 95 % percentile bootstrap of a pooled rate, with utterances taken as independent."""
    _require_words(rows)
    errors, lengths = _columns(rows, rate)
    draws = _resample(np.stack([errors, lengths]), resamples, seed)
    return _middle_95(_rate(draws[0], draws[1]))


def paired_interval(
    rows_a: list[Row], rows_b: list[Row], rate: str = "wer", resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Returns (rate(a) - rate(b), low, high), fractions. Both systems see the same resampled utterances.

    Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.
    Raises PipelineError unless both hold the same utterances (in any order) with references of the same length.
    """
    _require_words(rows_a)
    rows_b = _matched(rows_a, rows_b, RATES[rate][1])
    (errors_a, lengths), (errors_b, _) = _columns(rows_a, rate), _columns(rows_b, rate)
    draws = _resample(np.stack([errors_a - errors_b, lengths]), resamples, seed)
    difference = float((errors_a - errors_b).sum() / lengths.sum())
    return difference, *_middle_95(_rate(draws[0], draws[1]))


def _matched(rows_a: list[Row], rows_b: list[Row], length: str) -> list[Row]:
    """Returns `rows_b` in the order of `rows_a`."""
    a, b = _by_id(rows_a), _by_id(rows_b)
    if a.keys() != b.keys():
        only_a, only_b = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
        raise PipelineError(
            f"paired comparison needs the same utterances: {len(only_a)} only in the first, {len(only_b)} only in the "
            f"second (such as {(only_a + only_b)[0]!r}); evaluate both systems on the same test split"
        )
    if uneven := next((key for key in a if a[key][length] != b[key][length]), None):
        raise PipelineError(
            f"paired comparison needs the same references: utterance {uneven!r} has {a[uneven][length]} {length} in the "
            f"first, {b[uneven][length]} in the second; evaluate both systems on the same test split"
        )
    return [b[key] for key in a]


def _by_id(rows: list[Row]) -> dict[str, Row]:
    if len(by_id := {row["id"]: row for row in rows}) < len(rows):
        twice = Counter(row["id"] for row in rows).most_common(1)[0][0]
        raise PipelineError(f"paired comparison needs distinct utterances: id {twice!r} occurs more than once")
    return by_id


def _columns(rows: list[Row], rate: str) -> tuple[np.ndarray, np.ndarray]:
    errors, lengths = ([row[name] for row in rows] for name in RATES[rate])
    return np.asarray(errors, np.float64), np.asarray(lengths, np.float64)


def _resample(columns: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Turns (columns, utterances) into (columns, resamples): each column's sums over utterances drawn with replacement."""
    return np.concatenate(list(_resample_chunks(columns, resamples, seed)), axis=1)


def _resample_chunks(columns: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    utterances = columns.shape[1]
    chunk = max(1, CHUNK // utterances)
    for start in range(0, resamples, chunk):
        drawn = random.integers(0, utterances, (min(chunk, resamples - start), utterances), dtype=np.int32)
        yield np.stack([column[drawn].sum(axis=1) for column in columns])


def _rate(errors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the rates of the draws. A draw of empty references only has no rate and is left out; tiny sets have some."""
    return errors[lengths > 0] / lengths[lengths > 0]


def _middle_95(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
