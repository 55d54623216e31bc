"""Reads and writes safetensors files. A file is written whole or not at all."""

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cache import files
from cache.errors import PipelineError
from cache.storage import AnyPath


def write_weights(path: AnyPath, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes `tensors` by name. Raises PipelineError where the disk is full or not writable."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with files.atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata)
        except SafetensorError as error:
            raise PipelineError(f"{path}: cannot be written ({error}): the same command goes on from here") from None


def read_weights(path: AnyPath) -> dict[str, torch.Tensor]:
    """Returns the tensors by name. Raises PipelineError where the file is missing or damaged."""
    try:
        with files.local_copy(path) as copy:
            return load_file(copy)
    except (OSError, SafetensorError) as error:
        raise PipelineError(f"{path}: not readable as safetensors ({str(error).splitlines()[0]})") from None
