"""An exported model in the programs that it is for: speed, word error rate, and how many texts are ours, in one run.

    pipeline export models/cs/lora-kd --to whisper --out exported/whisper       # and ctranslate2, ggml, onnx
    python tests/bench/runtimes.py --model models/cs/lora-kd --exported exported --utterances data/utterances/cs/test

Greedy, on the test clips that fit the window, one clip at a time. A row is left out where its folder is not there. The
real-time factor is seconds of work for a second of audio, features included, the median of the rounds; the rounds of all
rows alternate. Texts that end in a loop here are not compared: we cut them.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from common import alternate, cpu_name
from runtimes import (
    Says,
    ctranslate2_says,
    faster_whisper_says,
    onnx_says,
    ours_says,
    transformers_says,
    whisper_cpp_says,
)

from cache.shards import ShardReader
from stages.shared import scoring
from stages.shared.audio import SAMPLE_RATE, decode_flac
from stages.shared.student.loading import load_model
from stages.shared.whisper.decode import loop_start
from stages.shared.whisper.device import use_all_cores

LANGUAGE = "cs"


def main() -> None:
    args = arguments()
    use_all_cores()
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    ours = load_model(args.model).whisper
    window = ours.audio_window_s
    rows = [row for row in read(args.utterances) if row["seconds"] <= window][: args.clips]
    clips = [decode_flac(row["audio"]) for row in rows]
    systems = {"ours": ours_says(ours, LANGUAGE)} | found(args.exported, window)
    said: dict[str, list[str]] = {}
    runs = {
        name: (lambda name=name, says=says: said.update({name: one_by_one(says, clips)}))
        for name, says in systems.items()
    }
    seconds = alternate(runs, args.rounds)
    audio = sum(map(len, clips)) / SAMPLE_RATE
    print(f"\n{len(clips)} clips, {audio:.0f} s of audio, window {window} s\n")
    print("| program | real-time factor | WER % | 95 % interval | our text |\n| --- | --- | --- | --- | --- |")
    compared = [n for n, text in enumerate(said["ours"]) if loop_start(ours.tokenizer.encode(text)) is None]
    for name, texts in said.items():
        scores = [{"id": n, **scoring.score(row["text"], texts[n], LANGUAGE)} for n, row in enumerate(rows)]
        low, high = scoring.interval(scores)
        same = sum(texts[n] == said["ours"][n] for n in compared)
        factor = statistics.median(seconds[name]) / audio
        wer = 100 * scoring.totals(scores)["wer"]
        print(
            f"| {name} | {factor:.3f} | {wer:.1f} | {100 * low:.1f} to {100 * high:.1f} | {same} of {len(compared)} |"
        )
    if args.differences:
        differences(said, compared)


def differences(said: dict[str, list[str]], compared: list[int]) -> None:
    for name, texts in said.items():
        for n in compared:
            if texts[n] != said["ours"][n]:
                print(f"{name}, clip {n}: {texts[n]!r}, ours {said['ours'][n]!r}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/cs/lora-kd")
    parser.add_argument(
        "--exported", type=Path, default=Path("exported"), help="holds whisper, ctranslate2, ggml, onnx"
    )
    parser.add_argument("--utterances", type=Path, default=Path("data/utterances/cs/test"))
    parser.add_argument("--clips", type=int, default=1000, help="at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--differences", action="store_true", help="list the texts that are not ours")
    return parser.parse_args()


def read(folder: Path) -> list[dict]:
    reader = ShardReader(folder, "utterances")
    return [row for shard in range(len(reader.shards)) for row in reader.read(shard)]


def found(folder: Path, window: int) -> dict[str, Says]:
    """The rows whose folder is there."""
    makers = {
        "transformers": ("whisper", lambda path: transformers_says(path, LANGUAGE, window)),
        "CTranslate2 float32": ("ctranslate2", lambda path: ctranslate2_says(path, LANGUAGE, window)),
        "CTranslate2 int8": ("ctranslate2", lambda path: ctranslate2_says(path, LANGUAGE, window, "int8")),
        "faster-whisper float32": ("ctranslate2", lambda path: faster_whisper_says(path, LANGUAGE, window)),
        "ONNX Runtime": ("onnx", lambda path: onnx_says(path, LANGUAGE, window)),
        "whisper.cpp fp16": ("ggml", lambda path: whisper_cpp_says(path, LANGUAGE, window)),
    }
    return {name: make(folder / place) for name, (place, make) in makers.items() if (folder / place).is_dir()}


def one_by_one(says: Says, clips: list[np.ndarray]) -> list[str]:
    return [says([clip])[0] for clip in clips]


if __name__ == "__main__":
    main()
