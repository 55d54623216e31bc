"""Filters utterances by what the teacher's shards say of them."""

from typing import Any

from cache.errors import PipelineError
from cache.records import TEACHER
from cache.shards import ShardReader
from stages.train_student.settings import TrainSettings

COLUMNS = ("id", "targets", "target_source", "mean_log_prob", "compression_ratio", "word_errors", "words")


def check_filters(teacher: ShardReader, settings: TrainSettings) -> None:
    """Raises PipelineError where a filter asks for what the teacher's shards do not hold."""
    if settings.max_teacher_wer is not None and not teacher.manifest.get("words"):
        raise PipelineError(
            f"{teacher.folder}: max_teacher_wer is {settings.max_teacher_wer}, but the teacher's own transcripts were not "
            "cached, or there was no reference: set teacher_cache.transcribe to true and make the cache again"
        )


def reasons_to_leave_out(
    left_out: list[dict[str, str]], scored: list[dict[str, Any]], settings: TrainSettings
) -> dict[str, tuple[str, str]]:
    """Returns id -> (reason, detail) of utterances that the teacher did not score, or that the settings filter out.

    left_out: those that the teacher did not score. scored: COLUMNS of all records of the shard.
    """
    reasons = {row["id"]: (row["reason"], row["detail"]) for row in left_out}
    for row in scored:
        if row["id"] not in reasons and (reason := _filtered(row, settings)):
            reasons[row["id"]] = reason
    return reasons


def _filtered(row: dict[str, Any], settings: TrainSettings) -> tuple[str, str] | None:
    if settings.max_teacher_wer is not None and row["words"]:
        wer = row["word_errors"] / row["words"]
        if wer > settings.max_teacher_wer:
            return "teacher_wer", f"{wer:.3f}, at most {settings.max_teacher_wer} asked for"
    least, log_prob = settings.min_mean_log_prob, row["mean_log_prob"]
    if least is not None and log_prob is not None and log_prob < least:
        return "teacher_log_prob", f"{log_prob:.3f}, at least {least} asked for"
    most, ratio = settings.max_compression_ratio, row["compression_ratio"]
    if row["target_source"] == TEACHER and most is not None and ratio is not None and ratio > most:
        return "teacher_repeats", f"compression ratio {ratio:.2f}, at most {most} asked for"
    return None
