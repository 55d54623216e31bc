"""An expert's tensors as they are stored: its values, or what it changed of the shared block in 8 bits or of low rank."""

from collections.abc import Mapping
from typing import Any, Literal

import torch

from cache.errors import PipelineError
from cache.progress import Progress, silent
from stages.shared.student.config import GATE_DIM

Precision = Literal["fp16", "fp32", "int8"]
Tensors = Mapping[str, torch.Tensor]
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # name -> shape and type
DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "int8": torch.int8}
LARGEST = 127  # int8, symmetric


def pack(
    state: Tensors,
    shared: Tensors,
    precision: Precision = "fp16",
    rank: int | None = None,
    progress: Progress[str] = silent,
) -> dict:
    """`state`, an expert with its gates, -> the tensors to store; `shared` has the frozen FFNs' under the experts' names.

    In fp16 and fp32 at full rank the values themselves are stored. Their rounding is relative to the weight instead of to
    what was changed of it, but it is that of the released Whisper weights, and such a file means the same whatever the
    frozen weights have been rounded to in the meantime. With int8 or a rank it is D = expert - shared of each FFN matrix:
    int8 codes with a float32 scale for each row, or the first `rank` components of D = U S V', as U and S V'.
    Biases and gates, a thirtieth of the expert, are stored as values, and in float16 where the rest is int8.

    Raises PipelineError where a value is beyond the precision, or where D would be from rounded weights.
    """
    check_choice(shared, precision, rank)
    stored: dict[str, torch.Tensor] = {}
    for done, (name, tensor) in enumerate(state.items()):
        progress(done, len(state), "")
        value = tensor.detach().float().cpu()
        if not _is_difference(name, precision, rank):
            stored[name] = value.to(DTYPES["fp16" if precision == "int8" else precision])
            continue
        if shared[name].dtype != torch.float32:
            raise PipelineError(
                f"the shared '{name}' has been rounded to {shared[name].dtype}: expected float32, to store the difference"
            )
        parts = _parts(value - shared[name].detach().cpu(), rank)
        stored |= {key: each for part, x in parts.items() for key, each in _coded(f"{name}.{part}", x, precision)}
    progress(len(state), len(state), "")
    if infinite := not_finite(stored):
        raise PipelineError(
            f"tensor '{infinite}' has values that are not finite in {precision}: expected a sound expert"
        )
    return stored


def unpack(tensors: Tensors, shared: Tensors, precision: Precision, rank: int | None, source: str) -> dict:
    """What `pack` stored -> the expert's state in float32. Raises PipelineError naming `source` and the first misfit."""
    try:
        wanted = layout(shared, precision, rank)
    except PipelineError as error:
        raise PipelineError(f"{source}: {error}") from None
    if fault := misfit(tensors, wanted):
        raise PipelineError(f"{source}: {fault}: made for another base model, or damaged")
    state = {}
    for name in expert_shapes(shared):
        if _is_difference(name, precision, rank):
            parts = [
                _decoded(f"{name}.{part}", tensors) for part in (("delta",) if rank is None else ("left", "right"))
            ]
            difference = parts[0] if rank is None else parts[0] @ parts[1]
            state[name] = shared[name].detach().float().cpu() + difference
        else:
            state[name] = tensors[name].float()
    if infinite := not_finite(state):
        raise PipelineError(f"{source}: tensor '{infinite}' has values that are not finite: damaged")
    return state


def layout(shared: Tensors, precision: Precision, rank: int | None) -> Layout:
    """Name, shape and type of each stored tensor. Raises PipelineError for a precision or a rank that cannot be."""
    check_choice(shared, precision, rank)
    wanted: Layout = {}
    for name, shape in expert_shapes(shared).items():
        if not _is_difference(name, precision, rank):
            wanted[name] = shape, DTYPES["fp16" if precision == "int8" else precision]
            continue
        rows, columns = shape
        shapes = {"delta": shape} if rank is None else {"left": (rows, rank), "right": (rank, columns)}
        for part, size in shapes.items():
            wanted[f"{name}.{part}"] = size, DTYPES[precision]
            if precision == "int8":
                wanted[f"{name}.{part}.scale"] = size[:1], torch.float32
    return wanted


