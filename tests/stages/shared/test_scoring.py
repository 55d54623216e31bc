import time

import jiwer
import numpy as np
import pytest

from cache.errors import PipelineError
from stages.shared.scoring import RATES, Stretch, alignment, interval, normalise, paired_interval, score, totals

CZECH = [
    ("Příliš žluťoučký kůň úpěl ďábelské ódy.", "příliš žluťoučký kůň pěl ďábelské"),
    ("Co to tam je?", "co to je za to"),
    ("Aha!", ""),
    ("To je [smích] ale ryba.", "To je ale ryba"),
]


def rows_of(pairs, language="cs"):
    return [
        {"id": f"u{i}", **score(reference, hypothesis, language)} for i, (reference, hypothesis) in enumerate(pairs)
    ]


def counts(errors, words, ids=None):
    """Rows with planted counts for `wer`."""
    ids = ids or [f"u{i}" for i in range(len(words))]
    return [{"id": i, "word_errors": int(e), "words": int(w)} for i, e, w in zip(ids, errors, words, strict=True)]


def test_score_of_a_planted_utterance():
    row = score("Jedna dvě  tři čtyři.", "jedna dva tři\nnavíc pět", "cs")
    assert (row["words"], row["word_errors"]) == (4, 3)
    assert (row["hits"], row["substitutions"], row["deletions"], row["insertions"]) == (2, 2, 0, 1)
    assert (row["raw_words"], row["raw_word_errors"]) == (4, 4)  # "Jedna" differs in case, "čtyři." in its stop
    assert row["raw_characters"] == len("Jedna dvě tři čtyři.")
    assert score("a b", "a b", "cs")["character_errors"] == 0


def test_the_alignment_is_the_one_that_is_counted():
    assert alignment("Jedna dvě  tři čtyři.", "jedna dva tři\nnavíc pět", "cs") == [
        Stretch("equal", ["jedna"], ["jedna"]),
        Stretch("substitute", ["dvě"], ["dva"]),
        Stretch("equal", ["tři"], ["tři"]),
        Stretch("insert", [], ["navíc"]),
        Stretch("substitute", ["čtyři"], ["pět"]),
    ]
    for reference, hypothesis in CZECH:
        found = alignment(reference, hypothesis, "cs")
        wrong = [max(len(s.reference), len(s.hypothesis)) for s in found if s.operation != "equal"]
        assert sum(wrong) == score(reference, hypothesis, "cs")["word_errors"]


@pytest.mark.parametrize("reference", ["", "...", "[hudba]"])
def test_empty_reference_counts_insertions(reference):
    row = score(reference, "dvě slova", "cs")
    assert (row["words"], row["word_errors"], row["insertions"]) == (0, 2, 2)
    assert (row["characters"], row["character_errors"]) == (0, 9)
    assert score(reference, "", "cs")["word_errors"] == 0


def test_clusters_are_not_helped_by_spaces_between_them():
    row = score("กขคง", "กขคจ", "th")
    assert (row["words"], row["word_errors"]) == (4, 1)
    assert (row["characters"], row["character_errors"]) == (4, 1)
    assert (row["basic_words"], row["basic_word_errors"]) == (4, 1)
    assert (row["basic_characters"], row["basic_character_errors"]) == (4, 1)


@pytest.mark.parametrize("language", ["cs", "ca"])
def test_totals_are_jiwers_corpus_rates(language):
    rows = rows_of(CZECH, language)
    references = [normalise(reference, language) for reference, _ in CZECH]
    hypotheses = [normalise(hypothesis, language) for _, hypothesis in CZECH]
    found = totals(rows)
    words = jiwer.process_words(references, hypotheses)
    assert found["wer"] == pytest.approx(words.wer)
    assert [found[name] for name in ("hits", "substitutions", "deletions", "insertions")] == [
        words.hits, words.substitutions, words.deletions, words.insertions]  # fmt: skip
    assert found["utterances"] == 4
    assert found["cer"] == pytest.approx(jiwer.cer(references, hypotheses))
    assert found["raw_wer"] == pytest.approx(jiwer.wer(*map(list, zip(*CZECH, strict=True))))


def test_nothing_to_score_is_refused():
    for rows in ([], rows_of([("...", "slovo")])):
        with pytest.raises(PipelineError, match="check the test"):
            totals(rows)
        with pytest.raises(PipelineError, match="check the test"):
            interval(rows)


def test_interval_covers_the_true_rate_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        words = random.integers(2, 14, 150)
        low, high = interval(counts(random.binomial(words, 0.4), words), resamples=500, seed=trial)
        covered += low <= 0.4 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_interval_is_repeatable_and_holds_the_rate():
    rows = rows_of(CZECH * 10)
    assert interval(rows, seed=3) == interval(rows, seed=3) != interval(rows, seed=4)
    for rate in RATES:
        low, high = interval(rows, rate)
        assert low < totals(rows)[rate] < high


def test_draws_without_words_are_left_out():
    low, high = interval(counts([1, 0], [2, 0]), resamples=200)
    assert (low, high) == (0.5, 0.5)


def test_pairing_is_by_id_and_narrower_than_two_intervals():
    random = np.random.default_rng(2)
    words = random.integers(4, 14, 400)
    errors = random.binomial(words, random.uniform(0.1, 0.9, 400))  # utterances differ much, systems little
    worse = np.minimum(words, errors + (random.random(400) < 0.3))
    a, b = counts(worse, words), counts(errors, words)
    difference, low, high = paired_interval(a, b)
    assert difference == pytest.approx((worse.sum() - errors.sum()) / words.sum())
    assert 0 < low < difference < high
    assert high - low < 0.5 * np.ptp(interval(a))
    assert paired_interval(a, b[::-1]) == (difference, low, high)
    assert paired_interval(a, a) == (0.0, 0.0, 0.0)


def test_pairing_refuses_what_is_not_the_same_test():
    a = counts([1, 2], [4, 4])
    with pytest.raises(PipelineError, match="1 only in the first, 1 only in the second.*'u1'"):
        paired_interval(a, counts([1, 2], [4, 4], ["u0", "other"]))
    with pytest.raises(PipelineError, match="'u1' has 4 words in the first, 5 in the second"):
        paired_interval(a, counts([1, 2], [4, 5]))
    with pytest.raises(PipelineError, match="'u0' occurs more than once"):
        paired_interval(a, counts([1, 2], [4, 4], ["u0", "u0"]))


def test_a_large_test_set_stays_cheap():
    random = np.random.default_rng(0)
    words = random.integers(1, 20, 20_000)
    started = time.perf_counter()
    low, high = interval(counts(random.binomial(words, 0.3), words), resamples=400)
    assert 0.29 < low < high < 0.31
    assert time.perf_counter() - started < 5
