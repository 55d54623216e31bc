"""Bytes per token of a teacher cache, and what rounding changes, for several settings on the same real speech.

    python tests/bench/cache_size.py --utterances data/utterances/cs/train

JS: mean Jensen-Shannon divergence in nats between the stored and the exact distribution over the kept tokens and the tail,
all from float32 logits. log p: largest difference of a log-probability where p > 0.01. mass: mean and 5th percentile of
the kept mass. `float16` is 64 tokens at every position with float16 log-probabilities, written with the same Parquet writer.
"""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import arguments, begin
from torch.nn import functional as F

from cache import parquet
from cache.distributions import stored_log_probs
from cache.records import FIELDS
from stages.shared.audio import decode_flac
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.targets import decoder_inputs, prompt_ids, target_positions
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.shard import ShardScorer

LANGUAGE = "cs"
DEFAULT = TeacherCacheSettings()
CHOICES = [dict(bits=7), dict(bits=8), dict(bits=7, top_p=1.0), dict(bits=7, top_k=32)]


def main() -> None:
    args = arguments(__doc__, exact=(128, "utterances of which the exact distributions are computed"))
    whisper, shards = begin(args)
    rows = [row for shard in shards for row in shard]
    results = [_measured(whisper, rows, args.exact, choice) for choice in CHOICES]
    print(f"{len(rows)} utterances, {results[0]['tokens']} tokens\n")
    print("| settings | tokens kept | mass | bytes per token | JS | log p |\n| --- | --- | --- | --- | --- | --- |")
    for choice, found in zip(CHOICES, results, strict=True):
        name = ", ".join(f"{key} {value}" for key, value in choice.items())
        print(
            f"| {name} | {found['kept']:.1f} | {found['mass']:.3f}, {found['mass_5']:.3f} | {found['bytes']:.1f} | "
            f"{found['js']:.1e} | {found['log_p']:.3f} |",
            flush=True,
        )
    print(f"| float16 | 64.0 | | {_float16_bytes(whisper, rows):.1f} | | |")


def _records(whisper: Whisper, rows: list[dict], **choice: Any) -> list[dict]:
    settings = TeacherCacheSettings(dtype="fp32", **choice)
    job = ScoringJob(whisper, LANGUAGE, settings, torch.device("cpu"))
    (shard,) = ShardScorer(job).run([(0, rows)], lambda *_: None)
    return shard.records


def _measured(whisper: Whisper, rows: list[dict], exact: int, choice: dict[str, Any]) -> dict[str, float]:
    records = _records(whisper, rows, **choice)
    file = io.BytesIO()
    parquet.write(file, FIELDS["teacher"], records)
    tokens = sum(len(record["targets"]) for record in records)
    errors = [
        _errors(whisper, *pair, choice.get("bits", DEFAULT.bits)) for pair in zip(rows[:exact], records, strict=False)
    ]
    js, log_p, mass = (np.concatenate(parts) for parts in zip(*errors, strict=True))
    kept = np.concatenate([record["top_counts"] for record in records]).mean()
    return {
        "tokens": tokens,
        "bytes": len(file.getvalue()) / tokens,
        "kept": kept,
        "js": js.mean(),
        "log_p": log_p.max(),
        "mass": mass.mean(),
        "mass_5": np.percentile(mass, 5),
    }


@torch.inference_mode()
def _errors(whisper: Whisper, row: dict, record: dict, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per position: JS between stored and exact bins; the largest log-probability error where p > 0.01; the kept mass."""
    prompt, targets = prompt_ids(whisper, LANGUAGE), record["targets"].tolist()
    features = LogMel(whisper.model.config.num_mel_bins, whisper.audio_window_s)([decode_flac(row["audio"])])
    hidden = whisper.model.model(
        features, decoder_input_ids=decoder_inputs([prompt], [targets], 50257)
    ).last_hidden_state
    logits = F.linear(hidden[target_positions([prompt], [targets])], whisper.model.proj_out.weight).double()
    dense = logits.softmax(-1).numpy()
    ends = np.cumsum(record["top_counts"])
    js, log_p, mass = [], [], []
    for position, (start, end) in enumerate(zip(ends - record["top_counts"], ends, strict=True)):
        exact = dense[position, record["top_ids"][start:end]]
        stored = np.exp(stored_log_probs(record["top_probs"][start:end], bits).astype(float))
        p = np.append(exact, 1 - exact.sum())
        q = np.append(stored, np.exp(record["tail_log_probs"][position]))
        log_p.append(np.abs(np.log(q / p)[p > 0.01]).max(initial=0))
        js.append(_js(p, q / q.sum()))
        mass.append(exact.sum())
    return np.array(js), np.array(log_p), np.array(mass)


def _js(p: np.ndarray, q: np.ndarray) -> float:
    m = (p + q) / 2
    return float(0.5 * ((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()))


def _float16_bytes(whisper: Whisper, rows: list[dict]) -> float:
    records = _records(whisper, rows, top_p=1.0, bits=8)
    table = pa.table({
        "ids": [record["top_ids"] for record in records],
        "log_probs": [stored_log_probs(record["top_probs"], 8).astype(np.float16) for record in records],
        "tail": [record["tail_log_probs"] for record in records],
    })  # fmt: skip
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return len(file.getvalue()) / sum(len(record["targets"]) for record in records)


if __name__ == "__main__":
    main()
