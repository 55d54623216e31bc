"""Writes a Whisper, whatever it was made from, as the plain folder that all other formats are made of."""

from pathlib import Path
from typing import Any

import torch

from cache import files
from stages.export.vocabulary import write_vocabulary
from stages.shared.student.packing import dtype_name
from stages.shared.whisper.alignment_heads import alignment_heads
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.saving import save_whisper


def write_plain(whisper: Whisper, folder: Path, dtype: torch.dtype) -> None:
    """Writes the model in the transformers layout, with all that converters and older readers look for.

    The window of 30 s is written whole; see `save_whisper`.
    """
    generation: Any = whisper.model.generation_config
    longest = whisper.model.config.max_target_positions
    # converters stop where max_length is null, and compute times of words from alignment_heads
    generation.max_length = generation.max_length or longest
    if heads := alignment_heads(whisper.model):
        generation.alignment_heads = heads
    save_whisper(whisper, folder, dtype)
    config = files.read_json(folder / "config.json")
    config |= {"max_length": longest, "dtype": dtype_name(dtype), "architectures": ["WhisperForConditionalGeneration"]}
    files.write_json(folder / "config.json", config)
    write_vocabulary(whisper.tokenizer, whisper.folder, folder)
