"""Language codes and names: Whisper's where it has a token for the language, else those of ISO 639."""

import difflib
import re
import unicodedata
from functools import cache
from typing import Any

from langcodes import Language
from language_data.names import get_trie_value, load_trie, normalize_name
from language_data.util import data_filename
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from cache.errors import PipelineError

# Written without spaces between words. They are scored by letters, and their transcripts begin without a space.
WITHOUT_SPACES = frozenset({"bo", "dz", "ja", "km", "lo", "my", "shn", "th", "wuu", "yue", "zh"})
# Code of ISO 639 -> Whisper's, where the two differ. Bokmål is the Norwegian that Whisper calls `no`.
WHISPERS_OWN = {"jv": "jw", "fil": "tl", "nb": "no"}
NO_LANGUAGE = frozenset({"und", "mul", "zxx", "mis", "art"})
# Codes that may mean several of Whisper's languages: the user has to choose.
AMBIGUOUS = {"sh": ("bs", "hr", "sr"), "zh-HK": ("yue", "zh"), "zh-MO": ("yue", "zh")}
KEPT = {"sh": "sh", "hbs": "sh", "cnr": "cnr"}  # langcodes turns these into a kind of Serbian
NAMED = "-x-"  # between a language's code and the name of an entry
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
SHORTEST_NAME = 4
# Control characters, and surrogates (from an argument that is not UTF-8): the tables of langcodes fail on them.
IN_NO_NAME = frozenset({"Cc", "Cs"})


def entry_name(text: str) -> str:
    """Returns the name of a language's entry in the parameters: its code, or code-x-name, as BCP 47 has it for private use.

    So one language may be there several times, with other data: ca-x-3k, ca-x-10k. Raises PipelineError as `language_code`
    does, and for a name that is not of letters a-z and digits.
    """
    language, mark, name = text.strip().lower().partition(NAMED)
    if mark and not NAME.fullmatch(name):
        raise PipelineError(
            f"language '{text}': '{name}' after {NAMED} is not a name, expected letters a-z and digits, such as "
            f"{language}{NAMED}3k"
        )
    return language_code(language if mark else text) + mark + name


def code_of(entry: str) -> str:
    """Returns the code of the language of an entry: ca of ca-x-3k."""
    return entry.partition(NAMED)[0]


def language_code(code_or_name: str) -> str:
    """Returns the code that this program uses for a code, a locale or a name ('ca', 'pt-BR', 'Norwegian Bokmål').

    That is Whisper's code if Whisper has a token for exactly this language, else the shortest code of ISO 639. Raises
    PipelineError for text that names no language, or more than one. A near match is suggested there, never taken.
    """
    key = code_or_name.strip().lower()
    if key in LANGUAGES:
        return key
    if key in TO_LANGUAGE_CODE:
        return TO_LANGUAGE_CODE[key]
    found = _tag(key) or _named(key)
    if found is None:
        near = difflib.get_close_matches(key, [*LANGUAGES, *TO_LANGUAGE_CODE], n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "give a code such as ca, or a name such as catalan"
        raise PipelineError(f"unknown language '{code_or_name}': no such code or name; {hint}")
    return _whispers(found, code_or_name)


def _tag(key: str) -> Language | None:
    """Reads `key` as a code of ISO 639 or BCP 47, or as a locale. Returns None if it is none of them."""
    try:
        given, found = Language.get(key, normalize=False), Language.get(key)
    except ValueError:
        return None
    if given.language in KEPT:
        return Language.make(KEPT[given.language])
    known = found.language is not None and len(found.language) <= 3 and found.language not in NO_LANGUAGE
    return found if known and found.is_valid() else None


def _named(key: str) -> Language | None:
    """Finds a language by its whole English name, or its whole name for itself. Returns None if there is none.

    The search of langcodes also accepts the beginning of a name. A few languages have names of one or two letters; such
    a short text is taken as a wrong code.
    """
    name = normalize_name(key)
    if name.isascii() and len(name) < SHORTEST_NAME:
        return None
    if any(unicodedata.category(letter) in IN_NO_NAME for letter in name):
        return None
    if name in _english_names():
        tag = get_trie_value(_english_names(), name)
        return _tag("cnr" if name == "montenegrin" else tag)
    try:
        found = Language.find(key)
    except LookupError:
        return None
    return _tag(found.to_tag()) if normalize_name(found.autonym()) == name else None


@cache
def _english_names() -> Any:
    return load_trie(data_filename("trie/en/name_to_language.marisa"))


def _whispers(found: Language, given: str) -> str:
    own = str(found.language)
    for tag in (own, f"{own}-{found.territory}"):
        if tag in AMBIGUOUS:
            meant = " or ".join(f"{code} ({language_name(code)})" for code in AMBIGUOUS[tag])
            raise PipelineError(f"language '{given}' may mean more than one of Whisper's languages: give {meant}")
    for code in (own, str(found.prefer_macrolanguage().language)):  # `cmn` is what `zh` means
        if (whispers := WHISPERS_OWN.get(code, code)) in LANGUAGES:
            return whispers
    return own


def language_name(code: str) -> str:
    """Returns 'Catalan' for 'ca', 'Guarani' for 'gn', also of an entry. Returns the code itself if it has no name."""
    code = code_of(code)
    if code in LANGUAGES:
        return LANGUAGES[code].title()
    try:
        name = Language.get(code, normalize=False).display_name()
    except ValueError:
        return code
    return code if name.startswith("Unknown language") else name


def taken_as(given: str, code: str) -> str | None:
    """Returns a line for the user if `given` is neither the code nor a usual name of `code`, else None."""
    key = given.strip().lower()
    if key in (code, language_name(code).lower()) or key in TO_LANGUAGE_CODE:
        return None
    return f"{given.strip()}: taken as {language_name(code)} ({code})"


def token_language(code_or_name: str) -> str:
    """Returns the code of a language that Whisper has a token for. Raises PipelineError for any other language."""
    code = language_code(code_or_name)
    if code not in LANGUAGES:
        raise PipelineError(f"{without_token(code)}; found '{code_or_name}' as a token")
    return code


def without_token(code: str) -> str:
    return f"Whisper has no token for {language_name(code)} ({code})"


def how_to_name_a_token(code: str) -> str:
    return (
        f"{without_token(code)}: name a related language's token, for its training and its transcription, such as "
        f"`languages: {{{code}: {{token: es}}}}` in the parameters, or --token es"
    )
