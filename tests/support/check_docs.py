"""Finds what the pages name and the project does not have: paths, links, and names in a table of places; and long lines.

`python tests/support/check_docs.py` prints each fault on a line and ends with 1 where there is one.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from sources import ROOT

PAGES = ("*.md", "docs/*.md", "tests/*.md", ".github/*.md")
UNWRAPPED = ("README.md", "CHANGELOG.md")
WIDTH = 120
TOPS = ("pipeline", "stages", "cache", "tests")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
# A path from the project's root, where it does not go on from another path; a file of Python by its name alone.
FOLDERS = r"(?:pipeline|stages|cache|tests|docs|presets|\.github|\.ci)"
PROJECT_PATH = re.compile(rf"(?<![\w./~-]){FOLDERS}/[\w.*/-]*[\w*/]")
PYTHON_FILE = re.compile(r"(?<![\w./*-])\w+\.py\b")
TABLE_OF_PLACES = re.compile(r"^\|[^|\n]*\| file \| name \|\n\|[ -|]*\|\n((?:\|.*\n?)+)", re.MULTILINE)
CELL_NAME = re.compile(r"`([\w.]+)`")


def pages(root: Path = ROOT) -> list[Path]:
    return sorted(path for pattern in PAGES for path in root.glob(pattern))


def faults(page: Path, root: Path = ROOT) -> list[str]:
    """One line for each dead link, path that is not there, and name that its file does not hold."""
    text = page.read_text(encoding="utf-8")
    found = list(_dead_links(page, text))
    if page.name != "CHANGELOG.md":  # which also names what has been moved since
        found += [*_missing_paths(text, root), *_missing_names(text, root)]
    if page.name not in UNWRAPPED:
        found += _long_lines(text)
    return [f"{page.relative_to(root)}: {fault}" for fault in dict.fromkeys(found)]


def _dead_links(page: Path, text: str) -> Iterator[str]:
    prose = INLINE_CODE.sub("", FENCE.sub("", text))
    for target in LINK.findall(prose):
        if re.match(r"[a-z]+:", target):  # of the web; a network would be needed
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        if not other.exists():
            yield f"link to {target}: there is no {name}"
        elif anchor and anchor not in anchors(other.read_text(encoding="utf-8")):
            yield f"link to {target}: no heading there has this anchor"


def anchors(text: str) -> set[str]:
    """GitHub's name for each heading; the second of the same text ends in -1, and so on."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def _missing_paths(text: str, root: Path) -> Iterator[str]:
    for path in PROJECT_PATH.findall(text):
        if not any(root.glob(path.rstrip("/"))):
            yield f"there is no {path}"
    for name in PYTHON_FILE.findall(text):
        if not any(next(root.glob(f"{top}/**/{name}"), None) for top in TOPS):
            yield f"no file is called {name}"


def _missing_names(text: str, root: Path) -> Iterator[str]:
    """In a table with the columns `file` and `name`, of which each name must stand in its row's file."""
    for table in TABLE_OF_PLACES.findall(text):
        for row in table.strip().splitlines():
            _, file, names = [cell.strip() for cell in row.strip().strip("|").split("|")]
            path = root / file.strip("`")
            held = path.read_text(encoding="utf-8") if path.is_file() else ""
            for name in CELL_NAME.findall(names):
                if any(part not in held for part in name.split(".")):
                    yield f"{file.strip('`')} does not hold {name}"


def _long_lines(text: str) -> Iterator[str]:
    """Of prose: a row of a table and a line of code cannot be wrapped."""
    for line in FENCE.sub("", text).splitlines():
        if len(line) > WIDTH and not line.startswith("|"):
            yield f"a line of {len(line)} characters, at most {WIDTH}: {line[:40]}…"


def main() -> int:
    found = [fault for page in pages() for fault in faults(page)]
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
