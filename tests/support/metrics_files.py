"""Writes metrics as `evaluate` leaves them, of planted texts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.shared.layout import rows_path
from stages.shared.scoring import NORMALISER, score, totals


def write_metrics(
    path: Path,
    texts: Sequence[tuple[str, str]],
    rows: Sequence[dict[str, Any]] | None = None,
    **facts: Any,
) -> Path:
    """Writes the metrics file `path` and the utterances beside it. texts: reference and hypothesis. rows: more of each row."""
    scored = [
        {"id": f"u{i:02d}", "group": "g", "seconds": 2.0, "reference": reference, "hypothesis": hypothesis}
        | score(reference, hypothesis, facts.get("language", "cs"))
        for i, (reference, hypothesis) in enumerate(texts)
    ]
    fields = {
        "language": "cs", "system": path.stem, "corpus": "fish", "split": "test", "normaliser": NORMALISER, **totals(scored),
        "audio_seconds": 2.0 * len(scored), "seconds": 0.5 * len(scored), "audio_window_s": 7.0, "dtype": "float32",
        "model": "openai/whisper-base", "loops": 0, "cut_loops": True, "unended": 0, "gates": {}, "unscored": [],
    }  # fmt: skip
    for row, own in zip(scored, rows or [{}] * len(scored), strict=True):
        row.update(own)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields | facts), encoding="utf-8")
    rows_path(path).write_text("".join(json.dumps(row) + "\n" for row in scored), encoding="utf-8")
    return path
