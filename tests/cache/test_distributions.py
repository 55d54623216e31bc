"""Stored probabilities against the formula of their scale, and what contradicts itself is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.distributions import check_distributions, quantise, stored_log_probs
from cache.errors import PipelineError

BITS = pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])


@BITS
def test_every_code_comes_back(bits):
    """And means (code / highest)^4."""
    codes = np.arange(1, 2**bits, dtype=np.uint8)
    stored = stored_log_probs(codes, bits)
    assert stored.dtype == np.float32
    np.testing.assert_allclose(np.exp(stored.astype(np.float64)), (codes / (2**bits - 1)) ** 4, rtol=1e-5)
    assert stored[-1] == 0
    again = quantise(np.exp(stored.astype(np.float64)), bits)
    assert again.dtype == np.uint8
    assert np.array_equal(again, codes)


@BITS
@given(st.data())
def test_no_probability_is_off_by_more_than_half_a_step(bits, data):
    """On the scale of p^(1/4); what is nearer to nothing than to the lowest code is stored as that."""
    probs = data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=20))
    exact = np.array(probs, np.float64) ** 0.25
    found = np.exp(stored_log_probs(quantise(np.array(probs), bits), bits).astype(np.float64)) ** 0.25
    step = 1 / (2**bits - 1)
    assert (np.abs(found - np.maximum(exact, step)) <= step / 2 + 1e-6).all()


def test_probabilities_in_float32_a_little_above_one_are_the_highest_code():
    assert quantise(np.array([1.0000001, 1.0, 0.0], np.float32), 8).tolist() == [255, 255, 1]


def record() -> dict:
    return {
        "targets": np.array([3, 9], np.uint16),
        "top_counts": np.array([2, 1], np.uint16),
        "top_ids": np.array([1, 2, 9], np.uint16),
        "top_probs": np.array([15, 1, 7], np.uint8),
        "tail_log_probs": np.array([-1, -np.inf], np.float32),
    }


NOTHING = {name: array[:0] for name, array in record().items()}
SETTINGS = {"vocab_size": 10, "bits": 4}


@pytest.mark.parametrize("good", [record(), NOTHING])
def test_what_agrees_is_accepted(good):
    check_distributions(good, SETTINGS, "here")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("top_counts", [2], "1 top_counts for 2 targets"),
        ("top_counts", [2, 2], "3 top_ids, top_counts sum to 4"),
        ("top_counts", [65535, 4], "3 top_ids, top_counts sum to 65539"),  # 3 in 16 bits
        ("tail_log_probs", [-1], "1 tail_log_probs for 2 targets"),
        ("top_ids", [1, 2], "2 top_ids, top_counts sum to 3"),
        ("top_probs", [15, 1], "2 top_probs for 3 top_ids"),
        ("top_ids", [1, 10, 9], "a token id of 10 or more"),
        ("targets", [3, 10], "a token id of 10 or more"),
        ("top_probs", [16, 1, 7], "a top_probs outside 1-15"),
        ("top_probs", [15, 0, 7], "a top_probs outside 1-15"),
        ("tail_log_probs", [-1, 0.01], "a tail_log_probs above 0 or not a number"),
        ("tail_log_probs", [-1, np.nan], "a tail_log_probs above 0 or not a number"),
    ],
)
def test_what_contradicts_itself_is_refused(name, value, text):
    changed = {**record(), name: np.array(value, record()[name].dtype)}
    with pytest.raises(PipelineError) as caught:
        check_distributions(changed, SETTINGS, "shard.tar, clip-1")
    assert str(caught.value).startswith("shard.tar, clip-1: ")
    assert text in str(caught.value)
