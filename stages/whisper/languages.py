"""Language codes and names, as Whisper knows them."""

import difflib

from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from cache.errors import PipelineError

# Written without spaces between words, so that words are no unit: scored by letters, and no space before a transcript.
WITHOUT_SPACES = frozenset({"bo", "dz", "ja", "km", "lo", "my", "shn", "th", "wuu", "yue", "zh"})


def language_code(code_or_name: str) -> str:
    """'Catalan' or 'ca' -> 'ca'. Raises PipelineError for what Whisper has no token for, naming near matches."""
    key = code_or_name.strip().lower()
    if key in LANGUAGES:
        return key
    if key in TO_LANGUAGE_CODE:
        return TO_LANGUAGE_CODE[key]
    near = difflib.get_close_matches(key, [*LANGUAGES, *TO_LANGUAGE_CODE], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "give a code such as ca, or a name such as catalan"
    raise PipelineError(f"unknown language '{code_or_name}': not one of Whisper's {len(LANGUAGES)}; {hint}")
