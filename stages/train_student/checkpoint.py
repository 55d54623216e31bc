"""Writes and reads the whole state of a run in one file: a stopped run goes on as if it had not been stopped."""

import json
from dataclasses import asdict, dataclass, field

import torch
from safetensors import SafetensorError, safe_open

from cache.errors import PipelineError
from cache.files import local_copy
from cache.storage import AnyPath
from stages.shared.layout import CHECKPOINT
from stages.shared.whisper.weights import write_weights
from stages.train_student.processes import SINGLE_PROCESS, Processes
from stages.train_student.trainee import Trainee

# Each parameter counts its own steps: an expert whose layer was skipped takes none.
_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Position:
    """How far a run has come."""

    step: int = 0  # optimizer steps done
    best_step: int = -1
    best_wer: float = float("inf")
    unlogged: list[dict[str, float]] = field(default_factory=list)  # the losses of the steps since the last row


def save(
    folder: AnyPath,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    position: Position,
    processes: Processes = SINGLE_PROCESS,
) -> None:
    """Writes the checkpoint. The main process writes for all: processes differ only in their random state."""
    random = {"random": processes.stack(torch.get_rng_state())}
    if processes.device.type == "cuda":
        random["random_cuda"] = processes.stack(torch.cuda.get_rng_state(processes.device))
    processes.on_main(lambda: _write(folder, trainee, optimizer, position, random))


def _write(
    folder: AnyPath,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    position: Position,
    random: dict[str, torch.Tensor],
) -> None:
    tensors: dict[str, torch.Tensor] = {f"weights/{name}": parameter for name, parameter in trainee.parameters.items()}
    for name, parameter in trainee.parameters.items():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{part}/{name}": state[part] for part in _STATE if part in state}
    write_weights(folder / CHECKPOINT, {**tensors, **random}, {"position": json.dumps(asdict(position))})


def load(
    folder: AnyPath, trainee: Trainee, optimizer: torch.optim.Optimizer, processes: Processes = SINGLE_PROCESS
) -> Position:
    """Restores weights, optimizer and each process's random state. Returns a new Position where there is no checkpoint.

    Raises PipelineError where the file cannot be read.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return Position()
    try:
        with local_copy(path) as copy, safe_open(copy, "pt") as file:
            position = Position(**json.loads(file.metadata()["position"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise PipelineError(f"{path}: not a readable checkpoint ({error}): remove it to begin again") from None
    for name, parameter in trainee.parameters.items():
        parameter.data.copy_(tensors[f"weights/{name}"])
        state = {part: tensors[f"{part}/{name}"].to(parameter.device) for part in _STATE if f"{part}/{name}" in tensors}
        if state:
            optimizer.state[parameter] = state
    torch.set_rng_state(tensors["random"][processes.rank].clone())
    if "random_cuda" in tensors and processes.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random_cuda"][processes.rank].clone(), processes.device)
    return position
