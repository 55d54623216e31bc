"""Converts an expert's tensors to and from their stored form.

That is the values, or the difference from the shared block, in 8 bits and/or of low rank. An expert that was trained at
low rank has the two factors of the difference in place of each matrix.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch

from cache.errors import PipelineError
from cache.progress import Progress, silent
from stages.shared.student.config import GATE_DIM
from stages.shared.student.forms import Gates

# Shapes: O outputs and I inputs of an FFN matrix, as nn.Linear stores it
Precision = Literal["fp16", "fp32", "int8"]
Tensors = Mapping[str, torch.Tensor]
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # name -> shape and type
DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "int8": torch.int8}
FACTORS = (".left", ".right")
LARGEST = 127  # int8 codes are symmetric: -127 to 127


def pack(
    state: Tensors,
    shared: Tensors,
    precision: Precision = "fp16",
    rank: int | None = None,
    progress: Progress[str] = silent,
) -> dict:
    """Returns the tensors to store for `state`, an expert with its gates, if it has any.

    shared: the frozen FFNs, by the expert's names. The factors of an expert of low rank are stored as they are: `rank` must
    be theirs.
    With fp16 and fp32 at full rank the values are stored. Rounding is then relative to the weight, not to its change, as
    in the released Whisper weights. The file does not depend on how the frozen weights are rounded later.
    With int8 or a rank, D = expert - shared of each FFN matrix (O, I) is stored: int8 codes with a float32 scale for each
    row, or the first `rank` components of D = U S V', as U (O, rank) and S V' (rank, I).
    Biases and gates, a thirtieth of the expert, are stored as values; in float16 if the rest is int8.

    Raises PipelineError where the precision cannot hold a value, or where D would need shared weights that were rounded.
    """
    check_choice(shared, precision, rank)
    stored: dict[str, torch.Tensor] = {}
    for done, (name, tensor) in enumerate(state.items()):
        progress(done, len(state), "")
        value = tensor.detach().float().cpu()
        if name.endswith(FACTORS):
            stored |= dict(_coded(name, value, precision))
            continue
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


def unpack(
    tensors: Tensors,
    shared: Tensors,
    precision: Precision,
    rank: int | None,
    source: str,
    gated: bool = True,
    factors: bool = False,
) -> dict[str, torch.Tensor]:
    """Returns the expert's state in float32 from what `pack` returned. Raises PipelineError naming `source` and the fault.

    gated: whether the expert has gates. factors: leave the matrices of an expert of low rank as their factors.
    """
    try:
        wanted = layout(shared, precision, rank, gated)
    except PipelineError as error:
        raise PipelineError(f"{source}: {error}") from None
    if fault := misfit(tensors, wanted):
        raise PipelineError(f"{source}: {fault}: made for another base model, or damaged")
    state: dict[str, torch.Tensor] = {}
    for name in expert_shapes(shared, gated):
        if not _is_difference(name, precision, rank):
            state[name] = tensors[name].float()
        elif rank is None:
            state[name] = shared[name].detach().float().cpu() + _decoded(f"{name}.delta", tensors)
        else:
            state |= {f"{name}{part}": _decoded(f"{name}{part}", tensors) for part in FACTORS}
    state = state if factors else merged(state, shared)
    if infinite := not_finite(state):
        raise PipelineError(f"{source}: tensor '{infinite}' has values that are not finite: damaged")
    return state


def merged(state: Tensors, shared: Tensors) -> dict[str, torch.Tensor]:
    """Returns the state with a matrix, shared + left right, in place of each pair of factors."""
    plain = {name: tensor for name, tensor in state.items() if not name.endswith(FACTORS)}
    for name, frozen in shared.items():
        if name + FACTORS[0] in state:
            left, right = (state[name + part].detach().float().cpu() for part in FACTORS)
            plain[name] = frozen.detach().float().cpu() + left @ right
    return plain


def rank_of(state: Tensors) -> int | None:
    """Returns the rank of the factors in `state`; None if it has matrices instead."""
    return next((tensor.shape[1] for name, tensor in state.items() if name.endswith(FACTORS[0])), None)


def layers_in(state: Tensors) -> tuple[str, ...]:
    """Returns the layers that `state` has tensors of, such as `encoder.layers.0`."""
    return tuple(dict.fromkeys(".".join(name.split(".")[:3]) for name in state))


def in_layers(shared: Tensors, layers: Collection[str]) -> dict[str, torch.Tensor]:
    """Returns the tensors of these layers alone."""
    return {name: tensor for name, tensor in shared.items() if ".".join(name.split(".")[:3]) in layers}


def gates_in(state: Tensors) -> Gates:
    """Returns what the gates in `state` decide for. Those of a layer have W1 = 0: they see no token."""
    weights = [tensor for name, tensor in state.items() if name.endswith(".gate.inner.weight")]
    if not weights:
        return "none"
    return "token" if any(weight.any() for weight in weights) else "layer"


def layout(shared: Tensors, precision: Precision, rank: int | None, gated: bool = True) -> Layout:
    """Returns name, shape and type of each stored tensor. Raises PipelineError for an invalid precision or rank."""
    check_choice(shared, precision, rank)
    wanted: Layout = {}
    for name, shape in expert_shapes(shared, gated).items():
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


def expert_shapes(shared: Tensors, gated: bool = True) -> dict[str, tuple[int, ...]]:
    """Returns name and shape of each tensor of an expert: the FFNs', and if `gated` for each FFN its gate's W1, b1 and w2."""
    shapes = {name: tuple(tensor.shape) for name, tensor in shared.items()}
    for name, shape in list(shapes.items()) if gated else []:
        if name.endswith(".expert.fc1.weight"):
            gate = name.replace(".expert.fc1.weight", ".gate")
            inner = {f"{gate}.inner.weight": (GATE_DIM, shape[1]), f"{gate}.inner.bias": (GATE_DIM,)}
            shapes |= {**inner, f"{gate}.outer.weight": (1, GATE_DIM)}
    return shapes


def check_choice(shared: Tensors, precision: Any, rank: Any) -> None:
    """Raises PipelineError for an invalid precision or rank, from a file or a command line."""
    if not isinstance(precision, str) or precision not in DTYPES:
        raise PipelineError(f"precision is {precision!r}, expected one of {', '.join(DTYPES)}")
    most = min(min(tensor.shape) for tensor in shared.values() if tensor.dim() == 2)
    if rank is not None and (type(rank) is not int or not 1 <= rank <= most):
        raise PipelineError(f"rank is {rank!r}, expected 1 to {most}, or none for the full matrices")


def misfit(found: Tensors, wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype | None]]) -> str:
    """Returns the fault of the first tensor that does not fit, '' if all fit. A type of None allows any float type."""
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
    """Returns the name of the first tensor that holds a NaN or an infinity, '' if there is none."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), "")


