"""Chooses device and number format, and sets up threads and memory."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import WhisperForConditionalGeneration

from cache.errors import PipelineError


def compute_dtype(name: str, device: torch.device, training: bool = False) -> torch.dtype:
    """Returns the type for bf16, fp16, fp32 or auto.

    'auto' is bfloat16 where the processor has instructions for it. Otherwise it is float16 on a GPU, and float32 on a CPU
    or in training, where float16's small range loses gradients.
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
    """Returns the device `name`; 'auto' is cuda where there is one, else cpu. Raises PipelineError if it cannot be used."""
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
    """Lets torch use all cores that this process may run on. Torch's default counts the machine's cores."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@contextmanager
def fast_products(dtype: torch.dtype) -> Iterator[None]:
    """Rounds the factors of float32 products within the block, if `dtype` has 16 bits. Sums and results stay float32.

    bfloat16: bf16 on a CPU, TF32 on a GPU. float16: TF32 on a GPU, which has as many mantissa bits; a CPU has nothing.
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


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Lets equal work on a CPU give equal gradients within the block, on several threads too.

    Else threads add to the gradient of a decoder position in any order (torch's `index_put_`). A GPU is left as it is:
    there some operations have no deterministic form, and others are slower.
    """
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = memory.fill_uninitialized_memory
    try:
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True)
            memory.fill_uninitialized_memory = False  # all that is read here was written before
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


def round_weights(model: WhisperForConditionalGeneration, dtype: torch.dtype) -> None:
    """Casts the weights of Linear and Conv1d layers that are not trained to `dtype`, in place.

    Autocast would make the same values, but at every call, and so with experts for every decoded token. The token
    embeddings stay as they are. The output projection, which shares them, gets its own copy.
    Raises PipelineError where an earlier call has rounded them to another type: what they were before is lost.
    """
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for module in model.modules():
        products = isinstance(module, torch.nn.Linear | torch.nn.Conv1d)
        if products and module.weight.dtype not in (torch.float32, dtype):
            found, wanted = (str(one).removeprefix("torch.") for one in (module.weight.dtype, dtype))
            raise PipelineError(
                f"the model's weights were rounded to {found} when it was used: load it again for {wanted}"
            )
        if products and dtype != torch.float32 and not trained.intersection(module.parameters(recurse=False)):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(parameter.to(dtype), requires_grad=False))


def keep_freed_memory() -> None:
    """Lets glibc keep the memory of large tensors. Returning it and asking for it again in each step takes 10 % of the time."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(-4, 0)  # M_MMAP_MAX: large blocks also come from the heap
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes
    mallopt(-2, 1 << 28)  # M_TOP_PAD, bytes
