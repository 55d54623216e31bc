"""Fish Fillets NG: a game whose Czech and Dutch dialogues are spoken by actors, about 1.7 hours each.

A dialogue file `script/LEVEL/[PREFIX_]dialogs_LANG.lua` holds the lines, `dialogId("KEY", "font_SPEAKER", "English")`
followed by `dialogStr("text")`; the recording is `sound/LEVEL/LANG/KEY.ogg`, or `sound/share/SET/LANG/KEY.ogg` for the
remarks that every level shares. Each level is one scene and is kept whole in one split.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from cache.errors import PipelineError
from stages.prepare.corpora import debian
from stages.prepare.corpora.settings import CorpusBase, expand_home
from stages.prepare.corpora.tables import read_text
from stages.prepare.items import SPLITS, Corpus, Item, split_by_group, unique_ids

LANGUAGES = ("cs", "nl")  # those with recordings
GAME = Path("usr/share/games/fillets-ng")  # within Debian's packages
SHARES = {"test": 0.12, "validation": 0.06}
LARGEST = 0.25  # the longest level, a game of battleships, would fill the validation split with shots and hits
PLACEHOLDER = "%1"  # a number that the game puts in and says by another recording: such a text is no transcript

STRING = r'"(?:\\.|[^"\\])*"'
STRINGS = rf"{STRING}(?:\s*\.\.\s*{STRING})*"  # Lua joins strings with ".."
CALL = re.compile(
    rf"--\[\[.*?\]\]|--[^\n]*|\b(?P<name>dialogId|dialogStr)\s*\(\s*(?P<values>{STRINGS}(?:\s*,\s*{STRINGS})*)\s*\)",
    re.DOTALL,
)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def _on_this_machine(value: Any) -> Any:
    if isinstance(value, str) and "://" in value:
        raise ValueError("a URL, expected a folder of this machine: copy it here first")
    return expand_home(value)


class FishFilletsSettings(CorpusBase):
    """Czech or Dutch lines of the game Fish Fillets NG (GPL-2), from Debian's packages."""

    corpus: Literal["fish-fillets"]
    path: Annotated[Path | None, BeforeValidator(_on_this_machine)] = (
        None  # the game's data, extracted; None: fetched with apt-get
    )


def read(settings: FishFilletsSettings, language: str, wanted: Collection[str] = SPLITS) -> Corpus:
    """Reads the whole game, whatever is `wanted`.

    Raises PipelineError where the game has no recordings in `language`, or its folders are not as expected.
    """
    if language not in LANGUAGES:
        raise PipelineError(
            f"Fish Fillets has no {language} recordings, only {' and '.join(LANGUAGES)}: choose another corpus"
        )
    scripts, sounds, facts = _folders(settings.path, language)
    recordings = _recordings(sounds, language)
    lines = list(_lines(scripts, sounds, language, recordings))
    items = unique_ids(lines + _unwritten(sounds, recordings, lines))
    sizes = Counter(item.group for item in items if item.text and item.id in recordings)
    if not sizes:
        raise PipelineError(
            f"{scripts.parent}: no recorded {language} dialogue, expected script/LEVEL/dialogs_{language}.lua"
        )
    split_of = split_by_group(dict(sizes), SHARES, LARGEST)
    splits: dict[str, list[Item]] = {}
    for item in items:
        splits.setdefault(split_of.get(item.group, "train"), []).append(item)
    return Corpus(splits, facts=facts)


def _folders(path: Path | None, language: str) -> tuple[Path, Path, dict[str, object]]:
    """Returns the script folder, the sound folder, and facts about their origin for the manifest."""
    if path is None:
        scripts, sounds = debian.fetch(["fillets-ng-data", f"fillets-ng-data-{language}"], "fish-fillets")
        facts: dict[str, object] = {"packages": [scripts.name, sounds.name]}
        return scripts / GAME / "script", sounds / GAME / "sound", facts
    for folder in (path, path / GAME):
        if (folder / "script").is_dir() and (folder / "sound").is_dir():
            return folder / "script", folder / "sound", {}
    raise PipelineError(
        f"{path}: expected the folders 'script' and 'sound' of Fish Fillets, found none; correct `path`"
    )


def _recordings(sounds: Path, language: str) -> dict[str, Path]:
    """Returns the recordings by id: LEVEL/KEY, or share/SET/KEY."""
    return {f"{_level(sounds, audio)}/{audio.stem}": audio for audio in sorted(sounds.rglob(f"{language}/*.ogg"))}


def _level(sounds: Path, audio: Path) -> str:
    return audio.parent.parent.relative_to(sounds).as_posix()


def _lines(scripts: Path, sounds: Path, language: str, recordings: dict[str, Path]) -> Iterator[Item]:
    """Yields every line of every dialogue file. A line without a recording is reported later as missing."""
    places = sorted({item_id.rpartition("/")[0] for item_id in recordings})
    for file in sorted(scripts.rglob(f"*dialogs_{language}.lua")):
        level = file.parent.relative_to(scripts).as_posix()
        own_places = [level, *(place for place in places if place.startswith(f"{level}/"))]
        for key, font, text in parse_dialogs(read_text(file)):
            found = (recordings.get(f"{place}/{key}") for place in own_places)
            audio = next((path for path in found if path is not None), sounds / level / language / f"{key}.ogg")
            yield _item(sounds, audio, font.removeprefix("font_"), "" if PLACEHOLDER in text else text.strip())


def _unwritten(sounds: Path, recordings: dict[str, Path], lines: list[Item]) -> list[Item]:
    """Returns an item without a text for each recording that no line belongs to: it is reported as left out."""
    written = {item.audio for item in lines}
    return [_item(sounds, audio, "", "") for audio in recordings.values() if audio not in written]


def _item(sounds: Path, audio: Path, speaker: str, text: str) -> Item:
    level = _level(sounds, audio)
    source = (Path("sound") / audio.relative_to(sounds)).as_posix()
    return Item(f"{level}/{audio.stem}", audio, text, speaker, level, source)


def parse_dialogs(lua: str) -> Iterator[tuple[str, str, str]]:
    """Yields (key, font, text) of each `dialogId` that is followed by a `dialogStr`."""
    line: tuple[str, str] | None = None
    for call in CALL.finditer(lua):
        if call["name"] == "dialogId":
            key, font, *_ = [*_values(call["values"]), ""]
            line = (key, font)
        elif call["name"] == "dialogStr" and line is not None:
            yield (*line, next(_values(call["values"])))
            line = None


def _values(arguments: str) -> Iterator[str]:
    for argument in re.finditer(STRINGS, arguments):
        yield "".join(_unescape(string[0][1:-1]) for string in re.finditer(STRING, argument[0], re.DOTALL))


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda escape: ESCAPES.get(escape[1], escape[1]), text, flags=re.DOTALL)
