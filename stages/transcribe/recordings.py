"""Finds the recordings that a user names, also all that a folder holds, and names their transcripts."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.recordings.sources import open_frames

# Files with these endings count as recordings, also where they cannot be read: then their error is told. Any other file
# counts as one if it can be read as one.
ENDINGS = frozenset(
    f".{ending}"
    for line in (
        "3gp aac ac3 aif aiff amr ape au avi caf flac m4a m4b mka mkv mov mp2 mp3 mp4",
        "mpeg mpg oga ogg opus snd spx w64 wav webm wma wv",
    )
    for ending in line.split()
)
MOST_NAMED = 20


@dataclass(frozen=True)
class Recording:
    path: AnyPath
    name: str  # below the folder that was given, with "/"; of a file that was given its own name


def find_recordings(paths: Sequence[AnyPath], say: Callable[[str], None]) -> list[Recording]:
    """Returns the files, and in the place of a folder all recordings that it holds at any depth, sorted.

    say: called with a line for each folder that holds other files, too. Raises PipelineError where a folder holds no
    recording. A file that is missing stays in the list.
    """
    found: list[Recording] = []
    for path in paths:
        found += _in_folder(path, say) if path.is_dir() else [Recording(path, path.name)]
    return found


def _in_folder(folder: AnyPath, say: Callable[[str], None]) -> list[Recording]:
    recordings, others = [], []
    for name in _names(folder):
        if _is_recording(folder / name):
            recordings.append(Recording(folder / name, name))
        else:
            others.append(name)
    if not recordings:
        raise PipelineError(f"{folder}: none of its {len(others)} files is audio: give a folder with recordings")
    if others:
        more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
        named = ", ".join(others[:MOST_NAMED])
        say(f"{folder}: {len(recordings)} recordings; no audio, left out: {len(others)} ({named}{more})")
    return recordings


def _names(folder: AnyPath) -> list[str]:
    """Returns the files below the folder, as paths from it, sorted. Links to folders are not followed."""
    if not isinstance(folder, Path):
        return folder.tree()
    below = [Path(place, name) for place, _, names in os.walk(folder, onerror=_fail) for name in names]
    return sorted(path.relative_to(folder).as_posix() for path in below)


def _fail(error: OSError) -> None:
    raise error


def _is_recording(path: AnyPath) -> bool:
    if not path.is_file():  # a pipe, a device, or a link that leads nowhere
        return False
    if path.suffix.lower() in ENDINGS:
        return True
    try:
        with open_frames(path if isinstance(path, Path) else path.read_bytes()) as frames:
            return next(iter(frames), None) is not None
    except (PipelineError, OSError):
        return False


def transcript_names(recordings: Sequence[Recording], ending: str) -> list[str]:
    """Returns for each recording the name of its transcript: its own with another ending.

    Where two names would be one, as for talk.wav and talk.mp3, the ending is added instead. Raises PipelineError where
    that makes one name, too.
    """
    short = [_without_ending(one.name) + ending for one in recordings]
    counts = Counter(map(str.casefold, short))  # some file systems do not tell capitals
    names = [
        name if counts[name.casefold()] == 1 else one.name + ending for name, one in zip(short, recordings, strict=True)
    ]
    taken: dict[str, Recording] = {}
    for name, one in zip(names, recordings, strict=True):
        other = taken.setdefault(name.casefold(), one)
        if other is not one:
            raise PipelineError(f"{other.path} and {one.path}: both transcripts would be {name}: transcribe them apart")
    return names


def _without_ending(name: str) -> str:
    before, dot, after = name.rpartition(".")
    return before if dot and before and not before.endswith("/") and "/" not in after else name
