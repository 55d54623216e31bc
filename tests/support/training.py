"""Trains on one language, with the arguments in a row."""

from pathlib import Path
from typing import Any

import torch

from stages.shared.whisper.models import Whisper
from stages.train_student.run import Execution, LanguageData, train_student
from stages.train_student.settings import TrainSettings


def train_one(
    base: Whisper,
    method: str,
    language: str,
    utterances: Path,
    teacher: Path | None,
    out: Path,
    settings: TrainSettings,
    device: torch.device,
    **execution: Any,
) -> dict[str, Any]:
    """execution: rerun, progress, processes."""
    data = [LanguageData(language, utterances, teacher, out)]
    return train_student(base, method, data, out, settings, Execution(device, **execution))
