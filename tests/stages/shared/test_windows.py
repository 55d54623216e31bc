"""Where long recordings are cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.shared.audio import SAMPLE_RATE, cut_at_pauses

RATE = SAMPLE_RATE


def speech(seconds: float, pauses: list[float]) -> np.ndarray:
    """Noise with a silence of 0.2 s around each of `pauses`."""
    samples = np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    for pause in pauses:
        samples[round((pause - 0.1) * RATE) : round((pause + 0.1) * RATE)] = 0
    return samples


def test_cuts_lie_in_the_planted_pauses():
    ends = np.cumsum([len(window) for window in cut_at_pauses([speech(12, [1.0, 4.3, 8.5])], 5)]) / RATE
    assert ends[:-1] == pytest.approx([4.3, 8.5], abs=0.06)


def test_a_little_over_one_window_is_shared_between_two():
    first, second = cut_at_pauses([speech(7.15, [])], 7)
    assert min(len(first), len(second)) > 1.5 * RATE


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60_000), st.integers(1, 5), st.sampled_from([0.5, 1, 2]))
def test_nothing_is_lost_or_too_long(length, parts, seconds):
    samples = np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32)
    windows = list(cut_at_pauses(np.array_split(samples, parts), seconds))
    assert all(0 < len(window) <= seconds * RATE for window in windows)
    assert np.array_equal(np.concatenate([np.zeros(0, np.float32), *windows]), samples)


def test_one_window_is_left_whole():
    assert [len(window) for window in cut_at_pauses([speech(7, [3])], 7)] == [7 * RATE]
