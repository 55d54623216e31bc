"""Prints the tables of docs/results.md from the records of `evidence.py`, as Markdown; steps that have no record are left out.

    python tests/bench/evidence_tables.py docs/evidence.jsonl

An interval is a paired bootstrap over the test lines (95 %). Where there are several seeds, a line's errors are summed over
them before that, and the WER of each seed is shown beside.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evidence_plan import FRACTIONS, GATES, SEEDS, SHIFTS, TEACHERS

from cache.files import read_jsonl
from stages.shared.methods import METHODS
from stages.shared.scoring import Row, interval, paired_interval

Records = dict[str, dict[str, Any]]
HEADER = "| system | seeds | WER % (95 %) | of each seed | CER % | points against whisper-base, 30 s | learning rate |"
SYSTEMS = ("base", "base-30s", "teacher", "teacher-crossfit", "teacher-same")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    records = {record["name"]: record for record in read_jsonl(parser.parse_args().records)}
    groups = {
        "Few transcripts": ["quarter/lora", "quarter/lora-slow", *(f"scarce/{name}" for name in _scarce(records))],
        "Half of the scenes": [f"half/{name}" for name in [*METHODS, "clsr-slow", "experts", "experts-encoder"]],
        "A quarter of the scenes": [f"quarter/{name}" for name in [*METHODS, "lora-slow", "lora-kd-same"]],
        "All scenes": [f"all/{name}" for name in METHODS],
        "Gates, at half of the scenes": [
            "half/clsr",
            *(f"gates/{name}" for name in GATES),
            "half/experts",
            "half/experts-encoder",
            "half/lora",
        ],
    }
    for title, names in groups.items():
        _table(records, title, [*SYSTEMS, *names], "base-30s")
    dutch = (
        "base",
        "base-30s",
        "teacher",
        "lora",
        "lora-slow",
        "words-one",
        "words-slow-one",
        "taught-one",
        "after-full",
        "after-lora",
    )
    _table(records, "Dutch", [f"nl/{name}" for name in dutch], "nl/base-30s")
    for corpus in SHIFTS:
        names = [f"shift/{corpus}/{name}" for name in ("base", "base-30s", "teacher", *METHODS)]
        _table(records, f"Test lines shifted: {corpus}", names, f"shift/{corpus}/base-30s")
    print("\n### Pairs\n")
    for one, other in _pairs(records):
        _pair(records, one, other)


def _scarce(records: Records) -> list[str]:
    return list(dict.fromkeys(name.split("/")[1] for name in records if name.startswith("scarce/")))


def _runs(records: Records, name: str) -> list[dict[str, Any]]:
    """Returns the records of a system: of each of its seeds, or the only one."""
    found = [records[f"{name}/{seed}"] for seed in SEEDS if f"{name}/{seed}" in records]
    return found or [records[name] for _ in range(1) if "test" in records.get(name, {})]


def _rows(runs: list[dict[str, Any]], times: int = 1) -> list[Row]:
    """Returns each line's counts, summed over the runs, `times` as often."""
    columns = {
        name: [times * sum(values) for values in zip(*(run["test"][name] for run in runs), strict=True)]
        for name in runs[0]["test"]
        if name != "id"
    }
    return [
        {"id": id_, **{name: values[number] for name, values in columns.items()}}
        for number, id_ in enumerate(runs[0]["test"]["id"])
    ]


def _rate(rows: list[Row], errors: str = "word_errors", of: str = "words") -> float:
    return sum(row[errors] for row in rows) / sum(row[of] for row in rows)


def _table(records: Records, title: str, names: list[str], against: str) -> None:
    found = [name for name in names if _runs(records, name)]
    if not found:
        return
    print(f"\n### {title}\n\n{HEADER}\n" + "| --- " * HEADER.count(" | ") + "| --- |")
    for name in found:
        runs = _runs(records, name)
        rows, (low, high) = _rows(runs), interval(_rows(runs))
        each = ", ".join(_percent(_rate(_rows([run]))) for run in runs) if len(runs) > 1 else ""
        wer = f"{_percent(_rate(rows))} ({_percent(low)} to {_percent(high)})"
        cer = _percent(_rate(rows, "character_errors", "characters"))
        points = _points(records, name, against) if name != against and _runs(records, against) else ""
        rate = runs[0]["settings"].get("learning_rate", "") if "steps" in runs[0] else ""
        print(f"| {name} | {len(runs)} | {wer} | {each} | {cer} | {points} | {rate} |")


def _pairs(records: Records) -> Iterable[tuple[str, str]]:
    """Yields what is to be compared, as far as both have run."""
    wanted = [
        ("scarce/taught-crossfit", "scarce/words-crossfit"),
        *((f"scarce/{name}-crossfit", f"scarce/{name}-one") for name in ("words", "taught")),
        *((f"scarce/{name}-one", "quarter/lora") for name in ("words", "taught", "paper-loss")),
        *((f"scarce/{name}-crossfit", "quarter/lora") for name in ("words", "taught")),
        *(
            (f"scarce/{name}-{teacher}", "quarter/lora-slow")
            for teacher in TEACHERS
            for name in ("words-slow", "taught")
        ),
        ("quarter/lora-slow", "quarter/lora"),
        *((f"quarter/lora-kd{teacher}", "quarter/lora-slow") for teacher in ("", "-same")),
        ("quarter/lora-kd-same", "quarter/lora-kd"),
        ("scarce/taught-crossfit", "scarce/words-slow-crossfit"),
        *((f"scarce/taught-{name}-one", f"quarter/{name}") for name in ("full", "clsr")),
        ("half/experts", "half/lora"),
        ("half/experts-encoder", "half/lora"),
        ("half/experts-encoder", "half/experts"),
        ("half/experts", "half/clsr"),
        ("half/clsr-kd", "half/clsr-slow"),
        ("half/clsr-slow", "half/clsr"),
        *((f"{part}/{name}-kd", f"{part}/{name}") for part in FRACTIONS for name in ("full", "lora", "clsr")),
        *((f"half/{name}", "half/lora") for name in ("full", "clsr")),
        *((f"gates/{name}", "half/lora") for name in GATES),
        *(
            (f"shift/{corpus}/{name}-kd", f"shift/{corpus}/{name}")
            for corpus in SHIFTS
            for name in ("full", "lora", "clsr")
        ),
        *((f"nl/after-{method}", "nl/base") for method in ("full", "lora")),
        *((f"{part}/taught-one", f"{part}/words{slow}-one") for part in ("scarce", "nl") for slow in ("", "-slow")),
        *(("nl/taught-one", f"nl/lora{slow}") for slow in ("", "-slow")),
        ("nl/words-slow-one", "nl/lora-slow"),
    ]
    return [(one, other) for one, other in wanted if _runs(records, one) and _runs(records, other)]


def _pair(records: Records, one: str, other: str) -> None:
    """Prints the difference over the seeds that both have."""
    print(f"- {one} against {other}: {_points(records, one, other)} points")


def _points(records: Records, one: str, other: str) -> str:
    a, b = _runs(records, one), _runs(records, other)
    if len(a) > 1 and len(b) > 1:
        shared = {run["seed"] for run in a} & {run["seed"] for run in b}
        a, b = ([run for run in runs if run["seed"] in shared] for runs in (a, b))
    value, low, high = paired_interval(_rows(a, len(b)), _rows(b, len(a)))
    seeds = f", {len(a)} seeds" if len(a) > 1 and len(b) > 1 else ""
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){seeds}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
