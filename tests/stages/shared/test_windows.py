"""Where long recordings are cut, and where two windows overlap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.shared.audio import SAMPLE_RATE
from stages.shared.windows import Window, cut_at_pauses

RATE = SAMPLE_RATE


def speech(seconds: float, pauses: list[float], offset: float = 0.0) -> np.ndarray:
    """Noise with a silence of 0.2 s around each of `pauses`."""
    samples = np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    for pause in pauses:
        samples[round((pause - 0.1) * RATE) : round((pause + 0.1) * RATE)] = 0
    return samples + np.float32(offset)


def cut(samples: np.ndarray, seconds: float, parts: int = 1) -> list[Window]:
    return list(cut_at_pauses(np.array_split(samples, parts), seconds))


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_cuts_lie_in_the_planted_pauses(offset):
    """Also where a constant offset of the recorder makes the pauses loud."""
    windows = cut(speech(12, [1.0, 4.3, 8.5], offset), 5)
    assert [window.start / RATE for window in windows] == pytest.approx([0, 4.3, 8.5], abs=0.06)
    assert not any(window.overlaps for window in windows)


def test_without_a_pause_two_windows_share_a_second():
    first, second, third = cut(speech(12, [4.3]), 5)
    assert (first.after, second.before) == (0, 0)  # the pause
    assert second.after == third.before == RATE
    assert third.start == second.start + len(second.samples) - RATE


def test_a_short_window_shares_a_fourth_at_most():
    windows = cut(speech(7, []), 2)
    assert {window.after for window in windows[:-1]} == {RATE // 2}


def test_a_faint_hum_is_a_pause():
    """Nothing is heard in it, and no louder sound around it makes that plain."""
    hum = 0.0005 * np.sin(np.arange(12 * RATE) / 50).astype(np.float32)
    assert not any(window.overlaps for window in cut(hum, 5))


def test_a_little_over_one_window_is_shared_between_two():
    first, second = cut(speech(7.15, []), 7)
    assert min(len(first.samples), len(second.samples)) > 1.5 * RATE


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 60_000),
    st.integers(1, 5),
    st.sampled_from([0.5, 1, 2]),
    st.lists(st.floats(0, 4), max_size=3),
)
def test_nothing_is_lost_or_too_long(length, parts, seconds, pauses):
    samples = speech(length / RATE, [pause for pause in pauses if 0.1 < pause < length / RATE])
    windows = cut(samples, seconds, parts)
    assert all(0 < len(window.samples) <= seconds * RATE for window in windows)
    own = [window.samples[window.before :] for window in windows]
    assert np.array_equal(np.concatenate([np.zeros(0, np.float32), *own]), samples)
    assert [window.start for window in windows] == [
        sum(map(len, own[:number])) - window.before for number, window in enumerate(windows)
    ]
    assert [window.after for window in windows[:-1]] == [window.before for window in windows[1:]]
    whole = cut(samples, seconds)  # the same, however the recording comes
    assert [(one.start, len(one.samples)) for one in windows] == [(one.start, len(one.samples)) for one in whole]


def test_one_window_is_left_whole():
    assert [len(window.samples) for window in cut(speech(7, [3]), 7)] == [7 * RATE]
