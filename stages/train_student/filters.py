"""Filters utterances by what the teacher's shards say of them."""

from typing import Any

from cache.errors import PipelineError
from cache.shards import ShardReader
from stages.train_student.settings import TrainSettings

COLUMNS = ("id", "mean_log_prob", "compression_ratio", "word_errors", "words")


def check_filters(teacher: ShardReader, settings: TrainSettings) -> None:
    """Raises PipelineError where a filter asks for what the teacher's shards do not hold."""
    if settings.max_teacher_wer is not None and not teacher.manifest.get("words"):
        raise PipelineError(
            f"{teacher.folder}: max_teacher_wer is {settings.max_teacher_wer}, but the teacher's own transcripts were not "
            "cached, or there was no reference: set teacher_cache.transcribe to true and make the cache again"
        )


def reasons_to_leave_out(teacher: ShardReader, shard: int, settings: TrainSettings) -> dict[str, tuple[str, str]]:
    """Returns id -> (reason, detail) of utterances that the teacher did not score, or that the settings filter out."""
    reasons = {row["id"]: (row["reason"], row["detail"]) for row in teacher.shards[shard].get("left_out", [])}
    pseudo = teacher.provenance["targets"] == "pseudo"
    for row in teacher.read(shard, only=COLUMNS):
        if row["id"] not in reasons and (reason := _filtered(row, settings, pseudo)):
            reasons[row["id"]] = reason
    return reasons


def _filtered(row: dict[str, Any], settings: TrainSettings, pseudo: bool) -> tuple[str, str] | None:
    if settings.max_teacher_wer is not None and row["words"]:
        wer = row["word_errors"] / row["words"]
        if wer > settings.max_teacher_wer:
            return "teacher_wer", f"{wer:.3f}, at most {settings.max_teacher_wer} asked for"
    if settings.min_mean_log_prob is not None and row["mean_log_prob"] < settings.min_mean_log_prob:
        return "teacher_log_prob", f"{row['mean_log_prob']:.3f}, at least {settings.min_mean_log_prob} asked for"
    most = settings.max_compression_ratio
    if pseudo and most is not None and row["compression_ratio"] > most:
        return "teacher_repeats", f"compression ratio {row['compression_ratio']:.2f}, at most {most} asked for"
    return None
