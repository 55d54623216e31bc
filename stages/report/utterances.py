"""The utterances of a test split as data for the explorer: an index, and files of rows that it loads when it needs them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stages.report.comparison import Comparison
from stages.report.examples import compared
from stages.report.lead import Lead
from stages.report.marks import SHOWN, Mark, marks, shown
from stages.report.recordings import Recordings

ROWS = 100  # of a file
Row = dict[str, Any]


@dataclass(frozen=True)
class Heard:
    """What a system wrote for an utterance."""

    row: Row
    marks: list[Mark]

    @property
    def words(self) -> str:
        """The hypothesis as it is scored. Two systems agree where these are the same."""
        return " ".join(mark.said for mark in self.marks if mark.said)


@dataclass(frozen=True)
class Entry:
    """An utterance, with what each system wrote; None where it was not scored."""

    id: str
    heard: list[Heard | None]

    @property
    def row(self) -> Row:
        return next(heard.row for heard in self.heard if heard)


def explorer_data(comparison: Comparison, recordings: Recordings) -> Iterator[tuple[int, str, str]]:
    """Yields the scripts `rows-NUMBER` and `index`: the utterances that are done before it, its name and its content.

    They are JavaScript, for a page from disk may not fetch JSON. The utterances are in the order that the explorer shows
    first, so that it begins with one file of rows.
    """
    by_id = [{row["id"]: row for row in line.result.rows or []} for line in comparison.scored]
    ids, index = _ordered(by_id, comparison), []
    for number, start in enumerate(range(0, len(ids), ROWS)):
        entries = [_entry(id, by_id, comparison.language) for id in ids[start : start + ROWS]]
        index += [_indexed(entry, comparison.lead, recordings) for entry in entries]
        rows = _json([_row(entry, recordings) for entry in entries])
        yield start, f"rows-{number}", f"explorer.takeRows({number}, {rows});\n"
    yield len(ids), "index", f"explorer.takeIndex({_json({**_facts(comparison), 'utterances': index})});\n"


def _facts(comparison: Comparison) -> dict[str, Any]:
    base, student = compared(comparison)
    return {
        "name": comparison.name,
        "systems": [line.result.name for line in comparison.scored],
        "compared": [comparison.scored.index(base), comparison.scored.index(student)],
        "unit": comparison.lead.unit,
        "lengths": comparison.lead.lengths,
        "rows": ROWS,
    }


def _ordered(by_id: list[dict[str, Row]], comparison: Comparison) -> list[str]:
    """Returns all ids: those that the student gained most on first, as the explorer sorts them."""
    base, student = (by_id[comparison.scored.index(line)] for line in compared(comparison))
    errors = comparison.lead.errors

    def gain(id: str) -> float:
        return base[id][errors] - student[id][errors] if id in base and id in student else float("-inf")

    return sorted({id for rows in by_id for id in rows}, key=lambda id: (-gain(id), id))


def _entry(id: str, by_id: list[dict[str, Row]], language: str) -> Entry:
    rows = [rows.get(id) for rows in by_id]
    return Entry(
        id, [Heard(row, marks(row["reference"], row["hypothesis"], language)) if row else None for row in rows]
    )


def _indexed(entry: Entry, lead: Lead, recordings: Recordings) -> list[Any]:
    """Returns id, place, length, and for each system its errors, their kinds, whether it looped, and which text it wrote."""
    texts: dict[str, int] = {}
    systems = [
        [
            heard.row[lead.errors],
            *(heard.row[kind] for kind in ("substitutions", "deletions", "insertions")),
            int(heard.row.get("looped", False)),
            texts.setdefault(heard.words, len(texts)),
        ]
        if heard
        else None
        for heard in entry.heard
    ]
    place = recordings.speakers.get(entry.id) or entry.row.get("group", "")
    return [entry.id, place, entry.row[lead.lengths], systems]


def _row(entry: Entry, recordings: Recordings) -> Row:
    reference = entry.row["reference"]
    row = {"reference": reference, "seconds": entry.row.get("seconds")}
    audio = {"audio": recordings.files[entry.id]} if entry.id in recordings.files else {}
    return {**row, **audio, "heard": [_heard(heard, reference) if heard else None for heard in entry.heard]}


def _heard(heard: Heard, reference: str) -> Row:
    first, more = shown(heard.marks)
    facts = {
        "more": more,
        "ending": "ended in a loop" if heard.row.get("looped") else "did not end" if heard.row.get("unended") else "",
        "reference": "" if heard.row["reference"] == reference else heard.row["reference"],
        "expert": expert_words(heard.row),
    }
    return {"marks": [_mark(mark) for mark in first], **{name: value for name, value in facts.items() if value}}


def expert_words(row: Row) -> list[tuple[str, int]]:
    """Returns the first words as they are written, each with the percentage of its tokens' layers that took the expert."""
    words, shares = row["hypothesis"].split(), row.get("expert_words") or []
    return list(zip(words, shares, strict=True))[:SHOWN] if len(words) == len(shares) else []


def _mark(mark: Mark) -> str | list[str]:
    """Returns the text alone where it is right, else the kind's letter, what was said and what was meant."""
    return mark.said if mark.kind == "equal" else [mark.kind[0], mark.said, mark.meant]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
