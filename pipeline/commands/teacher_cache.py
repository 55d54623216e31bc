"""pipeline teacher-cache"""

from typing import Any

from pipeline.commands.common import chosen, chosen_device, load, say, teacher_source
from pipeline.params import Params
from pipeline.progress import ProgressReport
from stages.teacher_cache.run import LEFT_OUT, cache_teacher
from stages.teacher_cache.vocabulary import load_vocabulary


def teacher_cache(params: Params, languages: list[str], restart: bool) -> None:
    device = chosen_device(params)
    for language in chosen(params, languages):
        utterances = params.paths.utterances / language / "train"
        out = params.paths.teacher / language / "train"
        teacher = load(teacher_source(params, language), params.audio_window_s)
        student = load_vocabulary(params.student)
        with ProgressReport(f"teacher-cache {language}", "utterances") as progress:
            manifest = cache_teacher(
                teacher, utterances, out, language, params.teacher_cache, device, restart, progress.audio, student
            )
        say(f"{out}: {summary(manifest)}" + (f", see {out / LEFT_OUT}" if manifest["left_out"] else ""))


def summary(manifest: dict[str, Any]) -> str:
    size = sum(entry["bytes"] for entry in manifest["shards"])
    parts = [f"{manifest['rows']} utterances", f"{manifest['tokens']} tokens"]
    if manifest["tokens"]:
        parts.append(f"{size / manifest['tokens']:.0f} bytes per token")
    if "teacher_wer" in manifest:
        parts.append(f"teacher's own WER {100 * manifest['teacher_wer']:.1f} %")
    left_out = ", ".join(f"{count} {reason}" for reason, count in manifest["left_out"].items())
    return ", ".join(parts) + (f"; left out: {left_out}" if left_out else "")
