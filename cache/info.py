"""Counts what a folder of shards holds, shard by shard: memory does not grow with the folder."""

from typing import Any

import numpy as np

from cache.distributions import bounded, entropies
from cache.progress import Progress, silent
from cache.records import MAX_SECONDS, TARGET_COUNTS
from cache.shards import MANIFEST, ShardReader

# Shapes: N positions of a shard

MASS_STEP, LENGTH_STEP = 1e-4, 0.1  # bin widths of the histograms that give the quantiles; lengths in seconds
QUANTILES = {"p5": 0.05, "median": 0.5, "p95": 0.95}


def statistics(reader: ShardReader, progress: Progress[str] = silent) -> dict[str, Any]:
    """Returns the statistics of a finished folder as JSON values, None for a number that is not known."""
    manifest = reader.manifest
    size = sum(entry["bytes"] for entry in reader.shards)
    common = {
        "folder": str(reader.folder),
        "kind": reader.kind,
        "format": reader.format,
        "format_version": manifest["format_version"],
        "settings": reader.provenance,
        "shards": len(reader.shards),
        "utterances": sum(reader.rows),
        "hours": sum(entry.get("seconds", 0) for entry in reader.shards) / 3600,
        "bytes": size,
        "left_out": manifest.get("left_out", {}),
        "noticed": manifest.get("noticed", {}),
    }
    counts: _Utterances | _Distributions
    counts = _Utterances() if reader.kind == "utterances" else _Distributions(reader)
    done = 0
    progress(done, common["utterances"], "")
    for index, rows in enumerate(reader.rows):
        counts.add(reader, index)
        done += rows
        progress(done, common["utterances"], "")
    return {**common, **counts.statistics(size)}


class _Utterances:
    def __init__(self) -> None:
        self.lengths = np.zeros(round(MAX_SECONDS / LENGTH_STEP) + 1, np.int64)
        self.seconds = 0.0
        self.speakers: set[str] = set()
        self.untranscribed = 0

    def add(self, reader: ShardReader, index: int) -> None:
        for row in reader.read(index, only=("text", "seconds", "speaker")):
            self.lengths[round(row["seconds"] / LENGTH_STEP)] += 1
            self.seconds += row["seconds"]
            self.speakers.add(row["speaker"])
            self.untranscribed += not row["text"]

    def statistics(self, size: int) -> dict[str, Any]:
        return {
            "seconds": _quantiles(self.lengths, LENGTH_STEP),
            "bytes_per_second": _ratio(size, self.seconds),
            "speakers": len(self.speakers - {""}),
            "untranscribed": self.untranscribed,
        }


class _Distributions:
    """Counts over all positions of a teacher cache."""

    def __init__(self, reader: ShardReader):
        self.manifest = reader.manifest
        self.bits = bounded(reader.provenance, "bits", 1, 8, str(reader.folder / MANIFEST))
        self.kept = np.zeros(1 << 16, np.int64)  # positions by their number of kept tokens
        self.mass = np.zeros(round(1 / MASS_STEP) + 1, np.int64)  # positions by the mass of their kept tokens
        self.mass_sum = self.entropy_sum = self.log_prob_sum = 0.0
        self.scored = 0  # positions whose target's log-probability is known
        self.sources = dict.fromkeys(TARGET_COUNTS, 0)  # utterances by what their targets are

    def add(self, reader: ShardReader, index: int) -> None:
        records = reader.read(index)
        for record in records:
            self.entropy_sum += entropies(record, self.bits).sum()
            if record["target_source"] in self.sources:
                self.sources[record["target_source"]] += 1
            if record["mean_log_prob"] is not None:
                self.log_prob_sum += record["mean_log_prob"] * len(record["targets"])
                self.scored += len(record["targets"])
        counts_N, tail_N = (
            np.concatenate([np.empty(0, np.uint16), *(record[name] for record in records)])
            for name in ("top_counts", "tail_log_probs")
        )
        mass_N = 1 - np.exp(np.minimum(tail_N, 0), dtype=np.float64)
        self.mass_sum += mass_N.sum()
        self.mass += np.bincount(np.rint(mass_N / MASS_STEP).astype(np.int64), minlength=len(self.mass))
        self.kept += np.bincount(counts_N.astype(np.int64), minlength=len(self.kept))

    def statistics(self, size: int) -> dict[str, Any]:
        tokens = int(self.kept.sum())
        return {
            "tokens": tokens,
            "target_sources": self.sources,
            "bytes_per_token": _ratio(size, tokens),
            "kept_per_token": {
                "mean": _ratio((self.kept * np.arange(len(self.kept))).sum(), tokens),
                **_quantiles(self.kept, 1),
            },
            "mass_kept": {"mean": _ratio(self.mass_sum, tokens), **_quantiles(self.mass, MASS_STEP)},
            "entropy_nats": _ratio(self.entropy_sum, tokens),
            "teacher_wer": self.manifest.get("teacher_wer"),
            "mean_log_prob": _ratio(self.log_prob_sum, self.scored),
        }


def _ratio(total: float, count: float) -> float | None:
    return float(total / count) if count else None


def _quantiles(histogram: np.ndarray, step: float) -> dict[str, float | None]:
    """Returns for each quantile the smallest value, a multiple of `step`, that at least this share does not exceed."""
    below = histogram.cumsum()
    return {
        name: round(int(np.searchsorted(below, share * below[-1])) * step, 6) if below[-1] else None
        for name, share in QUANTILES.items()
    }
