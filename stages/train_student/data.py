"""Reads one language's training data from shards: filtered, shuffled, resumable at any batch.

Every utterance that is dropped is listed with its reason.
"""

# Shapes: V vocabulary.

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch

from cache.errors import PipelineError
from cache.records import TEACHER, TRANSCRIPT
from cache.resume import differences
from cache.shards import ShardReader
from stages.shared.subset import Fold, choose_groups
from stages.shared.whisper.models import Whisper, tokenizer_fingerprint
from stages.shared.whisper.targets import (
    reason_against_transcript,
    reason_to_leave_out,
    room_of,
    target_form,
    token_of,
)
from stages.shared.whisper.timestamps import prompt_before
from stages.train_student.batches import Batch, Collate, EpochPart, Row, read_batches
from stages.train_student.filters import COLUMNS, check_filters, reasons_to_leave_out
from stages.train_student.settings import TrainSettings


class TrainingData:
    """The utterances of one split, with the teacher's side-car shards or without.

    fold: the part of the split that is not trained on. left_out: the utterances that cannot be trained on, with the reason.
    Raises PipelineError where the teacher's shards do not belong to the utterances or to the student.
    """

    def __init__(
        self,
        utterances: ShardReader,
        teacher: ShardReader | None,
        student: Whisper,
        language: str,
        settings: TrainSettings,
        fold: Fold | None = None,
    ):
        self.utterances, self.teacher, self.language, self.settings = utterances, teacher, language, settings
        self.student, self.room = student, room_of(student)
        self.form = target_form(student, language, settings.timestamps)
        self.collate = Collate(student, settings)
        self.tail_V: torch.Tensor | None = None  # the mean of the teacher's tails
        if teacher is not None:
            self._check_teacher(teacher)
            check_filters(teacher, settings)
            self.tail_V, self.bits = torch.from_numpy(teacher.tail()), teacher.provenance["bits"]
        self.left_out: list[dict[str, str]] = []
        found = [self._index(shard) for shard in range(len(utterances.shards))]
        chosen = choose_groups((one.group for shard in found for one in shard), settings.train_fraction)
        if fold is not None:
            chosen -= fold.groups(utterances)
        kept = [[one for one in shard if one.group in chosen] for shard in found]
        self.kept = [[one.row for one in shard] for shard in kept]
        self.target_sources = Counter(one.source for shard in kept for one in shard)
        self.not_chosen = sum(map(len, found)) - len(self)
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
            "prompt": self.form.prompt,
            "audio_window_s": self.student.audio_window_s,
        }
        found = {name: teacher.provenance.get(name) for name in wanted}
        if differing := differences(found, wanted):
            raise PipelineError(f"{teacher.folder} does not fit this student and corpus ({differing})")
        if (share := teacher.provenance.get("timestamps", 0)) != self.settings.timestamps:
            raise PipelineError(
                f"{teacher.folder}: targets with times for a share of {share} of the utterances, train.timestamps is "
                f"{self.settings.timestamps:g}: set it to {share}, or make the cache again: pipeline teacher-cache --update"
            )
        if teacher.rows != self.utterances.rows:
            raise PipelineError(
                f"{teacher.folder}: shards of {teacher.rows} records, expected {self.utterances.rows} as in "
                f"{self.utterances.folder}: its ids are not those of the utterance shards"
            )

    def _index(self, shard: int) -> "list[_Usable]":
        """Returns the shard's utterances that can be trained on, and lists the others in `left_out`."""
        rows = self.utterances.read(shard, only=("id", "text", "seconds", "group"))
        reasons: dict[str, tuple[str, str]] = {}
        scored: list[dict] = [{"target_source": TRANSCRIPT}] * len(rows)
        if self.teacher is not None:
            scored = self._scored(shard, [row["id"] for row in rows])
            reasons = reasons_to_leave_out(self.teacher.shards[shard].get("left_out", []), scored, self.settings)
        usable = []
        for number, (row, of_teacher) in enumerate(zip(rows, scored, strict=True)):
            if reason := reasons.get(row["id"]) or self._reason(row, of_teacher):
                self.left_out.append({"id": row["id"], "reason": reason[0], "detail": reason[1]})
            else:
                usable.append(_Usable(number, row["group"], of_teacher["target_source"]))
        return usable

    def _reason(self, row: dict, scored: dict) -> tuple[str, str] | None:
        if scored["target_source"] == TEACHER:
            return reason_to_leave_out(self.room, row["seconds"], self.form.prompt, scored["targets"].tolist())
        return reason_against_transcript(self.form, self.room, row)

    def _scored(self, shard: int, ids: list[str]) -> list[dict]:
        """Returns COLUMNS of the teacher's records. Raises PipelineError where they are not of the utterances `ids`."""
        assert self.teacher is not None
        scored = self.teacher.read(shard, only=COLUMNS)
        if [row["id"] for row in scored] != ids:
            name = self.teacher.shards[shard]["name"]
            raise PipelineError(f"{self.teacher.folder / name}: its ids are not those of the utterance shard, in order")
        return scored

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
        loaded = []
        for row, number in ((rows[number], number) for number in self.kept[shard]):
            if scored is None:
                loaded.append({**row, **self._decoder_fields(self.form.of_transcript(row))})
            else:
                targets = scored[number]["targets"].tolist()
                self._check_targets(targets, scored[number]["target_source"], row, shard)
                loaded.append({**row, **scored[number], **self._decoder_fields(targets), "bits": self.bits})
        return loaded

    def _decoder_fields(self, targets: list[int]) -> Row:
        """Returns what the decoder reads and predicts."""
        return {"language": self.language, "prompt": prompt_before(self.form.prompt, targets), "targets": targets}

    def _check_targets(self, targets: list[int], source: str, row: dict, shard: int) -> None:
        """Raises PipelineError where a transcript's tokens are others, and where nothing was scored."""
        assert self.teacher is not None
        own_words = source == TEACHER and targets
        if not own_words and targets != self.form.of_transcript(row):
            where = f"{self.teacher.folder / self.teacher.shards[shard]['name']}, {row['id']}"
            raise PipelineError(
                f"{where}: its targets are not the transcript's tokens: the shards do not belong together"
            )


class _Usable(NamedTuple):
    """An utterance that can be trained on."""

    row: int  # in its shard
    group: str
    source: str  # of its targets: TRANSCRIPT or TEACHER
