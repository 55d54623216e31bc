"""Turns the utterances of a shard into the records of its side-car shard."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cache.errors import PipelineError, is_out_of_memory
from cache.records import TEACHER, TRANSCRIPT
from stages.shared import scoring
from stages.shared.audio import decode_flac, is_silent
from stages.shared.prefetch import map_batches, prefetch
from stages.shared.whisper.decode import Transcriber, Transcript
from stages.shared.whisper.device import fast_products, round_weights
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.targets import reason_to_leave_out, room_of
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.sources import TargetSources
from stages.teacher_cache.vocabulary import TokenMap

log = logging.getLogger(__name__)
ReportProgress = Callable[[int, float], None]  # utterances and seconds of audio done since the last call
# Shapes: B clips of a batch, S encoder positions, D model width, V vocabulary

EMPTY_SCORES = {
    "targets": np.empty(0, np.uint16),
    "target_source": None,
    "top_counts": np.empty(0, np.uint16),
    "top_ids": np.empty(0, np.uint16),
    "top_probs": np.empty(0, np.uint8),
    "tail_log_probs": np.empty(0, np.float32),
    "mean_log_prob": None,
}
NO_TRANSCRIPT = {"teacher_text": None, "compression_ratio": None, "word_errors": None, "words": None}


@dataclass
class ScoredShard:
    index: int
    records: list[dict[str, Any]]  # in the order of the utterances; a record that was left out has no targets
    left_out: list[dict[str, str]]
    tail_V: np.ndarray  # (V,) float32: sum over positions of the distribution outside the kept tokens
    batch_size: int  # the smallest that was used

    @property
    def tokens(self) -> int:
        return sum(len(record["targets"]) for record in self.records)


@dataclass(frozen=True)
class _Batch:
    shard: "_Shard"
    rows: list[int]  # all with targets of one source
    features: torch.Tensor | None  # (B, mels, frames); None if they did not fit into memory
    silent: list[bool]  # by row: whether nothing can be heard

    def split(self, size: int) -> "list[_Batch]":
        """Splits the batch into parts of at most `size` rows, the last part first."""
        parts = [slice(start, start + size) for start in range(0, len(self.rows), size)]
        return [
            _Batch(
                self.shard, self.rows[part], None if self.features is None else self.features[part], self.silent[part]
            )
            for part in reversed(parts)
        ]


@dataclass
class _Shard:
    """A shard that is being scored."""

    index: int
    utterances: list[dict]
    targets: list[list[int]]  # of the transcripts, by row; empty where they are the teacher's own words
    waiting: int  # number of rows that are not yet scored
    left_out: dict[int, tuple[str, str]]  # row -> reason, detail
    batch_size: int  # the smallest that was used
    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    tails: dict[int, np.ndarray] = field(default_factory=dict)  # first row of a batch -> its share of the tail, (V,)


class ShardScorer:
    """Runs a job's teacher over shards of utterances, on the device that holds its model."""

    def __init__(self, job: ScoringJob, sources: TargetSources):
        self.job, self.settings, self.sources, self.scorer = job, job.settings, sources, job.scorer()
        self.batch_size = job.settings.batch_size  # halved whenever a batch does not fit into memory
        round_weights(job.teacher.model.requires_grad_(False), job.dtype)
        self.log_mel = LogMel(job.teacher.model.config.num_mel_bins, job.teacher.audio_window_s)
        self.transcriber = Transcriber(job.teacher, job.language, job.dtype) if job.settings.transcribes else None

    def run(self, shards: Iterable[tuple[int, list[dict]]], report_progress: ReportProgress) -> Iterator[ScoredShard]:
        """Yields the shards, each when all its rows are scored. Reading and log-mel run ahead of the model, also across shards.

        shards: (index, utterances) of each.
        """
        with fast_products(self.job.dtype):
            batches = prefetch(self._batches(shards))
            for batch in map_batches(self._score, batches, self.job.teacher.model.device):
                shard = batch.shard
                shard.waiting -= len(batch.rows)
                report_progress(len(batch.rows), sum(shard.utterances[row]["seconds"] for row in batch.rows))
                if not shard.waiting:
                    early = [row for row in shard.left_out if row not in shard.records]
                    report_progress(len(early), sum(shard.utterances[row]["seconds"] for row in early))
                    yield _finished(shard, self.job.vocabulary.size)

    def _batches(self, shards: Iterable[tuple[int, list[dict]]]) -> Iterator[_Batch]:
        """Yields batches, the longest rows first: there is little padding, and a lack of memory shows at once."""
        for index, utterances in shards:
            shard = self._start_shard(index, utterances)
            kept = [row for row in range(len(utterances)) if row not in shard.left_out]
            waiting = sorted(kept, key=lambda row: (not shard.targets[row], -self._length(shard, row), row))
            while True:
                next_rows = waiting[: self.batch_size]
                rows = [row for row in next_rows if bool(shard.targets[row]) == bool(shard.targets[next_rows[0]])]
                yield _Batch(shard, rows, *self._features_if_they_fit(shard, rows))
                waiting = waiting[len(rows) :]
                if not waiting:
                    break

    def _features(self, shard: _Shard, rows: list[int]) -> tuple[torch.Tensor, list[bool]]:
        utterances = [shard.utterances[row] for row in rows]
        clips = [decode_flac(utterance["audio"], utterance["seconds"]) for utterance in utterances]
        return self.log_mel(clips) if clips else torch.empty(0), [is_silent(clip) for clip in clips]

    def _features_if_they_fit(self, shard: _Shard, rows: list[int]) -> tuple[torch.Tensor | None, list[bool]]:
        try:
            return self._features(shard, rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None, []  # `_score` makes the features again, for fewer clips

    def _start_shard(self, index: int, utterances: list[dict]) -> _Shard:
        job, form = self.job, self.job.form
        targets, left_out = [], {}
        for row, utterance in enumerate(utterances):
            wanted = self.sources.of(utterance) == TRANSCRIPT
            ids = form.of_transcript(utterance) if wanted else []
            targets.append(ids)
            if reason := reason_to_leave_out(room_of(job.teacher), utterance["seconds"], form.prompt, ids):
                left_out[row] = reason
            elif wanted and not utterance["text"]:
                left_out[row] = "no_text", "no transcript: targets 'mixed' would score the teacher's own words"
        return _Shard(index, utterances, targets, len(utterances) - len(left_out), left_out, self.batch_size)

    def _length(self, shard: _Shard, row: int) -> float:
        return len(shard.targets[row]) or shard.utterances[row]["seconds"]

    def _score(self, batch: _Batch) -> _Batch:
        """Puts the batch's records into its shard. Where a batch does not fit into memory, it and all later ones are halved."""
        waiting = [batch] if batch.rows else []
        while waiting:
            part = waiting.pop()
            if len(part.rows) > self.batch_size or not self._fits(part):
                waiting += part.split(self.batch_size)
        batch.shard.batch_size = min(batch.shard.batch_size, self.batch_size)
        return batch

    def _fits(self, batch: _Batch) -> bool:
        """Scores the batch. Returns whether it fitted into memory."""
        try:
            self._score_at_once(batch)
            return True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        # after the except clause: within it the error keeps the batch's tensors alive
        self._lower(len(batch.rows), reason)
        return False

    def _lower(self, rows: int, reason: str) -> None:
        """Halves the batch size. Raises PipelineError where it is 1."""
        if rows == 1:
            raise PipelineError(
                f"out of memory with teacher_cache.batch_size 1 ({reason.strip().partition(chr(10))[0]}): free memory, or use "
                "a machine with more; what is done is kept"
            )
        if rows // 2 < self.batch_size:
            self.batch_size = rows // 2
            log.warning("out of memory with a batch of %d: going on with batches of %d", rows, self.batch_size)
        if self.job.teacher.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _score_at_once(self, batch: _Batch) -> None:
        """Scores the batch in one step. The encoder runs once for each clip, also where it is transcribed first.

        Where it raises, the shard is unchanged but for the tail of this batch, which the next attempt replaces.
        """
        shard = batch.shard
        made = self._features(shard, batch.rows) if batch.features is None else (batch.features, batch.silent)
        encoded_BSD = self.scorer.encode(made[0])
        targets = [shard.targets[row] for row in batch.rows]
        source = TRANSCRIPT if targets[0] else TEACHER
        listens = self.transcriber and (source == TEACHER or self.settings.transcribe)
        transcripts = self.transcriber.decode(encoded_BSD, made[1]) if self.transcriber and listens else None
        left_out: dict[int, tuple[str, str]] = {}
        if transcripts and source == TEACHER:
            heard = zip(batch.rows, transcripts, strict=True)
            targets = [self.job.form.of_words(shard.utterances[row], own.tokens) for row, own in heard]
            reasons = [_unusable(transcript, self.job.tokens) for transcript in transcripts]
            left_out = {row: reason for row, reason in zip(batch.rows, reasons, strict=True) if reason}
        kept = [number for number, row in enumerate(batch.rows) if row not in left_out]
        scored: Iterator[dict[str, Any]] = iter([])
        if kept:
            records, tail_V = self.scorer.score(encoded_BSD[kept], [targets[n] for n in kept])
            shard.tails[batch.rows[0]] = tail_V
            scored = iter(records)
        for number, row in enumerate(batch.rows):
            fields = (
                NO_TRANSCRIPT
                if transcripts is None
                else self._transcript_fields(transcripts[number], self._reference(shard.utterances[row]))
            )
            scores = EMPTY_SCORES if row in left_out else {**next(scored), "target_source": source}
            shard.records[row] = {**scores, **fields}
        shard.left_out.update(left_out)

    def _reference(self, utterance: dict[str, Any]) -> str:
        """Returns the transcript that the teacher's words are compared with, '' where there is none or it is not used."""
        unused = self.settings.targets == "mixed" and self.sources.of(utterance) == TEACHER
        return "" if unused else utterance["text"]

    def _transcript_fields(self, transcript: Transcript, reference: str) -> dict[str, Any]:
        counts = scoring.score(reference, transcript.text, self.job.language) if reference else {}
        return {
            "teacher_text": transcript.text,
            "compression_ratio": transcript.compression_ratio,
            "word_errors": counts.get("word_errors"),
            "words": counts.get("words"),
        }


def _finished(shard: _Shard, vocab_size: int) -> ScoredShard:
    records = [
        {"id": utterance["id"], **shard.records.get(row, {**EMPTY_SCORES, **NO_TRANSCRIPT})}
        for row, utterance in enumerate(shard.utterances)
    ]
    left_out = [
        {"id": shard.utterances[row]["id"], "reason": reason, "detail": detail}
        for row, (reason, detail) in sorted(shard.left_out.items())
    ]
    tail_V = np.zeros(vocab_size)
    for first in sorted(shard.tails):  # a fixed order, whichever batch was done first: the sums round alike
        tail_V += shard.tails[first]
    return ScoredShard(shard.index, records, left_out, tail_V.astype(np.float32), shard.batch_size)


def _unusable(transcript: Transcript, tokens: TokenMap) -> tuple[str, str] | None:
    """Returns (reason, detail) if the teacher's own transcript cannot be the targets, else None."""
    if transcript.looped:
        return "loop", f"the teacher repeats itself: {transcript.text[-60:]!r}"
    if transcript.unended:
        return "no_end", f"the teacher goes on to its last token: {transcript.text[-60:]!r}"
    if not transcript.text:
        return "nothing_heard", "the teacher's own text is empty"
    if (tokens.to_student[transcript.tokens] < 0).any():
        return "unknown_token", f"the teacher says a token that the student has not: {transcript.text[-60:]!r}"
    return None