def kept(state: Tensors, stored: Tensors, shared: Tensors) -> float:
    """Returns the share of the training's change that is kept: 1 - |stored - state|^2 / |state - shared|^2 over all FFNs."""
    changed = lost = 0.0
    for name, frozen in in_layers(shared, layers_in(state)).items():
        changed += (state[name].float() - frozen.float()).square().sum().item()
        lost += (state[name].float() - stored[name].float()).square().sum().item()
    return 1 - lost / changed if changed else 1.0


def _is_difference(name: str, precision: Precision, rank: int | None) -> bool:
    return name.endswith((".expert.fc1.weight", ".expert.fc2.weight")) and (precision == "int8" or rank is not None)


def _parts(difference: torch.Tensor, rank: int | None) -> dict[str, torch.Tensor]:
    """Puts the singular values into the right factor: its int8 rows have a scale each, so that small values are not lost."""
    if rank is None:
        return {"delta": difference}
    left, values, right = _largest_components(difference.double(), rank)
    return {"left": left.float(), "right": (values[:, None] * right).float()}


def _largest_components(x: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns U, S and V' of the `rank` largest singular values of x, in float64.

    They come from the eigenvectors of the smaller of XX' and X'X, which is much less work than the SVD of an FFN matrix.
    In float64, singular values below 1e-8 of the largest are lost in rounding, far below float16's precision.
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
