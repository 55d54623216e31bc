"""Flat arrays come back; whatever else is handed over is a ValueError, and takes no memory but its own."""

import io
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from cache.npy import npy_bytes, read_npy


@given(
    st_numpy.arrays(st.sampled_from(["uint8", "uint16", "int64", "float16", "float32", "float64"]), st.integers(0, 9))
)
def test_arrays_come_back(array):
    for found in (read_npy(npy_bytes(array)), np.load(io.BytesIO(npy_bytes(array)), allow_pickle=False)):
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


def saved(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version, allow_pickle=True)
    return buffer.getvalue()


def with_header(header: str, body: bytes = b"\0" * 8) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


GOOD = "{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }"


def test_a_header_written_by_hand_is_read():
    """What follows differs from it in one thing each."""
    assert read_npy(with_header(GOOD)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04" + b"\0" * 200,
        pickle.dumps([1, 2]),
        saved(np.array([1, "x"], object)),
        saved(np.arange(4), (2, 0)),
        saved(np.arange(4), (3, 0)),
        saved(np.zeros((2, 2))),
        saved(np.array(5.0)),
        saved(np.arange(4))[:-1],
        saved(np.arange(4)) + b"\0",
        saved(np.arange(4))[:60],
        with_header(GOOD.replace("(4,)", "(5,)")),
        with_header(GOOD.replace("(4,)", "(-4,)")),
        with_header(GOOD.replace("(4,)", "(10**12,)")),
        with_header(GOOD.replace("(4,)", "[4]")),
        with_header(GOOD.replace("(4,)", "4")),
        with_header(GOOD.replace("<u2", "|O")),
        with_header(GOOD.replace("<u2", "|V0"), b""),
        with_header(GOOD.replace("'<u2'", "[('a', '<u2'), ('b', '|O')]")),
        with_header(GOOD.replace("'<u2'", "'nonsense'")),
        with_header(GOOD.replace("'shape'", "'form'")),
        with_header("{"),
        with_header("'"),
        with_header("(" * 110),
        with_header("-" * 9000 + "1"),
        with_header("__import__('os').system('touch ran')"),
    ],
)
def test_what_is_no_flat_array_is_a_value_error(data):
    with pytest.raises(ValueError):
        read_npy(data)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 135), st.integers(1, 255))
def test_a_changed_byte_is_a_value_error_or_another_array_as_long(place, change):
    whole = bytearray(npy_bytes(np.arange(4, dtype=np.uint16)))
    whole[place] ^= change
    try:
        found = read_npy(bytes(whole))
    except ValueError:
        return
    assert found.ndim == 1
    assert found.nbytes == 8


def test_a_claimed_size_takes_no_memory():
    data = with_header(GOOD.replace("(4,)", f"({10**11},)"))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="8 bytes for 100000000000 items"):
            read_npy(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
