"""Reads one language's training data from shards: filtered, shuffled, resumable at any batch.

Every utterance that is dropped is listed with its reason.
"""

# Shapes: V vocabulary.

import hashlib
from collections.abc import Iterator

import torch

from cache.errors import PipelineError
from cache.resume import differences
from cache.shards import ShardReader
from stages.shared.whisper.models import Whisper, tokenizer_fingerprint
from stages.shared.whisper.targets import prompt_ids, reason_to_leave_out, target_ids, token_of
from stages.train_student.batches import Batch, Collate, EpochPart, Row, read_batches
from stages.train_student.filters import check_filters, reasons_to_leave_out
from stages.train_student.settings import TrainSettings


class TrainingData:
    """The utterances of one split, with the teacher's side-car shards or without.

    left_out: the utterances that cannot be trained on, with the reason.
    Raises PipelineError where the teacher's shards do not belong to the utterances or to the student.
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
        self.collate = Collate(student, settings)
        self.tail_V: torch.Tensor | None = None  # the mean of the teacher's tails
        self.pseudo = teacher is not None and teacher.provenance.get("targets") == "pseudo"
        if teacher is not None:
            self._check_teacher(teacher)
            check_filters(teacher, settings)
            self.tail_V, self.bits = torch.from_numpy(teacher.tail()), teacher.provenance["bits"]
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
            "token": token_of(self.student.model, self.language),
            "utterances": self.utterances.fingerprint(),
            "tokenizer": tokenizer_fingerprint(self.student.tokenizer),
            "vocab_size": self.student.model.config.vocab_size,
            "prompt": self.prompt,
            "audio_window_s": self.student.audio_window_s,
        }
        found = {name: teacher.provenance.get(name) for name in wanted}
        if differing := differences(found, wanted):
            raise PipelineError(f"{teacher.folder} does not fit this student and corpus ({differing})")
        if teacher.rows != self.utterances.rows:
            raise PipelineError(
                f"{teacher.folder}: shards of {teacher.rows} records, expected {self.utterances.rows} as in "
                f"{self.utterances.folder}: its ids are not those of the utterance shards"
            )

    def _index(self, shard: int) -> dict[int, str]:
        """Returns row -> group of the shard's utterances that can be trained on, and lists the others in `left_out`."""
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
        return reason_to_leave_out(self.student, row["seconds"], self.prompt, targets)

    def _check_ids(self, shard: int, ids: list[str]) -> None:
        assert self.teacher is not None
        found = [row["id"] for row in self.teacher.read(shard, only=("id",))]
        if found != ids:
            name = self.teacher.shards[shard]["name"]
            raise PipelineError(f"{self.teacher.folder / name}: its ids are not those of the utterance shard, in order")

    def batches(
        self, batch_size: int, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch | None]:
        """Yields the batches of an epoch: see `read_batches`."""
        rows = [len(rows) for rows in self.kept]
        return read_batches(self.load, rows, self.collate, batch_size, EpochPart(seed, epoch, start, rank, world))

    def load(self, shard: int) -> list[Row]:
        """Returns the kept rows of a shard, with the teacher's fields where there is a teacher."""
        rows = self.utterances.read(shard)
        scored = self.teacher.read(shard) if self.teacher is not None else None
        common = {"language": self.language, "prompt": self.prompt}
        loaded = []
        for row, number in ((rows[number], number) for number in self.kept[shard]):
            if scored is None:
                targets = target_ids(self.student.tokenizer, row["text"], self.language)
                loaded.append({**row, **common, "targets": targets})
            else:
                targets = scored[number]["targets"].tolist()
                self._check_targets(targets, row, shard)
                loaded.append({**row, **scored[number], **common, "targets": targets, "bits": self.bits})
        return loaded

    def _check_targets(self, targets: list[int], row: dict, shard: int) -> None:
        assert self.teacher is not None
        wanted = target_ids(self.student.tokenizer, row["text"], self.language)
        if not targets or (not self.pseudo and targets != wanted):
            where = f"{self.teacher.folder / self.teacher.shards[shard]['name']}, {row['id']}"
            raise PipelineError(
                f"{where}: its targets are not the transcript's tokens: the shards do not belong together"
            )


def _choose_groups(shards: list[dict[int, str]], fraction: float) -> set[str]:
    """Chooses whole groups until they hold `fraction` of the utterances. Their order depends on their names only."""
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
