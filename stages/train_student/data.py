"""Training batches from shards: filtered with nothing dropped unsaid, shuffled, resumable at any batch."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from cache.distributions import stored_log_probs
from cache.errors import PipelineError
from cache.order import samples
from cache.settings import differences
from cache.shards import ShardReader
from stages.audio import decode_flac
from stages.train_student.filters import check_filters, reasons_to_leave_out
from stages.train_student.losses import TeacherTargets
from stages.train_student.settings import TrainSettings
from stages.whisper.features import LogMel
from stages.whisper.models import Whisper, tokenizer_fingerprint
from stages.whisper.targets import decoder_inputs, prompt_ids, reason_to_leave_out, target_ids, target_positions
from stages.whisper.window import POSITIONS_PER_SECOND


@dataclass(frozen=True)
class Batch:
    """B clips with N real target positions; T decoder positions, S encoder positions."""

    ids: list[str]
    features: torch.Tensor  # (B, mels, frames)
    decoder_input_ids: torch.Tensor  # (B, T)
    positions: tuple[torch.Tensor, torch.Tensor]  # (N,) rows and columns of the decoder positions that are trained
    targets: torch.Tensor  # (N,)
    encoder_mask: torch.Tensor  # (B, S) where there is audio
    decoder_mask: torch.Tensor  # (B, T) where there is no padding
    teacher: TeacherTargets | None


class TrainingData:
    """The utterances of one split, with the teacher's side-car shards or without.

    left_out: what cannot be trained on, and why. Raises PipelineError where the two do not belong together.
    """

    def __init__(
        self,
        utterances: ShardReader,
        teacher: ShardReader | None,
        student: Whisper,
        language: str,
        settings: TrainSettings,
    ):
        self.utterances, self.teacher, self.language, self.settings = utterances, teacher, language, settings
        self.student, self.prompt = student, prompt_ids(student, language)
        self.log_mel = LogMel(student.model.config.num_mel_bins, student.audio_window_s)
        self.tail_V: torch.Tensor | None = None  # the teacher's mean tail
        self.pseudo = teacher is not None and teacher.settings.get("targets") == "pseudo"
        if teacher is not None:
            self._check_teacher(teacher)
            check_filters(teacher, settings)
            self.tail_V = torch.from_numpy(teacher.tail())
        self.left_out: list[dict[str, str]] = []
        groups = [self._index(shard) for shard in range(len(utterances.shards))]
        chosen = _choose_groups(groups, settings.train_fraction)
        self.kept = [[row for row, group in shard.items() if group in chosen] for shard in groups]
        self.not_chosen = sum(map(len, groups)) - len(self)
        if not len(self):
            raise PipelineError(f"{utterances.folder}: no utterance to train on ({len(self.left_out)} left out)")

    def __len__(self) -> int:
        return sum(map(len, self.kept))

    def _check_teacher(self, teacher: ShardReader) -> None:
        wanted = {
            "language": self.language,
            "utterances": self.utterances.fingerprint(),
            "tokenizer": tokenizer_fingerprint(self.student.tokenizer),
            "vocab_size": self.student.model.config.vocab_size,
            "prompt": self.prompt,
            "audio_window_s": self.student.audio_window_s,
        }
        found = {name: teacher.settings.get(name) for name in wanted}
        if differing := differences(found, wanted):
            raise PipelineError(f"{teacher.folder} does not fit this student and corpus ({differing})")
        if teacher.rows != self.utterances.rows:
            raise PipelineError(
                f"{teacher.folder}: shards of {teacher.rows} records, expected {self.utterances.rows} as in "
                f"{self.utterances.folder}: its ids are not those of the utterance shards"
            )

    def _index(self, shard: int) -> dict[int, str]:
        """row -> group of the utterances that can be trained on."""
        rows = self.utterances.read(shard, only=("id", "text", "seconds", "group"))
        reasons: dict[str, tuple[str, str]] = {}
        if self.teacher is not None:
            self._check_ids(shard, [row["id"] for row in rows])
            reasons = reasons_to_leave_out(self.teacher, shard, self.settings)
        groups = {}
        for number, row in enumerate(rows):
            if reason := reasons.get(row["id"]) or self._reason(row):
                self.left_out.append({"id": row["id"], "reason": reason[0], "detail": reason[1]})
            else:
                groups[number] = row["group"]
        return groups

    def _reason(self, row: dict) -> tuple[str, str] | None:
        targets = [] if self.pseudo else target_ids(self.student.tokenizer, row["text"], self.language)
        if not self.pseudo and not row["text"]:
            return "no_text", "no transcript"
        return reason_to_leave_out(row["seconds"], self.student.audio_window_s, self.prompt, targets)

    def _check_ids(self, shard: int, ids: list[str]) -> None:
        assert self.teacher is not None
        found = [row["id"] for row in self.teacher.read(shard, only=("id",))]
        if found != ids:
            name = self.teacher.shards[shard]["name"]
            raise PipelineError(f"{self.teacher.folder / name}: its ids are not those of the utterance shard, in order")

    def batches(
        self, batch_size: int, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch | None]:
        """The epoch's batches from number `start` on; the last may be smaller.

        Of several processes, each takes its share of every `world * batch_size` utterances: as many batches on each of them,
        the last of them None where nothing is left for it.
        """
        together = batch_size * world
        read = samples(self._load, [len(rows) for rows in self.kept], seed, epoch, start * together, rank, world)
        for _ in range(start, math.ceil(len(self) / together)):
            rows = list(islice(read, batch_size))
            yield self._collate(rows) if rows else None

    def _load(self, shard: int) -> list[dict]:
        """The kept rows of a shard, with the teacher's fields where there is one."""
        rows = self.utterances.read(shard)
        scored = self.teacher.read(shard) if self.teacher is not None else None
        loaded = []
        for row, number in ((rows[number], number) for number in self.kept[shard]):
            if scored is None:
                loaded.append({**row, "targets": target_ids(self.student.tokenizer, row["text"], self.language)})
            else:
                targets = scored[number]["targets"].tolist()
                self._check_targets(targets, row, shard)
                loaded.append({**row, **scored[number], "targets": targets})
        return loaded

    def _check_targets(self, targets: list[int], row: dict, shard: int) -> None:
        assert self.teacher is not None
        wanted = target_ids(self.student.tokenizer, row["text"], self.language)
        if not targets or (not self.pseudo and targets != wanted):
            where = f"{self.teacher.folder / self.teacher.shards[shard]['name']}, {row['id']}"
            raise PipelineError(
                f"{where}: its targets are not the transcript's tokens: the shards do not belong together"
            )

    def _collate(self, rows: list[dict]) -> Batch:
        targets = [row["targets"] for row in rows]
        window = self.student.audio_window_s * POSITIONS_PER_SECOND
        real = torch.tensor([min(window, int(np.ceil(row["seconds"] * POSITIONS_PER_SECOND))) for row in rows])
        inputs = decoder_inputs(self.prompt, targets, self.student.tokenizer.eos_token_id)
        lengths = torch.tensor([len(self.prompt) + len(ids) - 1 for ids in targets])
        return Batch(
            ids=[row["id"] for row in rows],
            features=self.log_mel([decode_flac(row["audio"], row["seconds"]) for row in rows]),
            decoder_input_ids=inputs,
            positions=target_positions(self.prompt, targets),
            targets=torch.tensor([token for ids in targets for token in ids]),
            encoder_mask=torch.arange(window) < real[:, None],
            decoder_mask=torch.arange(inputs.shape[1]) < lengths[:, None],
            teacher=None if self.teacher is None else _teacher_targets(rows, self.teacher.settings["bits"]),
        )


def _teacher_targets(rows: list[dict], bits: int) -> TeacherTargets:
    counts, ids, codes, tails = (
        np.concatenate([row[name] for row in rows]) for name in ("top_counts", "top_ids", "top_probs", "tail_log_probs")
    )
    return TeacherTargets(
        torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(stored_log_probs(codes, bits)),
        torch.from_numpy(tails),
    )


def _choose_groups(shards: list[dict[int, str]], fraction: float) -> set[str]:
    """Whole groups, in an order that depends on their names alone, until they hold `fraction` of the utterances."""
    sizes: dict[str, int] = {}
    for shard in shards:
        for group in shard.values():
            sizes[group] = sizes.get(group, 0) + 1
    wanted, chosen, taken = fraction * sum(sizes.values()), set(), 0
    for group in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if taken < wanted:
            chosen.add(group)
            taken += sizes[group]
    return chosen
