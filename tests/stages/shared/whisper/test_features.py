"""Log-mel of the real part of a clip against transformers' extractor over the whole window."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from stages.shared.audio import SAMPLE_RATE
from stages.shared.whisper.features import LogMel

WINDOW = 2  # seconds
FULL = WINDOW * SAMPLE_RATE
OURS = {mels: LogMel(mels, WINDOW) for mels in (80, 128)}
STOCK = {mels: WhisperFeatureExtractor(feature_size=mels, chunk_length=WINDOW) for mels in (80, 128)}
EDGES = [1, 2, 159, 160, 161, *range(199, 402), 560, FULL // 2]
EDGES += [FULL - less for less in (0, 1, 39, 40, 41, 42, 119, 120, 159, 160, 161, 199, 200, 201, 202, 360, 361)]


def noise(length: int, loudness: float, seed: int = 0) -> np.ndarray:
    return (loudness * np.random.default_rng(seed).standard_normal(length)).astype(np.float32)


def loud_then_quiet(length: int, loudness: float, seed: int = 0) -> np.ndarray:
    """A tone that falls by 12 decades of power: through the floor, so that both sides of it are seen."""
    decay = np.logspace(0, -6, length) if length else np.zeros(0)
    tone = np.sin(np.arange(length) * (0.05 + 0.01 * (seed % 100)))
    return (loudness * decay * tone).astype(np.float32) + noise(length, loudness * 1e-5, seed)


def clips(lengths: st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    loudness = st.sampled_from([0.0, 1e-12, 1e-7, 1e-4, 0.01, 0.3, 1.0])
    made = st.tuples(st.sampled_from([noise, loud_then_quiet]), lengths, loudness, st.integers(0, 1000))
    return made.map(lambda parts: parts[0](*parts[1:]))


def stock(batch: list[np.ndarray], mels: int) -> torch.Tensor:
    return STOCK[mels](batch, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]


def assert_same(batch: list[np.ndarray], mels: int) -> None:
    ours = OURS[mels](batch)
    assert (ours.shape, ours.dtype) == ((len(batch), mels, 100 * WINDOW), torch.float32)
    torch.testing.assert_close(ours, stock(batch, mels), rtol=0, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.lists(clips(st.integers(0, FULL)), min_size=1, max_size=4), st.sampled_from([80, 128]))
@example([noise(0, 1.0)], 80)
@example([noise(0, 1.0), noise(FULL, 1.0)], 128)
def test_values_are_the_extractors(batch, mels):
    assert_same(batch, mels)


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("make", [noise, loud_then_quiet])
def test_values_are_the_extractors_at_every_edge(mels, make):
    for loudness in (1.0, 1e-3):
        assert_same([make(length, loudness, length) for length in EDGES], mels)


@pytest.mark.parametrize("length", [1, 160, 4 * SAMPLE_RATE, 30 * SAMPLE_RATE])
def test_values_are_the_extractors_in_a_window_of_30_s(length):
    clip = noise(length, 0.1)
    expected = WhisperFeatureExtractor()(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
    torch.testing.assert_close(LogMel(80, 30)([clip]), expected, rtol=0, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(clips(st.integers(0, FULL) | st.sampled_from(EDGES)), min_size=2, max_size=5))
def test_a_batch_is_bit_for_bit_its_clips(batch):
    assert torch.equal(OURS[80](batch), torch.cat([OURS[80]([clip]) for clip in batch]))


def test_threads_get_the_same_values():
    made = [[noise(length, 0.1, length), noise(FULL - length, 0.01, length)] for length in range(0, FULL, 500)]
    expected = [OURS[80](batch) for batch in made]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, expected, pool.map(OURS[80], made)))


def test_no_clips_make_an_empty_batch():
    assert OURS[80]([]).shape == (0, 80, 100 * WINDOW)
