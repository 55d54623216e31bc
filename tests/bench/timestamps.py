"""Asks models when speech begins and ends, by Whisper's tokens of time, on the clips of a test split.

    python tests/bench/timestamps.py openai/whisper-base models/cs/lora --utterances data/utterances/cs/test --clips 60

A model hears each clip in the window of its training. It decodes greedily by the rules of times, as faster-whisper and
whisper.cpp do unless they are told otherwise. Counted are clips with a time before and after the words. The error is that
of the last time against the clip's end.

After a clip the window is empty, and its end is easy to hear. With --noise quiet noise fills the rest, as in a recording
that goes on.
"""

import argparse
import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from common import cpu_name
from transformers.modeling_outputs import BaseModelOutput

from cache.shards import ShardReader
from stages.shared import scoring
from stages.shared.audio import SAMPLE_RATE, decode_flac
from stages.shared.student.loading import load_model
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.device import compute_dtype, round_weights
from stages.shared.whisper.timestamps import PER_SECOND

BATCH = 8


class Heard(NamedTuple):
    """What a model says of a clip. start, end: seconds, None where no time stands before or after the words."""

    start: float | None
    end: float | None
    text: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders or hub ids")
    parser.add_argument("--utterances", type=Path, default=Path("data/utterances/cs/test"))
    parser.add_argument("--window", type=int, default=4, help="seconds; longer clips are not asked about")
    parser.add_argument("--clips", type=int, help="the first so many; default: all")
    parser.add_argument("--noise", type=float, default=0.0, help="loudness after the clip; 1 is full scale")
    parser.add_argument("--language", default="cs")
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = compute_dtype(args.dtype, torch.device("cpu"))
    machine = f"{cpu_name()}, {args.threads} threads, torch {torch.__version__}, {dtype}"
    print(f"{machine}, window {args.window} s, noise {args.noise:g}", flush=True)
    records = ShardReader(args.utterances, "utterances").records()
    rows = [row for row in records if row["seconds"] <= args.window and scoring.normalise(row["text"], args.language)]
    clips = [with_noise(decode_flac(row["audio"], row["seconds"]), args) for row in rows[: args.clips]]
    for model in args.models:
        whisper = load_model(model, args.window).whisper
        round_weights(whisper.model.requires_grad_(False), dtype)
        heard = listen(Transcriber(whisper, args.language, dtype), clips)
        print(f"{model}: {told(rows[: args.clips], heard, args.language)}", flush=True)


def with_noise(clip: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """Returns a clip, (samples,), with noise up to the end of the window, where noise is asked for."""
    if not args.noise:
        return clip
    rest = args.window * SAMPLE_RATE - len(clip)
    noise = args.noise * np.random.default_rng(len(clip)).standard_normal(rest)
    return np.concatenate([clip, noise.astype(np.float32)])


@torch.inference_mode()
def listen(transcriber: Transcriber, clips: list[np.ndarray]) -> list[Heard]:
    """Decodes with times. The transcriber has the features, the settings and the route through experts."""
    model, config = transcriber.whisper.model, copy.deepcopy(transcriber.config)
    config.update(return_timestamps=True, suppress_tokens=model.generation_config.suppress_tokens)
    heard: list[Heard] = []
    for begin in range(0, len(clips), BATCH):
        with transcriber._route(), transcriber._autocast():
            encoded = model.model.encoder(transcriber.log_mel(clips[begin : begin + BATCH])).last_hidden_state
            given = dict(**transcriber.spoken, generation_config=config, return_segments=True)
            found: Any = model.generate(encoder_outputs=BaseModelOutput(encoded), **given)
        parts = ([token for one in clip for token in one["tokens"].tolist()] for clip in found["segments"])
        heard += [read(transcriber, tokens) for tokens in parts]
    return heard


def read(transcriber: Transcriber, tokens: list[int]) -> Heard:
    first, end = transcriber.prompt[-1] + 1, transcriber.whisper.tokenizer.eos_token_id  # first: the id of <|0.00|>
    ids = [token for token in tokens if token != end]
    edges = ((token - first) / PER_SECOND if token >= first else None for token in (ids[0], ids[-1]))
    return Heard(*edges, transcriber.text([token for token in ids if token < first]))


def told(rows: list[dict], heard: list[Heard], language: str) -> str:
    pairs = list(zip(rows, heard, strict=True))
    ends = [
        (one.end, row["seconds"]) for row, one in pairs if one.text and one.start is not None and one.end is not None
    ]
    counts = [scoring.score(row["text"], one.text, language) for row, one in pairs]
    late = np.array([end - seconds for end, seconds in ends] or [np.nan])
    off = np.abs(late)
    return (
        f"{len(rows)} clips, {len(ends)} with a time before and after the words; the last time is {np.median(late):+.2f} s "
        f"late in the median, off by {np.median(off):.2f} s in the median and {np.percentile(off, 95):.2f} s at 95 %; WER of "
        f"the words {100 * scoring.totals(counts)['wer']:.1f} %"
    )


if __name__ == "__main__":
    main()
