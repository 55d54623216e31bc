"""Texts made comparable before they are scored: by the pipeline's own rules, or by Whisper's basic ones."""

import unicodedata
from functools import lru_cache

import regex
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from stages.shared.whisper.languages import WITHOUT_SPACES

NORMALISER = "marks-1"  # the number goes up with any change of the rules: results of two versions cannot be compared
SPLIT_BY_BASIC = frozenset({"th", "ja", "zh", "lo", "my", "yue"})  # what Whisper's authors split, kept for comparison

DOTTED_I = frozenset({"tr", "az"})  # languages in which i and ı are two letters, each with a capital of its own
SAME_LETTER = {"<wide>", "<narrow>", "<initial>", "<medial>", "<final>", "<isolated>"}  # kinds of decomposition
APOSTROPHES = "'\u2019\u2018\u201b\u02bc\u02bb`\u00b4\u055a\u05f3"
MIDDLE_DOTS = "\u00b7\u2027\u2219\u22c5\u2022"
QUOTES = '"\u201c\u201d\u201e\u201f\u05f4'
WORD_SIGNS = (
    "\u104c\u104d\u104e\u104f\u06fd\u06fe"  # Burmese and Sindhi: punctuation or symbols by category, read as words
)
NO_BREAK = "\u0640\u055b\u055c\u055e\u055f"  # the Arabic stretch; Armenian signs of tone, written within a word
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
    """`text` as it is scored by default; normalising twice changes nothing. `language` is a code.

    1.  Canonical composition (NFC). Full and half width forms, and Arabic letters in a fixed shape, become the letter itself.
    2.  Case folding, between decomposition and composition, which makes its result final. Turkish and Azerbaijani: I is ı.
    3.  Text in [], (), 【】, or <> without a space at its edge, goes: annotations such as [music] are not spoken. The basic
        normaliser does so, too.
    4.  Letters, marks and numbers stay. Vowel signs, tones and viramas are marks: a wrong one is an error. A mark without
        a base goes, and so does one that encloses its base. Decimal digits of any script become 0 to 9: the same word.
    5.  An apostrophe, of whatever shape, is ' within a word and goes elsewhere, where it cannot be told from a quotation mark.
    6.  A middle dot stays between Latin letters (col·legi). Its lookalikes, and the letter ŀ, become it.
    7.  Gershayim or a double quotation mark stays between Hebrew letters, where it marks an abbreviation.
    8.  The zero-width non-joiner stays within a word: Persian parts a word by it. The joiner goes: it changes how letters
        are drawn, not which they are. The letters that Malayalam once wrote with it become those of today.
    9.  Other invisible characters (soft hyphen, zero-width space, marks of direction) go without a trace.
    10. Punctuation, symbols and control characters become a space: a-b and 1,5 are two words each, as with the basic one.
    """
    text = unicodedata.normalize("NFC", text.translate(_SHAPES))
    if language in DOTTED_I:
        text = text.replace("İ", "i").replace("I", "ı")
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    text = CHILLU.sub(lambda match: CHILLUS[match[1]], _without_brackets(text)).translate(_CHARACTERS)
    text = NOT_WITHIN.sub(SPACE, WITHOUT_BASE.sub(DELETED, text))
    return unicodedata.normalize("NFC", " ".join(text.split()))


def words(normalised: str, language: str) -> list[str]:
    """The units of a word error rate: grapheme clusters for a script that has no space between words."""
    if language not in WITHOUT_SPACES:
        return normalised.split()
    return [cluster for part in normalised.split() for cluster in CLUSTER.findall(part)]


def characters(normalised: str, language: str) -> str:
    """The units of a character error rate: without the spaces in a script that does not part words by them."""
    return normalised.replace(" ", "") if language in WITHOUT_SPACES else normalised


def basic(text: str, language: str) -> str:
    """Whisper's multilingual normaliser, by which papers report: it puts a space for each mark, and splits some scripts."""
    return _basic(language in SPLIT_BY_BASIC)(text).strip()


def basic_characters(normalised: str, language: str) -> str:
    """Without the spaces that `basic` puts between letters: they would be hits that nobody transcribed."""
    return normalised.replace(" ", "") if language in SPLIT_BY_BASIC else normalised


@lru_cache(maxsize=2)
def _basic(split_letters: bool) -> BasicTextNormalizer:
    return BasicTextNormalizer(split_letters=split_letters)


def _without_brackets(text: str) -> str:
    """The innermost go first, so that nested ones go whole."""
    while (shorter := BRACKETED.sub(SPACE, text)) != text:
        text = shorter
    return text


class _Shapes(dict[int, str]):
    """For str.translate, filled as characters come up: shapes of a letter to the letter."""

    def __missing__(self, code: int) -> str:
        kind = unicodedata.decomposition(chr(code)).partition(" ")[0]
        self[code] = unicodedata.normalize("NFKC", chr(code)) if kind in SAME_LETTER else chr(code)
        return self[code]


class _Characters(dict[int, str]):
    """For str.translate, filled as characters come up: what becomes of each character of folded text."""

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
