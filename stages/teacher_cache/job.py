"""The work that all shards of a teacher cache have in common: teacher, language, settings."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from cache.errors import PipelineError
from cache.shards import ShardReader
from stages.shared import scoring
from stages.shared.whisper.device import compute_dtype
from stages.shared.whisper.models import Whisper, tokenizer_fingerprint
from stages.shared.whisper.targets import Room, TargetForm, target_form, token_of
from stages.shared.whisper.timestamps import check_timestamps
from stages.teacher_cache.score import Scorer
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.vocabulary import TokenMap, Vocabulary, map_tokens, vocabulary_of


@dataclass(frozen=True)
class ScoringJob:
    """A loaded teacher and all that its shards have in common.

    student: the vocabulary whose token ids are stored; None: the teacher's own. timestamps: the share of the utterances
    whose targets carry times.
    """

    teacher: Whisper
    language: str
    settings: TeacherCacheSettings
    device: torch.device
    student: Vocabulary | None = None
    timestamps: float = 0.0

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return self.student or vocabulary_of(self.teacher)

    @cached_property
    def tokens(self) -> TokenMap:
        return map_tokens(vocabulary_of(self.teacher), self.vocabulary)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type that the teacher computes in; the device decides it where the settings say `auto`."""
        return compute_dtype(self.settings.dtype, self.device)

    def provenance(self, utterances: ShardReader) -> dict[str, Any]:
        """Returns all that the records depend on, for the manifest: a change of any of it makes another cache.

        Raises PipelineError where the vocabulary is too small for top_k, too large for 16 bits, or lacks the language.
        """
        settings, model = self.settings, self.teacher.model
        if not settings.top_k < min(model.config.vocab_size, self.vocabulary.size):
            raise PipelineError(
                f"top_k is {settings.top_k}, expected less than the vocabulary's {self.vocabulary.size}"
            )
        if self.vocabulary.size > np.iinfo(np.uint16).max + 1:
            raise PipelineError(
                f"{self.vocabulary.model_id}: vocabulary of {self.vocabulary.size}, expected at most 65536"
            )
        return {
            "language": self.language,
            "token": token_of(self.teacher.model, self.language),
            "split": utterances.manifest["split"],
            "utterances": utterances.fingerprint(),
            "teacher": self.teacher.model_id,
            "teacher_weights": self.teacher.fingerprint,
            "teacher_vocab_size": model.config.vocab_size,
            "mel_bins": model.config.num_mel_bins,
            "tokenizer": tokenizer_fingerprint(self.vocabulary.tokenizer),
            "vocab_size": self.vocabulary.size,
            "prompt": self.student_form.prompt,
            "targets": settings.targets,
            # absent without times, as in caches of before there were any
            **({"timestamps": self.timestamps} if self.timestamps else {}),
            "transcribed_fraction": settings.transcribed_fraction if settings.targets == "mixed" else None,
            "transcribed": scoring.NORMALISER if settings.transcribes else None,
            "audio_window_s": self.teacher.audio_window_s,
            "top_p": settings.top_p,
            "min_k": settings.effective_min_k,
            "top_k": settings.top_k,
            "bits": settings.bits,
            "temperature": 1.0,
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
        }

    @property
    def student_room(self) -> Room:
        """The student's audio window is the teacher's."""
        return Room(self.teacher.audio_window_s, self.vocabulary.positions)

    @cached_property
    def form(self) -> TargetForm:
        """The form of targets by the teacher's ids. Raises PipelineError where the teacher lacks a token that they need."""
        return target_form(self.teacher, self.language, self.timestamps)

    @cached_property
    def student_form(self) -> TargetForm:
        """The form of targets by the student's ids. Raises PipelineError where the student lacks a token that they need."""
        ids = self.tokens.to_student[self.form.prompt]
        if (ids < 0).any():
            raise PipelineError(
                f"{self.vocabulary.model_id} has no token for '{token_of(self.teacher.model, self.language)}', "
                f"which the teacher {self.teacher.model_id} knows"
            )
        student = self.vocabulary
        if self.timestamps:
            check_timestamps(student.tokenizer, student.size, self.teacher.audio_window_s, student.model_id)
        return TargetForm(student.tokenizer, self.language, ids.tolist(), self.timestamps)

    def scorer(self) -> Scorer:
        return Scorer(self.teacher, self.form.prompt, self.tokens, self.settings, self.dtype)
