"""Measures the join of windows and the words' times on speech of several minutes: test clips with known places.

Word error rate of the clips each alone, of the whole, and of the whole without overlap; errors of the times.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from common import cpu_name
from long_speech import Clip, edge_errors, one_after_the_other, without_edges, words_of

from cache.shards import ShardReader
from stages.shared import scoring, windows
from stages.shared.audio import decode_flac
from stages.shared.student.loading import load_model
from stages.shared.whisper.decode import Transcriber, Transcript
from stages.shared.whisper.device import compute_dtype, round_weights, use_all_cores
from stages.shared.whisper.joining import join_windows

PAUSES = {"0.1 to 1 s": [0.1, 0.2, 0.3, 0.5, 0.7, 1.0], "none": [0.0], "half none": [0.0, 0.0, 0.0, 0.2, 0.5, 1.0]}
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=Path, default=Path("data/utterances/cs/test"))
    parser.add_argument("--model", default="openai/whisper-base")
    parser.add_argument("--window", type=int, help="seconds; default: that of the model's training")
    parser.add_argument("--longest", type=float, default=4.0, help="seconds of a clip")
    parser.add_argument("--clips", type=int, help="the first so many; default: all")
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--language", default="cs")
    args = parser.parse_args()
    use_all_cores()
    dtype = compute_dtype(args.dtype, torch.device("cpu"))
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {dtype}", flush=True)
    model = load_model(args.model, args.window)
    round_weights(model.whisper.model.requires_grad_(False), dtype)
    transcriber = Transcriber(model.whisper, args.language, dtype)
    reader = ShardReader(args.utterances, "utterances")
    rows = [row for shard in range(len(reader.shards)) for row in reader.read(shard)]
    clips = [
        Clip(row["text"], without_edges(decode_flac(row["audio"])))
        for row in rows
        if row["seconds"] <= args.longest and scoring.normalise(row["text"], args.language)
    ][: args.clips]
    print(f"{args.model}, window {model.whisper.audio_window_s} s, {len(clips)} clips of at most {args.longest:g} s")
    alone = [one.text for one in decoded(transcriber, [clip.samples for clip in clips])]
    reference = " ".join(clip.text for clip in clips)
    print(f"each clip alone: WER {wer(reference, ' '.join(alone), args.language):.1f} %", flush=True)
    for name, pauses in PAUSES.items():
        sound, placed = one_after_the_other(clips, pauses, seed=0)
        for label, overlap in (("", windows.OVERLAP_S), (", no overlap", 0.0)):
            found, shared = transcribed(transcriber, sound, overlap)
            text = " ".join(one.text for one in found if one.text)
            print(
                f"pauses {name}{label}: {len(sound) / 16000 / 60:.1f} min, {len(found)} windows, {shared} overlaps, WER "
                f"{wer(reference, text, args.language):.1f} %, against the clips alone "
                f"{wer(' '.join(alone), text, args.language):.1f} %",
                flush=True,
            )
            if overlap:
                for what, late in zip(
                    ("begin", "end"), edge_errors(placed, words_of(found), args.language), strict=True
                ):
                    off = np.abs(late)
                    print(
                        f"    {len(late)} words that {what} a clip: median {np.median(late):+.2f} s, "
                        f"off by {np.median(off):.2f} s in the median, {np.percentile(off, 95):.2f} s at 95 %"
                    )


def decoded(transcriber: Transcriber, clips: list[np.ndarray], timed: bool = False) -> list[Transcript]:
    found: list[Transcript] = []
    for start in range(0, len(clips), BATCH):
        part = clips[start : start + BATCH]
        found += transcriber.with_gates(part, timed=[timed] * len(part))[0]
    return found


def transcribed(transcriber: Transcriber, sound: np.ndarray, overlap: float) -> tuple[list[Transcript], int]:
    """The windows of the whole, joined, and how many cuts were in no pause."""
    usual, windows.OVERLAP_S = windows.OVERLAP_S, overlap
    try:
        cut = list(windows.cut_at_pauses([sound], transcriber.whisper.audio_window_s))
    finally:
        windows.OVERLAP_S = usual
    found = decoded(transcriber, [window.samples for window in cut], timed=True)
    return list(join_windows(zip(cut, found, strict=True))), sum(window.before > 0 for window in cut)


def wer(reference: str, text: str, language: str) -> float:
    return 100 * scoring.totals([scoring.score(reference, text, language)])["wer"]


if __name__ == "__main__":
    main()
