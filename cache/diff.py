"""Compares two folders of shards record by record: which settings and fields differ, and for teachers by how much."""

from typing import Any

import numpy as np

from cache.distributions import bounded, stored_log_probs
from cache.errors import PipelineError
from cache.progress import Progress, silent
from cache.records import FIELDS
from cache.shards import MANIFEST, ShardReader

# Shapes: N positions of a record, M its kept tokens, U the tokens that either side keeps, V vocabulary

LIKELY = 0.01  # differences of log-probabilities count only where one of the probabilities is above this
SHARDS_HELD = 2


def compare(one: ShardReader, other: ShardReader, progress: Progress[str] = silent) -> dict[str, Any]:
    """Returns all differences as JSON values; `equal` is True where there are none. The shards' format does not count.

    Records are matched by id, in whatever shard they are. Memory holds all ids, one shard of `one` and two of `other`.
    """
    if one.kind != other.kind:
        raise PipelineError(
            f"{one.folder} holds {one.kind}, {other.folder} {other.kind}: expected two folders of one kind"
        )
    records = _Records(one, other)
    done, total = 0, sum(one.rows)
    progress(done, total, "")
    for index, rows in enumerate(one.rows):
        for row, record in enumerate(one.read(index)):
            records.compare((index, row), record)
        done += rows
        progress(done, total, "")
    names = {**one.provenance, **other.provenance}
    pairs = {name: [one.provenance.get(name), other.provenance.get(name)] for name in names}
    left_out = [reader.manifest.get("left_out", {}) for reader in (one, other)]
    differing = {
        "settings": {name: pair for name, pair in pairs.items() if pair[0] != pair[1]},
        "shards": [one.rows, other.rows] if one.rows != other.rows else [],
        "only_in_first": records.missing,
        "only_in_second": list(records.places),
        "moved": records.moved,
        "fields": {name: count for name, count in records.fields.items() if count},
        "left_out": left_out if left_out[0] != left_out[1] else [],
        "tail": _tail_distance(one.tail(), other.tail()) if records.distances else 0.0,
    }
    return {
        "folders": [str(one.folder), str(other.folder)],
        "kind": one.kind,
        "equal": not any(differing.values()),
        "records": [sum(one.rows), sum(other.rows)],
        "same": records.same,
        **differing,
        "distributions": records.distances.statistics() if records.distances else None,
    }


class _Records:
    """Holds the second folder's records by id, and counts their differences from the first folder's."""

    def __init__(self, one: ShardReader, other: ShardReader):
        self.other, self.held = other, dict[int, list[dict]]()
        self.places = {
            row["id"]: (index, number)
            for index in range(len(other.shards))
            for number, row in enumerate(other.read(index, only=("id",)))
        }
        self.fields = dict.fromkeys(FIELDS[one.kind], 0)
        self.missing: list[str] = []
        self.moved = self.same = 0
        self.distances = _Distances(one, other) if one.kind == "teacher" else None

    def compare(self, place: tuple[int, int], record: dict) -> None:
        found_at = self.places.pop(record["id"], None)
        if found_at is None:
            self.missing.append(record["id"])
            return
        found = self._read(found_at)
        differing = [name for name in self.fields if not _equal(record[name], found[name])]
        for name in differing:
            self.fields[name] += 1
        self.same += not differing
        self.moved += found_at != place
        if self.distances:
            self.distances.add(record, found)

    def _read(self, place: tuple[int, int]) -> dict:
        index, row = place
        if index not in self.held:
            if len(self.held) >= SHARDS_HELD:
                del self.held[next(iter(self.held))]
            self.held[index] = self.other.read(index)
        return self.held[index][row]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return one == other or (one != one and other != other)  # NaN equals NaN here


