"""Small finished folders of utterance and teacher shards, made of planted distributions by the stages' own code."""

from pathlib import Path

import numpy as np
from makers import make_utterance

from cache.distributions import quantise
from cache.files import write_jsonl
from cache.shards import ShardReader, ShardWriter
from stages.teacher_cache.run import finish, shard_facts, write_part
from stages.teacher_cache.shard import EMPTY_SCORES, NO_TRANSCRIPT, ScoredShard

VOCAB_SIZE, TOP_K, MIN_K, BITS = 120, 6, 2, 8
SETTINGS = {
    "language": "cs",
    "split": "train",
    "teacher": "tiny",
    "teacher_weights": "0123456789abcdef" * 4,
    "vocab_size": VOCAB_SIZE,
    "targets": "reference",
    "audio_window_s": 30,
    "top_p": 0.9,
    "min_k": MIN_K,
    "top_k": TOP_K,
    "bits": BITS,
    "dtype": "float32",
}
ROWS = [3, 2, 3]
LEFT_OUT = 4  # the utterance, by number, that the teacher did not score


def distributions(number: int, positions: int) -> np.ndarray:
    """(T, V) that sum to one, float64; some peaked, some flat."""
    random = np.random.default_rng(number)
    return np.stack([random.dirichlet(np.full(VOCAB_SIZE, 10.0 ** random.uniform(-2, 0))) for _ in range(positions)])


def kept(probs_TV: np.ndarray, top_k: int = TOP_K) -> dict[str, np.ndarray]:
    """The distribution fields of a teacher record; MIN_K to `top_k` tokens of each position."""
    order_TV = np.argsort(-probs_TV, axis=1)
    counts = np.array([MIN_K + position % (top_k - MIN_K + 1) for position in range(len(probs_TV))], np.uint16)
    ids = [order[:count] for order, count in zip(order_TV, counts, strict=True)]
    tails = [np.delete(probs, chosen).sum() for probs, chosen in zip(probs_TV, ids, strict=True)]
    return {
        "top_counts": counts,
        "top_ids": np.concatenate(ids).astype(np.uint16),
        "top_probs": quantise(np.concatenate([p[c] for p, c in zip(probs_TV, ids, strict=True)]), BITS),
        "tail_log_probs": np.log(np.maximum(tails, 1e-30)).astype(np.float32),
    }


def teacher_record(number: int, top_k: int = TOP_K) -> dict:
    probs_TV = distributions(number, 3 + number % 4)
    targets = np.random.default_rng(number).integers(0, VOCAB_SIZE, len(probs_TV))
    return {
        "targets": targets.astype(np.uint16),
        "target_source": "transcript",
        **kept(probs_TV, top_k),
        "mean_log_prob": float(np.log(probs_TV[np.arange(len(targets)), targets] + 1e-30).mean()),
        "teacher_text": f"věta {number}",
        "compression_ratio": 1.0 + number / 10,
        "word_errors": number % 3,
        "words": 5,
    }


def make_utterances(folder: Path, format: str = "parquet", first: int = 0, rows: list[int] = ROWS) -> Path:
    writer = ShardWriter(folder, "utterances", {"language": "cs", "split": "train", "first": first}, format)
    number, seconds = first, 0.0
    for index, count in enumerate(rows):
        records = [make_utterance(number + row, 0.1 + 0.05 * row) for row in range(count)]
        writer.write(index, records, seconds=sum(record["seconds"] for record in records))
        seconds += sum(record["seconds"] for record in records)
        number += count
    write_jsonl(folder / "left_out.jsonl", [{"id": "x", "source": "x.wav", "reason": "silent", "detail": "no sample"}])
    facts = {"corpus": "made", "language": "cs", "split": "train", "seconds": seconds}
    writer.finish(**facts, left_out={"silent": 1}, not_selected=0)
    return folder


def make_teacher(folder: Path, utterances: Path, format: str = "parquet", seed: int = 0, **settings) -> Path:
    """Side-car shards; `seed` chooses the distributions."""
    source = ShardReader(utterances, "utterances")
    writer = ShardWriter(folder, "teacher", {**SETTINGS, "utterances": source.fingerprint(), **settings}, format)
    number = 0
    for index in range(len(source.shards)):
        records, left_out, tail_V = [], [], np.zeros(VOCAB_SIZE, np.float32)
        for row in source.read(index, only=("id",)):
            if number == LEFT_OUT:
                left_out.append({"id": row["id"], "reason": "too_long", "detail": "31.0 s, at most 30 s"})
                records.append({"id": row["id"], **EMPTY_SCORES, **NO_TRANSCRIPT})
            else:
                records.append({"id": row["id"], **teacher_record(1000 * seed + number)})
                tail_V += 1 / VOCAB_SIZE
            number += 1
        shard = ScoredShard(index, records, left_out, tail_V, batch_size=4)
        write_part(folder, shard)
        writer.write(index, records, **shard_facts(shard, source))
    finish(writer)
    return folder


def rows_of(folder: Path, kind: str = "teacher") -> list[dict]:
    return list(ShardReader(folder, kind).records())


def same(found: list[dict], expected: list[dict]) -> bool:
    """Values and their types, dtypes included."""

    def equal(a: object, b: object) -> bool:
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return a.dtype == b.dtype and a.tobytes() == b.tobytes()
        return type(a) is type(b) and a == b

    return len(found) == len(expected) and all(
        a.keys() == b.keys() and all(equal(a[name], b[name]) for name in b)
        for a, b in zip(found, expected, strict=True)
    )
