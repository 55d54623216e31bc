"""pipeline teacher-cache"""

from typing import Any

from cache.description import target_counts
from cache.progress import Progress
from cache.records import TARGET_COUNTS
from cache.resume import Rerun
from cache.shards import LEFT_OUT
from pipeline.commands.common import chosen_device, languages_or_all, load, needed_token, say, teacher_sources
from pipeline.errors import each
from pipeline.params import Params
from pipeline.progress import ProgressReport
from stages.shared.whisper.languages import code_of
from stages.shared.whisper.models import find_model
from stages.teacher_cache.cluster import cache_teacher_on_ray
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.vocabulary import load_vocabulary
from stages.teacher_cache.worker import ScoringRequest


def teacher_cache(params: Params, languages: list[str], rerun: Rerun) -> None:
    each(languages_or_all(params, languages), str, lambda language: _teacher_cache(params, language, rerun))


def _teacher_cache(params: Params, language: str, rerun: Rerun) -> None:
    utterances, out = params.paths.split(language, "train"), params.paths.teacher_shards(language)
    teachers, token = teacher_sources(params, language), needed_token(params, language)
    task = ScoringRequest(
        teachers,
        params.student,
        params.audio_window_s,
        code_of(language),
        params.teacher_cache,
        utterances,
        out,
        token,
        params.train.timestamps,
    )
    cache = on_ray if params.cluster.engine == "ray" else here
    with ProgressReport(f"teacher-cache {language}", "utterances") as progress:
        manifest = cache(task, params, rerun, progress.audio)
    say(f"{out}: {summary(manifest)}" + (f", see {out / LEFT_OUT}" if manifest["left_out"] else ""))


def here(task: ScoringRequest, params: Params, rerun: Rerun, progress: Progress[float]) -> dict[str, Any]:
    device = chosen_device(params)
    student = load_vocabulary(task.student)
    job = task.job((load(source, task.audio_window_s) for source in task.teachers), student, device)
    return cache_teacher(job, task.utterances, task.out, rerun, progress)


def on_ray(task: ScoringRequest, params: Params, rerun: Rerun, progress: Progress[float]) -> dict[str, Any]:
    """The teacher is looked for here first: its absence shows at once, and one machine fetches it once."""
    for teacher in task.teachers:
        say(find_model(teacher).line)
    return cache_teacher_on_ray(task, params.cluster, params.device, rerun, progress, say)


def summary(manifest: dict[str, Any]) -> str:
    size = sum(entry["bytes"] for entry in manifest["shards"])
    parts = [f"{manifest['rows']} utterances"]
    if manifest["settings"]["targets"] == "mixed":
        parts.append(target_counts({source: manifest[name] for source, name in TARGET_COUNTS.items()}))
    parts.append(f"{manifest['tokens']} tokens")
    if manifest["tokens"]:
        parts.append(f"{size / manifest['tokens']:.0f} bytes per token")
    if "teacher_wer" in manifest:
        parts.append(f"teacher's own WER {100 * manifest['teacher_wer']:.1f} %")
    left_out = ", ".join(f"{count} {reason}" for reason, count in manifest["left_out"].items())
    return ", ".join(parts) + (f"; left out: {left_out}" if left_out else "")
