"""Size of an expert against word error rate, for the ways to store it, on the same real speech.

    python tests/bench/expert_size.py --expert models/cs/clsr-kd --utterances data/utterances/cs/test

bytes: of experts.safetensors, and their share of the base in float16. kept: of what training changed of the FFNs, squared norm.
points: WER minus that of the expert as it was trained, in percentage points, with the paired 95 % bootstrap interval over
utterances. Utterances that do not fit the model's window are left out. `base` is the model without an expert.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from common import cpu_name

from cache.shards import ShardReader
from stages.shared import scoring
from stages.shared.audio import decode_flac
from stages.shared.student.experts import WEIGHTS, read_expert, read_expert_metadata, shared_of, write_expert
from stages.shared.student.loading import LoadedModel, load_model
from stages.shared.student.packing import Precision, Tensors, kept
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.device import keep_freed_memory, use_all_cores
from stages.shared.whisper.models import load_whisper

BATCH = 16
CHOICES: list[tuple[Precision, int | None]] = [
    ("fp16", None),
    ("int8", None),
    *((precision, rank) for precision in ("fp16", "int8") for rank in (96, 64, 32, 16)),
]


def main() -> None:
    args = _arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    use_all_cores()
    keep_freed_memory()
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    config = read_expert_metadata(args.expert)
    window, language = config["audio_window_s"], config["language"]
    rows = _rows(args.utterances, window, args.limit)
    base = load_whisper(config["base"], window)
    shared, size = shared_of(base.model), 2 * sum(parameter.numel() for parameter in base.model.parameters())
    state = read_expert(args.expert, config, shared).state
    trained = _scored(load_model(str(args.expert)), rows, language)
    print(f"{len(rows)} utterances, {sum(row['words'] for row in trained)} words; base in fp16: {size / 1e6:.1f} MB\n")
    print("| stored as | MB | of the base | kept | WER | points |\n| --- | --- | --- | --- | --- | --- |")
    _line("base", "", "", "", _scored(load_model(config["base"], window), rows, language), trained)
    _line("as trained", "", "", "", trained, trained)
    for precision, rank in CHOICES:
        bytes_, left, scored = _stored(state, shared, config, precision, rank, rows)
        name = precision if rank is None else f"{precision}, rank {rank}"
        _line(name, f"{bytes_ / 1e6:.2f}", f"{100 * bytes_ / size:.1f} %", f"{100 * left:.1f} %", scored, trained)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expert", type=Path, required=True, help="a folder that train-student wrote")
    parser.add_argument("--utterances", type=Path, default=Path("data/utterances/cs/test"), help="made by prepare")
    parser.add_argument("--limit", type=int, default=1_000_000, help="utterances that are used")
    return parser.parse_args()


def _rows(folder: Path, window: int, limit: int) -> list[dict]:
    reader = ShardReader(folder, "utterances")
    rows = [row for row in reader.records() if row["seconds"] <= window]
    return sorted(rows[:limit], key=lambda row: row["seconds"])


def _stored(
    state: Tensors, shared: Tensors, config: dict[str, Any], precision: Precision, rank: int | None, rows: list[dict]
) -> tuple[int, float, list[dict]]:
    """(bytes, share of the change that is kept, scored rows)"""
    carried = {name: value for name, value in config.items() if name not in ("precision", "rank", "format_version")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_expert(folder, config["language"], state, shared, carried, precision, rank)
        left = kept(state, read_expert(folder, read_expert_metadata(folder), shared).state, shared)
        return (folder / WEIGHTS).stat().st_size, left, _scored(load_model(name), rows, config["language"])


def _scored(model: LoadedModel, rows: list[dict], language: str) -> list[dict]:
    transcribe = Transcriber(model.whisper, language, torch.float32)
    scored = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        with model.route(language):
            texts = [found.text for found in transcribe([decode_flac(row["audio"]) for row in batch])]
        counts = [scoring.score(row["text"], text, language) for row, text in zip(batch, texts, strict=True)]
        scored += [{"id": row["id"], **each} for row, each in zip(batch, counts, strict=True)]
    return scored


def _line(name: str, size: str, share: str, left: str, scored: list[dict], trained: list[dict]) -> None:
    difference, low, high = (100 * value for value in scoring.paired_interval(scored, trained))
    points = "" if scored is trained else f"{difference:+.2f} ({low:+.2f} to {high:+.2f})"
    print(
        f"| {name} | {size} | {share} | {left} | {100 * scoring.totals(scored)['wer']:.2f} % | {points} |", flush=True
    )


if __name__ == "__main__":
    main()
