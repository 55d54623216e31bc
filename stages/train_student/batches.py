"""From loaded rows to the tensors of a batch, whose rows may be of several languages."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from cache.distributions import stored_log_probs
from cache.order import samples
from stages.shared.audio import decode_flac
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.targets import decoder_inputs, target_positions
from stages.shared.whisper.window import FRAMES_PER_SECOND, POSITIONS_PER_SECOND
from stages.train_student.augment import spec_augment
from stages.train_student.losses import TeacherTargets
from stages.train_student.settings import TrainSettings

Row = dict[
    str, Any
]  # of an utterance, with its targets, its language, its prompt, and the teacher's fields where there are


@dataclass(frozen=True)
class Batch:
    """B clips with N real target positions; T decoder positions, S encoder positions."""

    ids: list[str]
    languages: list[str]  # B codes
    features: torch.Tensor  # (B, mels, frames)
    decoder_input_ids: torch.Tensor  # (B, T)
    positions: tuple[torch.Tensor, torch.Tensor]  # (N,) rows and columns of the decoder positions that are trained
    targets: torch.Tensor  # (N,)
    encoder_mask: torch.Tensor  # (B, S) where there is audio
    decoder_mask: torch.Tensor  # (B, T) where there is no padding
    teacher: TeacherTargets | None


class Collate:
    """Rows -> Batch, for one student."""

    def __init__(self, student: Whisper, settings: TrainSettings):
        self.student, self.settings = student, settings
        self.log_mel = LogMel(student.model.config.num_mel_bins, student.audio_window_s)

    def __call__(self, rows: list[Row]) -> Batch:
        targets, prompts = [row["targets"] for row in rows], [row["prompt"] for row in rows]
        window = self.student.audio_window_s * POSITIONS_PER_SECOND
        real = torch.tensor([min(window, math.ceil(row["seconds"] * POSITIONS_PER_SECOND)) for row in rows])
        inputs = decoder_inputs(prompts[0], targets, self.student.tokenizer.eos_token_id)
        inputs[:, : len(prompts[0])] = torch.tensor(prompts)  # they differ in the language's token alone
        lengths = torch.tensor([len(prompts[0]) + len(ids) - 1 for ids in targets])
        return Batch(
            ids=[row["id"] for row in rows],
            languages=[row["language"] for row in rows],
            features=self._features(rows),
            decoder_input_ids=inputs,
            positions=target_positions(prompts[0], targets),
            targets=torch.tensor([token for ids in targets for token in ids]),
            encoder_mask=torch.arange(window) < real[:, None],
            decoder_mask=torch.arange(inputs.shape[1]) < lengths[:, None],
            teacher=_teacher_targets(rows) if "top_ids" in rows[0] else None,
        )

    def _features(self, rows: list[Row]) -> torch.Tensor:
        features = self.log_mel([decode_flac(row["audio"], row["seconds"]) for row in rows])
        if not self.settings.spec_augment:
            return features
        masked = []
        for clip, row in zip(features, rows, strict=True):
            frames = min(clip.shape[-1], math.ceil(row["seconds"] * FRAMES_PER_SECOND))
            masked.append(spec_augment(clip, frames, row["seed"], self.settings))
        return torch.stack(masked)


def _numbered(rows: Iterable[Row], seed: int, epoch: int, first: int, step: int) -> Iterator[Row]:
    """Each with what its random numbers are drawn from: its place in the epoch, whichever batch or process has it."""
    for number, row in enumerate(rows):
        yield {**row, "seed": (seed, epoch, first + number * step)}


def _teacher_targets(rows: list[Row]) -> TeacherTargets:
    counts, ids, tails = (
        np.concatenate([row[name] for row in rows]) for name in ("top_counts", "top_ids", "tail_log_probs")
    )
    log_probs = np.concatenate([stored_log_probs(row["top_probs"], row["bits"]) for row in rows])
    return TeacherTargets(
        torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(log_probs),
        torch.from_numpy(tails),
    )


def read_batches(
    load: Callable[[int], list[Row]],
    rows: list[int],
    collate: Callable[[list[Row]], Batch],
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch | None]:
    """The epoch's batches from number `start` on; the last may be smaller. load, rows: see `cache.order.samples`.

    Of several processes, each takes its share of every `world * batch_size` utterances: as many batches on each of them,
    the last of them None where nothing is left for it.
    """
    together = batch_size * world
    read = _numbered(
        samples(load, rows, seed, epoch, start * together, rank, world), seed, epoch, start * together + rank, world
    )
    for _ in range(start, math.ceil(sum(rows) / together)):
        own = list(islice(read, batch_size))
        yield collate(own) if own else None
