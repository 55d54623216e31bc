"""pipeline teacher-cache"""

from pipeline.commands.common import chosen, chosen_device, load, say, teacher_source
from pipeline.params import Params
from pipeline.progress import ProgressReport
from stages.teacher_cache.run import cache_teacher


def teacher_cache(params: Params, languages: list[str], restart: bool) -> None:
    device = chosen_device(params)
    for language in chosen(params, languages):
        utterances = params.paths.utterances / language / "train"
        out = params.paths.teacher / language / "train"
        teacher = load(teacher_source(params, language), params.audio_window_s)
        with ProgressReport(f"teacher-cache {language}", "utterances") as progress:
            manifest = cache_teacher(
                teacher, utterances, out, language, params.teacher_cache, device, restart, progress.audio
            )
        size = sum(entry["bytes"] for entry in manifest["shards"])
        left_out = sum(manifest["left_out"].values())
        say(
            f"{out}: {manifest['rows']} utterances, {manifest['tokens']} tokens, top {manifest['settings']['top_k']}, "
            f"{size / manifest['tokens']:.0f} bytes per token, {left_out} left out"
        )
