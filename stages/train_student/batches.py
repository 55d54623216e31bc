"""Makes the tensors of a batch from loaded rows. The rows may be of several languages."""

# Shapes: B rows (clips), N target positions of all rows, T decoder positions, S encoder positions.

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
from stages.train_student.token_weights import TokenWeights, weigh_tokens

# An utterance's record, with its targets, language and prompt, and the teacher's fields where there is a teacher.
Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """B clips with N real target positions."""

    ids: list[str]
    languages: list[str]  # B codes
    features: torch.Tensor  # (B, mels, frames)
    decoder_input_ids: torch.Tensor  # (B, T)
    positions: tuple[torch.Tensor, torch.Tensor]  # (N,) rows and columns of the decoder positions with a target
    targets: torch.Tensor  # (N,)
    encoder_mask: torch.Tensor  # (B, S) bool, true where there is audio
    decoder_mask: torch.Tensor  # (B, T) bool, true where there is no padding
    teacher: TeacherTargets | None


class Collate:
    """Makes a Batch of rows, for one student."""

    def __init__(self, student: Whisper, settings: TrainSettings):
        self.student, self.settings = student, settings
        self.log_mel = LogMel(student.model.config.num_mel_bins, student.audio_window_s)

    def __call__(self, rows: list[Row]) -> Batch:
        targets, prompts = [row["targets"] for row in rows], [row["prompt"] for row in rows]
        window = self.student.audio_window_s * POSITIONS_PER_SECOND
        real = torch.tensor([min(window, math.ceil(row["seconds"] * POSITIONS_PER_SECOND)) for row in rows])
        inputs = decoder_inputs(prompts, targets, self.student.tokenizer.eos_token_id)
        lengths = torch.tensor([len(prompt) + len(ids) - 1 for prompt, ids in zip(prompts, targets, strict=True)])
        return Batch(
            ids=[row["id"] for row in rows],
            languages=[row["language"] for row in rows],
            features=self._features(rows),
            decoder_input_ids=inputs,
            positions=target_positions(prompts, targets),
            targets=torch.tensor([token for ids in targets for token in ids]),
            encoder_mask=torch.arange(window) < real[:, None],
            decoder_mask=torch.arange(inputs.shape[1]) < lengths[:, None],
            teacher=_teacher_targets(rows, self.settings.token_weights) if "top_ids" in rows[0] else None,
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


@dataclass(frozen=True)
class EpochPart:
    """Which batches of an epoch are read: those of process `rank` of `world`, from batch number `start` on."""

    seed: int
    epoch: int
    start: int = 0
    rank: int = 0
    world: int = 1


def _seeded(rows: Iterable[Row], part: EpochPart, first: int) -> Iterator[Row]:
    """Adds each row's random seed, which depends on its place in the epoch and not on its batch or process."""
    for number, row in enumerate(rows):
        yield {**row, "seed": (part.seed, part.epoch, first + number * part.world)}


def _teacher_targets(rows: list[Row], token_weights: TokenWeights) -> TeacherTargets:
    counts, ids, tails = (
        np.concatenate([row[name] for row in rows]) for name in ("top_counts", "top_ids", "tail_log_probs")
    )
    log_probs = np.concatenate([stored_log_probs(row["top_probs"], row["bits"]) for row in rows])
    weights_N = None
    if token_weights != "none":
        weights_N = torch.from_numpy(np.concatenate([weigh_tokens(row, row["bits"], token_weights) for row in rows]))
    return TeacherTargets(
        torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(log_probs),
        torch.from_numpy(tails),
        weights_N,
    )


def read_batches(
    load: Callable[[int], list[Row]],
    rows: list[int],
    collate: Callable[[list[Row]], Batch],
    batch_size: int,
    part: EpochPart,
) -> Iterator[Batch | None]:
    """Yields the batches of an epoch; the last may be smaller. load, rows: see `cache.order.samples`.

    Of every `world * batch_size` utterances each process takes its share. All processes get equally many batches: the
    last one is None where no utterance is left for a process.
    """
    together = batch_size * part.world
    read = samples(load, rows, part.seed, part.epoch, part.start * together, part.rank, part.world)
    seeded = _seeded(read, part, part.start * together + part.rank)
    for _ in range(part.start, math.ceil(sum(rows) / together)):
        own = list(islice(seeded, batch_size))
        yield collate(own) if own else None
