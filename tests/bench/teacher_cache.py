"""What caching costs beside the teacher's bare forward pass, and against the plain loop.

    python tests/bench/teacher_cache.py --utterances data/utterances/cs/train

bare: the teacher's forward pass to its logits over the very batches of the cache, in the cache's dtype, features ready.
cache: `cache_teacher`, from FLAC shards to written shards.
plain: the loop as published (transformers, float32, batches in file order, the stock feature extractor, full softmax).
The last line says how far plain / cache could go here: to plain's time over that of the matrix products of bare, were each
as fast as the fastest one tried.
"""

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import alternate, arguments, begin, ratio
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperFeatureExtractor

from cache.shards import ShardWriter
from stages.shared.audio import decode_flac
from stages.shared.whisper.device import compute_dtype
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import Whisper, load_whisper
from stages.shared.whisper.targets import decoder_inputs, prompt_ids, target_ids
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings

CPU = torch.device("cpu")
LANGUAGE = "cs"


def main() -> None:
    args = arguments(__doc__, rounds=(3, "alternations"), batch_size=(16, "clips"))
    whisper, shards = begin(args)
    settings = TeacherCacheSettings(batch_size=args.batch_size)
    teacher = load_whisper(args.model, args.window)  # another copy: caching rounds the weights it has
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        utterances = _copy(shards, folder / "utterances")
        batches = _batches(whisper, shards, args.batch_size)

        def cache() -> None:
            shutil.rmtree(folder / "cache", ignore_errors=True)
            cache_teacher(ScoringJob(teacher, LANGUAGE, settings, CPU), utterances, folder / "cache")

        runs = {
            "bare": lambda: _bare(whisper, batches, compute_dtype(settings.dtype, CPU)),
            "cache": cache,
            "plain": lambda: _plain(whisper, shards, args.batch_size, settings.top_k),
        }
        runs["bare"]()  # warms up
        seconds = alternate(runs, args.rounds)
        flops, speed = _flops(whisper, batches), _product_speed(whisper, compute_dtype(settings.dtype, CPU))
    count = sum(map(len, shards))
    print(f"{count} utterances, window {args.window} s, {count / min(seconds['cache']):.1f} utterances/s at best")
    print(ratio(seconds, "cache", "bare"))
    print(ratio(seconds, "plain", "cache"))
    bound = min(seconds["plain"]) * speed / flops
    rates = f"bare at {flops / min(seconds['bare']) / 1e9:.0f} GFLOP/s, the fastest product at {speed / 1e9:.0f}"
    print(f"{flops / 1e9:.0f} GFLOP; {rates}; plain / products alone: {bound:.2f}")


def _copy(shards: list[list[dict]], folder: Path) -> Path:
    """Shards of the clips that fit the window alone, so that all three runs score the same ones."""
    writer = ShardWriter(folder, "utterances", {"language": LANGUAGE, "split": "train"})
    for index, rows in enumerate(shards):
        writer.write(index, rows, seconds=sum(row["seconds"] for row in rows))
    writer.finish(corpus="bench", language=LANGUAGE, split="train")
    return folder


def _batches(whisper: Whisper, shards: list[list[dict]], size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    log_mel, prompt = LogMel(whisper.model.config.num_mel_bins, whisper.audio_window_s), prompt_ids(whisper, LANGUAGE)
    batches = []
    for rows in shards:
        targets = [target_ids(whisper.tokenizer, row["text"], LANGUAGE) for row in rows]
        order = sorted(range(len(rows)), key=lambda row: (-len(targets[row]), row))
        for start in range(0, len(order), size):
            part = order[start : start + size]
            features = log_mel([decode_flac(rows[row]["audio"]) for row in part])
            batches.append((features, decoder_inputs([prompt] * len(part), [targets[row] for row in part], 50257)))
    return batches


@torch.inference_mode()
def _bare(whisper: Whisper, batches: list[tuple[torch.Tensor, torch.Tensor]], dtype: torch.dtype) -> None:
    for features, inputs in batches:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            whisper.model(features, decoder_input_ids=inputs, use_cache=False)


@torch.inference_mode()
def _flops(whisper: Whisper, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """Of the matrix products of `bare`; those inside of attention, a few per cent, are not counted on a CPU."""
    with FlopCounterMode(display=False) as counter:
        _bare(whisper, batches, torch.float32)
    return counter.get_total_flops()


@torch.inference_mode()
def _product_speed(whisper: Whisper, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of many products with an encoder FFN's matrix."""
    weight_FD = whisper.model.model.encoder.layers[0].fc1.weight.to(dtype)
    x_ND = torch.randn(4096, weight_FD.shape[1], dtype=dtype)
    times = []
    for _ in range(100):
        started = time.perf_counter()
        torch.nn.functional.linear(x_ND, weight_FD)
        times.append(time.perf_counter() - started)
    return 2 * len(x_ND) * weight_FD.numel() / min(times)


@torch.inference_mode()
def _plain(whisper: Whisper, shards: list[list[dict]], size: int, top_k: int) -> None:
    extractor, frames = WhisperFeatureExtractor(), 100 * whisper.audio_window_s
    prompt = prompt_ids(whisper, LANGUAGE)
    for rows in shards:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            clips = [decode_flac(row["audio"]) for row in part]
            features = extractor(clips, sampling_rate=16000, return_tensors="pt").input_features[:, :, :frames]
            targets = [target_ids(whisper.tokenizer, row["text"], LANGUAGE) for row in part]
            logits = whisper.model(
                features, decoder_input_ids=decoder_inputs([prompt] * len(targets), targets, 50257)
            ).logits
            top = logits.log_softmax(-1).topk(top_k)
            np.savez(Path(tempfile.gettempdir()) / "plain.npz", top.values.half().numpy(), top.indices.numpy())


if __name__ == "__main__":
    main()
