"""Normalises texts before they are scored, by the pipeline's own rules or by Whisper's basic ones."""

import unicodedata
from functools import lru_cache

import regex
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from stages.shared.whisper.languages import WITHOUT_SPACES

NORMALISER = "marks-1"  # raise the number with any change of the rules: results of two versions cannot be compared
# The languages that Whisper's authors split into letters: fewer than WITHOUT_SPACES, which the default rules split.
SPLIT_BY_BASIC = frozenset({"th", "ja", "zh", "lo", "my", "yue"})

DOTTED_I = frozenset({"tr", "az"})  # here i and ı are two letters, each with its own capital
SAME_LETTER = {"<wide>", "<narrow>", "<initial>", "<medial>", "<final>", "<isolated>"}  # kinds of decomposition
APOSTROPHES = "'\u2019\u2018\u201b\u02bc\u02bb`\u00b4\u055a\u05f3"
MIDDLE_DOTS = "\u00b7\u2027\u2219\u22c5\u2022"
QUOTES = '"\u201c\u201d\u201e\u201f\u05f4'
WORD_SIGNS = "\u104c\u104d\u104e\u104f\u06fd\u06fe"  # Burmese, Sindhi: punctuation or symbols in Unicode, read as words
NO_BREAK = "\u0640\u055b\u055c\u055e\u055f"  # the Arabic stretch (tatweel); Armenian marks of intonation, written within a word
SPACE, DELETED = " ", ""

BRACKETED = regex.compile(r"\[[^][]*\]|\([^()]*\)|【[^【】]*】|<(?![\s<>])[^<>]*(?<!\s)>")
CHILLU = regex.compile("([\u0d23\u0d28\u0d30\u0d32\u0d33\u0d15])\u0d4d\u200d")
CHILLUS = dict(
    zip("\u0d23\u0d28\u0d30\u0d32\u0d33\u0d15", "\u0d7a\u0d7b\u0d7c\u0d7d\u0d7e\u0d7f", strict=True)
)  # Malayalam
INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{Cf}\p{Me}]")
WITHOUT_BASE = regex.compile(r"(?<![\p{L}\p{M}\p{N}\u200c])[\p{M}\u200c]+|\u200c+(?![\p{L}\p{M}\p{N}])")
NOT_WITHIN = regex.compile(
    r"(?<![\p{L}\p{M}\p{N}])'|'(?![\p{L}\p{N}])"
    r"|(?<![\p{Latin}\p{M}])\u00b7|\u00b7(?!\p{Latin})"
    r"|(?<![\u0591-\u05bd\u05d0-\u05f2])\u05f4|\u05f4(?![\u05d0-\u05f2])"
)
CLUSTER = regex.compile(r"\X")


def normalise(text: str, language: str) -> str:
    """Returns `text` as it is scored by default. Normalising twice changes nothing. `language` is a code.

    1.  Canonical composition (NFC). Full-width and half-width forms, and Arabic letters of a fixed shape, become the letter.
    2.  Case folding, between decomposition and composition, which makes its result final. Turkish and Azerbaijani: I is ı.
    3.  Text in [], (), 【】, or <> without a space at its edge, is removed: annotations such as [music] are not spoken. The
        basic normaliser does the same.
    4.  Letters, marks and numbers stay. Vowel signs, tones and viramas are marks: a wrong one is an error. A mark without a
        base and a mark that encloses its base are removed. Decimal digits of any script become 0 to 9: the same word.
    5.  An apostrophe of any shape becomes ' within a word. Elsewhere it becomes a space: it may be a quotation mark.
    6.  A middle dot stays between Latin letters (col·legi). Similar characters, and the letter ŀ, become a middle dot.
    7.  Gershayim or a double quotation mark stays between Hebrew letters, where it marks an abbreviation.
    8.  The zero-width non-joiner stays within a word: Persian separates parts of a word by it. The joiner is removed: it
        changes only how letters are drawn. Malayalam letters that were once written with it become those of today.
    9.  Other invisible characters (soft hyphen, zero-width space, direction marks) are deleted, without a space.
    10. Punctuation, symbols and control characters become a space: a-b and 1,5 are two words each, as in the basic one.
    """
    text = unicodedata.normalize("NFC", text.translate(_SHAPES))
    if language in DOTTED_I:
        text = text.replace("İ", "i").replace("I", "ı")
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    text = CHILLU.sub(lambda match: CHILLUS[match[1]], _without_brackets(text)).translate(_CHARACTERS)
    text = NOT_WITHIN.sub(SPACE, WITHOUT_BASE.sub(DELETED, text))
    return unicodedata.normalize("NFC", " ".join(text.split()))


def words(normalised: str, language: str) -> list[str]:
    """Returns the units of a word error rate: words, or grapheme clusters in a script without spaces between words."""
    if language not in WITHOUT_SPACES:
        return normalised.split()
    return [cluster for part in normalised.split() for cluster in CLUSTER.findall(part)]


def characters(normalised: str, language: str) -> str:
    """Returns the units of a character error rate: spaces count only in a script that separates words by them."""
    return normalised.replace(" ", "") if language in WITHOUT_SPACES else normalised


def basic(text: str, language: str) -> str:
    """Applies Whisper's multilingual normaliser, which papers use: it replaces marks by spaces and splits some scripts."""
    return _basic(language in SPLIT_BY_BASIC)(text).strip()


def basic_characters(normalised: str, language: str) -> str:
    """Removes the spaces that `basic` puts between letters: they would count as correct characters."""
    return normalised.replace(" ", "") if language in SPLIT_BY_BASIC else normalised


@lru_cache(maxsize=2)
def _basic(split_letters: bool) -> BasicTextNormalizer:
    return BasicTextNormalizer(split_letters=split_letters)


def _without_brackets(text: str) -> str:
    """Removes bracketed text, the innermost first, so that nested brackets are removed whole."""
    while (shorter := BRACKETED.sub(SPACE, text)) != text:
        text = shorter
    return text


class _Shapes(dict[int, str]):
    """A table for str.translate, filled as characters occur: maps shapes of a letter to the letter."""

    def __missing__(self, code: int) -> str:
        kind = unicodedata.decomposition(chr(code)).partition(" ")[0]
        self[code] = unicodedata.normalize("NFKC", chr(code)) if kind in SAME_LETTER else chr(code)
        return self[code]


class _Characters(dict[int, str]):
    """A table for str.translate, filled as characters occur: maps each character of case-folded text to its replacement."""

    def __missing__(self, code: int) -> str:
        self[code] = _kept(chr(code))
        return self[code]


def _kept(character: str) -> str:
    category = unicodedata.category(character)
    if character == "\u200c" or character in WORD_SIGNS:
        return character
    if character in NO_BREAK or INVISIBLE.match(character):
        return DELETED
    if category == "Nd":
        return str(unicodedata.decimal(character))
    return character if category[0] in "LMN" else SPACE


_SHAPES = _Shapes({0x013F: "L\u00b7", 0x0140: "l\u00b7"})
_CHARACTERS = _Characters(
    {ord(character): shape for shape, all_of in (("'", APOSTROPHES), ("\u00b7", MIDDLE_DOTS), ("\u05f4", QUOTES))
     for character in all_of}
)  # fmt: skip
