"""Arrays in numpy's own format, read without trust: no pickle, and no memory but what the data itself takes."""

import io
import tokenize

import numpy as np


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_npy(data: bytes) -> np.ndarray:
    """A flat array. Raises ValueError where the data is no such thing, or not as long as its header says."""
    buffer = io.BytesIO(data)
    if np.lib.format.read_magic(buffer) != (1, 0):
        raise ValueError("not an npy file of version 1.0")
    try:
        shape, _, dtype = np.lib.format.read_array_header_1_0(buffer)
    except (tokenize.TokenError, RecursionError, MemoryError) as error:  # numpy tries to parse whatever stands there
        raise ValueError(f"a header that is no description of an array ({type(error).__name__})") from None
    if len(shape) != 1 or dtype.hasobject:
        raise ValueError(f"an array of shape {shape} and type {dtype}, expected a flat one of numbers")
    body = data[buffer.tell() :]
    if len(body) != shape[0] * dtype.itemsize:
        raise ValueError(f"{len(body)} bytes for {shape[0]} items of {dtype}")
    return np.frombuffer(body, dtype)