def expert_shapes(shared: Tensors) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of an expert: those of the shared FFNs, and for each FFN a gate's W1, b1 and w2."""
    shapes = {name: tuple(tensor.shape) for name, tensor in shared.items()}
    for name, shape in list(shapes.items()):
        if name.endswith(".expert.fc1.weight"):
            gate = name.replace(".expert.fc1.weight", ".gate")
            inner = {f"{gate}.inner.weight": (GATE_DIM, shape[1]), f"{gate}.inner.bias": (GATE_DIM,)}
            shapes |= {**inner, f"{gate}.outer.weight": (1, GATE_DIM)}
    return shapes


def check_choice(shared: Tensors, precision: Any, rank: Any) -> None:
    """Raises PipelineError for what may stand in a file or on a command line, but cannot be."""
    if not isinstance(precision, str) or precision not in DTYPES:
        raise PipelineError(f"precision is {precision!r}, expected one of {', '.join(DTYPES)}")
    most = min(min(tensor.shape) for tensor in shared.values() if tensor.dim() == 2)
    if rank is not None and (type(rank) is not int or not 1 <= rank <= most):
        raise PipelineError(f"rank is {rank!r}, expected 1 to {most}, or none for the full matrices")


def misfit(found: Tensors, wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype | None]]) -> str:
    """What the first tensor that does not fit has wrong, '' where all fit. A type of None: any floating one."""
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            return f"tensor '{name}' is missing"
        if name not in wanted:
            return f"tensor '{name}' is not expected"
        tensor, (shape, dtype) = found[name], wanted[name]
        if tuple(tensor.shape) != shape:
            return f"tensor '{name}' has shape {list(tensor.shape)}, expected {list(shape)}"
        if tensor.dtype != dtype and not (dtype is None and tensor.is_floating_point()):
            expected = dtype_name(dtype) if dtype else "a float"
            return f"tensor '{name}' is of type {dtype_name(tensor.dtype)}, expected {expected}"
    return ""


def not_finite(tensors: Tensors) -> str:
    """The name of the first tensor that holds a NaN or an infinity, '' where there is none."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), "")


def kept(state: Tensors, stored: Tensors, shared: Tensors) -> float:
    """1 - |stored - state|^2 / |state - shared|^2 over all FFN matrices: how much of what training changed is left."""
    changed = lost = 0.0
    for name, frozen in shared.items():
        changed += (state[name].float() - frozen.float()).square().sum().item()
        lost += (state[name].float() - stored[name].float()).square().sum().item()
    return 1 - lost / changed if changed else 1.0


def _is_difference(name: str, precision: Precision, rank: int | None) -> bool:
    return name.endswith((".expert.fc1.weight", ".expert.fc2.weight")) and (precision == "int8" or rank is not None)


def _parts(difference: torch.Tensor, rank: int | None) -> dict[str, torch.Tensor]:
    """The singular values go with the right factor, whose rows have a scale each: so that no component's is lost."""
    if rank is None:
        return {"delta": difference}
    left, values, right = _largest_components(difference.double(), rank)
    return {"left": left.float(), "right": (values[:, None] * right).float()}


def _largest_components(x: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U, S and V' of the `rank` largest singular values, of float64.

    From the eigenvectors of the smaller of XX' and X'X: much less work than the SVD of an FFN's matrix, and in float64 a
    value is lost among the roundings at 1e-8 of the largest, far below float16.
    """
    if x.shape[0] > x.shape[1]:
        right, values, left = _largest_components(x.T, rank)
        return left.T, values, right.T
    left = torch.linalg.eigh(x @ x.T)[1].flip(1)[:, :rank]
    right = left.T @ x
    values = right.norm(dim=1)
    return left, values, right / values.clamp_min(torch.finfo(x.dtype).tiny)[:, None]


def _coded(name: str, x: torch.Tensor, precision: Precision) -> list[tuple[str, torch.Tensor]]:
    if precision != "int8":
        return [(name, x.to(DTYPES[precision]))]
    scale = x.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
    return [(name, (x / scale[:, None]).round().to(torch.int8)), (f"{name}.scale", scale)]


def _decoded(name: str, tensors: Tensors) -> torch.Tensor:
    x = tensors[name].float()
    return x * tensors[f"{name}.scale"][:, None] if f"{name}.scale" in tensors else x


def dtype_name(dtype: torch.dtype) -> str:
    """Returns 'float16' for torch.float16, and so on."""
    return str(dtype).removeprefix("torch.")
