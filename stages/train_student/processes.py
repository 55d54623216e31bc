"""The processes that train together, one on each device. A run on one device is a single process."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import get_int_from_env
from torch import distributed, nn

from cache.errors import PipelineError

T = TypeVar("T")
_END: Any = object()
COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # as a launcher or MPI sets it
BUCKET = 1 << 24  # numbers that are summed over the processes at once: 64 MB in float32


@dataclass(frozen=True)
class Processes:
    """This process among `count`. The methods are collective: every process must call them, in the same order."""

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Returns the sum of each value over all processes."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        self._all_reduce(total)
        return total.tolist()

    def others(self, values: list[float]) -> list[float]:
        """Returns the sum of each value over the other processes; 0 where there are none."""
        return [total - own for total, own in zip(self.sum(values), values, strict=True)]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its sum over all processes.

        A process without a gradient counts as zero. Where no process has one, there is none.
        """
        if self.count == 1:
            return
        parameters = list(parameters)
        somewhere = self.sum([float(parameter.grad is not None) for parameter in parameters])
        gradients = []
        for parameter, holders in zip(parameters, somewhere, strict=True):
            if holders:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            self._all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def stack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensors of all processes as (count, ...). They must have one shape."""
        if self.count == 1:
            return tensor.unsqueeze(0)
        gathered = [torch.empty_like(tensor, device=self.device) for _ in range(self.count)]
        with _peers(self):
            distributed.all_gather(gathered, tensor.to(self.device))
        return torch.stack(gathered).cpu()

    def agree(self, error: Exception | None) -> None:
        """Raises on all processes where one has an error: its own error, or the message of the first process with one."""
        if self.count == 1:
            if error is not None:
                raise error
        elif self.sum([float(error is not None)])[0]:
            messages: list[str | None] = [None] * self.count
            with _peers(self):
                distributed.all_gather_object(messages, None if error is None else str(error))
            if error is not None and not isinstance(error, PipelineError):
                raise error
            rank, message = next((rank, message) for rank, message in enumerate(messages) if message is not None)
            raise PipelineError(f"process {rank} of {self.count}: {message}")

    def on_main(self, function: Callable[[], T]) -> T:
        """Calls `function` on the main process only. Returns its result, or raises its error, on all processes."""
        if self.count == 1:
            return function()
        result: list[Any] = [None]
        error = None
        try:
            result = [function()] if self.main else result
        except Exception as raised:  # the other processes are waiting for it
            error = raised
        self.agree(error)
        with _peers(self):
            distributed.broadcast_object_list(result)
        return result[0]

    def agreed(self, items: Iterable[T]) -> Iterator[T]:
        """Iterates over `items`. If producing one fails on one process, all processes raise the error instead of waiting.

        All processes must have the same number of items.
        """
        iterator, item = iter(items), None
        while item is not _END:
            error = None
            try:
                item = next(iterator, _END)
            except Exception as raised:  # whatever it is, the other processes must not wait for this one
                error = raised
            self.agree(error)
            if item is not _END:
                yield item  # type: ignore[misc]

    def _all_reduce(self, tensor: torch.Tensor) -> None:
        with _peers(self):
            distributed.all_reduce(tensor)


SINGLE_PROCESS = Processes()


@contextmanager
def _peers(processes: Processes) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PipelineError(
            f"process {processes.rank} of {processes.count}: another process of the run has ended: see its message"
        ) from error


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Groups gradients of one dtype, up to BUCKET numbers each; a larger gradient is a group of its own."""
    bucket: list[torch.Tensor] = []
    for gradient in sorted(gradients, key=lambda one: str(one.dtype)):
        size = sum(one.numel() for one in bucket) + gradient.numel()
        if bucket and (size > BUCKET or bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def join_processes(device: torch.device) -> Processes:
    """Joins the processes that `accelerate launch` or torchrun started, as the environment tells; else a single process.

    Several processes take one accelerator each, or share the machine's cores. device: for a single process.
    """
    if get_int_from_env(COUNTS, 1) == 1:
        return Processes(device=device)
    state = PartialState(cpu=device.type == "cpu")
    if state.device.type == "cpu":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        torch.set_num_threads(max(1, torch.get_num_threads() // local))
    return Processes(state.process_index, state.num_processes, state.device)


def leave_processes() -> None:
    """Ends the process group after a run of several processes. Without this call it warns as the program ends."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
