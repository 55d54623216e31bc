"""Where a model computes, and in which number format: device, dtype, threads and memory."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import WhisperForConditionalGeneration

from cache.errors import PipelineError


def compute_dtype(name: str, device: torch.device, training: bool = False) -> torch.dtype:
    """'auto' -> bfloat16 where the processor has instructions for it; else float16 on a GPU, but float32 where one trains,
    as float16's small range loses gradients; else float32. The others as they say.
    """
    if name != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    if device.type == "cuda":
        # torch emulates bf16 on any card and any CPU, slower than fp32
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float32 if training else torch.float16
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()  # AVX512_BF16 or AMX
    return torch.bfloat16 if native else torch.float32


def choose_device(name: str) -> torch.device:
    """'auto' -> cuda where there is one, else cpu. Raises PipelineError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PipelineError(
            f"device '{name}' cannot be used ({str(error).splitlines()[0]}): give auto, cpu or cuda"
        ) from None
    return device


def use_all_cores() -> None:
    """Uses the cores this process may run on (torch counts the machine's)."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@contextmanager
def fast_products(dtype: torch.dtype) -> Iterator[None]:
    """While `dtype` is of 16 bits, float32 products round their factors to as many bits; their sums and results stay float32.

    A GPU's TF32 has float16's bits. A CPU has nothing for float16.
    """
    backends: tuple[Any, ...] = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    wanted = {torch.bfloat16: ["bf16", "tf32"], torch.float16: [before[0], "tf32"]}.get(dtype, before)
    try:
        for backend, precision in zip(backends, wanted, strict=True):
            backend.fp32_precision = precision
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def round_weights(model: WhisperForConditionalGeneration, dtype: torch.dtype) -> None:
    """Keeps the weights of products in `dtype`, in place, but for those being trained: the values that autocast would make.

    Autocast makes them anew for every call of a weight that takes no gradient: with experts, for every token decoded. The
    token embeddings stay as they are; the output projection, which shares their values, gets its own.
    """
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for module in model.modules():
        products = isinstance(module, torch.nn.Linear | torch.nn.Conv1d)
        if products and dtype != torch.float32 and not trained.intersection(module.parameters(recurse=False)):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(parameter.to(dtype), requires_grad=False))


def keep_freed_memory() -> None:
    """Lets glibc reuse the memory of large tensors: given back and faulted in anew each step it costs a tenth of the time."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap, too
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes
    mallopt(-2, 1 << 28)  # M_TOP_PAD, bytes