class _Distances:
    """Measures the distance of two teachers' distributions, over the positions of records with the same targets.

    A position has one bin for each token that either side keeps and one bin for the rest. Both sides sum to one.
    A token that only one side keeps has probability zero on the other, because it is part of that side's rest. Therefore
    two caches of one teacher with different top_k differ. `common_sum` compares only the tokens that both sides keep, with
    all others in the rest: there such caches do not differ.
    """

    def __init__(self, one: ShardReader, other: ShardReader):
        self.bits = [bounded(each.provenance, "bits", 1, 8, str(each.folder / MANIFEST)) for each in (one, other)]
        self.positions = self.same_top = 0
        self.sum = self.common_sum = self.greatest = self.log_prob = 0.0

    def add(self, one: dict, other: dict) -> None:
        count = len(one["targets"])
        if not np.array_equal(one["targets"], other["targets"]) or not count:
            return
        (key_M, p_M), (other_M, q_M) = _bins(one, self.bits[0]), _bins(other, self.bits[1])
        union_U = np.union1d(key_M, other_M)
        p_U, q_U = _at(union_U, key_M, p_M), _at(union_U, other_M, q_M)
        js_N = _jensen_shannon(union_U >> 16, p_U, q_U, count)
        common_U = np.isin(union_U, key_M) & np.isin(union_U, other_M)
        common_N = _jensen_shannon(union_U[common_U] >> 16, p_U[common_U], q_U[common_U], count)
        likely_U = common_U & (np.maximum(p_U, q_U) > LIKELY)
        if likely_U.any():
            self.log_prob = max(self.log_prob, float(np.abs(np.log(p_U[likely_U] / q_U[likely_U])).max()))
        self.positions += count
        self.same_top += int((_top(one) == _top(other)).sum())
        self.sum, self.common_sum = self.sum + float(js_N.sum()), self.common_sum + float(common_N.sum())
        self.greatest = max(self.greatest, float(js_N.max()))

    def statistics(self) -> dict[str, Any]:
        """Returns means and maxima. Jensen-Shannon divergences are in nats: 0 where equal, at most log 2."""
        count = self.positions
        return {
            "positions": count,
            "js_mean": self.sum / count if count else None,
            "js_max": self.greatest if count else None,
            "js_mean_of_common": self.common_sum / count if count else None,
            "same_top": self.same_top / count if count else None,
            "log_prob_max": self.log_prob if count else None,
        }


def _bins(record: dict, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each kept token a key, position << 16 | id, and its probability, scaled so that each position sums to one."""
    counts_N = record["top_counts"]
    position_M = np.repeat(np.arange(len(counts_N)), counts_N)
    prob_M = np.exp(stored_log_probs(record["top_probs"], bits), dtype=np.float64)
    total_N = np.bincount(position_M, prob_M, len(counts_N)) + np.exp(record["tail_log_probs"], dtype=np.float64)
    return position_M << 16 | record["top_ids"], prob_M / np.maximum(total_N, np.finfo(np.float64).tiny)[position_M]


def _at(wanted_U: np.ndarray, key_M: np.ndarray, prob_M: np.ndarray) -> np.ndarray:
    """Returns the probability of each wanted key, 0 where `key_M` lacks it."""
    probs_U = np.zeros(len(wanted_U))
    probs_U[np.searchsorted(wanted_U, key_M)] = prob_M
    return probs_U


def _jensen_shannon(position_U: np.ndarray, p_U: np.ndarray, q_U: np.ndarray, count: int) -> np.ndarray:
    """Returns the divergence at each position, (N,) in nats. One more bin per position holds what the given bins leave of 1."""
    rest = [np.maximum(1 - np.bincount(position_U, each, count), 0) for each in (p_U, q_U)]
    return np.maximum(np.bincount(position_U, _terms(p_U, q_U), count) + _terms(*rest), 0)


def _terms(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    middle = (p + q) / 2
    return sum(each / 2 * np.log(np.divide(each, middle, out=np.ones_like(each), where=each > 0)) for each in (p, q))


def _tail_distance(one_V: np.ndarray, other_V: np.ndarray) -> float:
    """Returns the total variation distance of the mean tails, 0 to 1; 1 where the vocabularies differ."""
    return float(np.abs(one_V - other_V).sum() / 2) if one_V.shape == other_V.shape else 1.0


def _top(record: dict) -> np.ndarray:
    """Returns the most likely token of each position, (N,); -1 where none is kept."""
    counts = record["top_counts"].astype(np.int64)
    first = np.append(record["top_ids"].astype(np.int64), -1)[
        np.minimum(counts.cumsum() - counts, len(record["top_ids"]))
    ]
    return np.where(counts > 0, first, -1)
