"""Finds recordings whose paths were written on another system."""

import unicodedata
from pathlib import Path

from cache import storage
from cache.storage import AnyPath


class Places:
    """Finds files by the names in a corpus, relative to one folder. Each folder is listed at most once."""

    def __init__(self, folder: AnyPath):
        self.folder = folder
        self._otherwise: list[tuple[str, Path]] = []
        self._listings: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> AnyPath:
        """Returns the file called `name`, or the only one whose name differs in form alone.

        Such forms are "/" for "\\", accents composed differently (macOS), and the case of the ending (.WAV). Returns the
        path of `name` itself where there is no such file, or more than one.
        """
        literal = storage.join(self.folder, name)
        if not isinstance(literal, Path) or _exists(literal):
            return literal
        found = self._alike(literal) or self._alike(Path(str(literal).replace("\\", "/")))
        if found is None:
            return literal
        self._otherwise.append((name, found))
        return found

    def notes(self) -> list[str]:
        """Returns a line about the files that were found under another name than in the corpus."""
        if not self._otherwise:
            return []
        name, found = self._otherwise[0]
        return [
            f"{len(self._otherwise)} recordings lie under a slightly other name than is listed, as {name} at {found}"
        ]

    def _alike(self, path: Path) -> Path | None:
        found = Path(path.anchor)
        for part in path.parts[len(found.parts) :]:
            if _there(found / part):
                found /= part
                continue
            names = self._listing(found).get(_key(part), [])
            if len(names) != 1:
                return None
            found /= names[0]
        return found if _exists(found) else None

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listings:
            alike: dict[str, list[str]] = {}
            try:
                names = sorted(path.name for path in folder.iterdir())
            except OSError:
                names = []
            for name in names:
                alike.setdefault(_key(name), []).append(name)
            self._listings[folder] = alike
        return self._listings[folder]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def _there(path: Path) -> bool:
    """Tells whether the name exists, also as a link to nothing."""
    try:
        path.lstat()
    except (OSError, ValueError):  # ValueError: a null character in the name
        return False
    return True


def _key(name: str) -> str:
    composed = Path(unicodedata.normalize("NFC", name))
    return composed.stem + composed.suffix.lower()
