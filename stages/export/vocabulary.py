"""Writes the vocabulary as older readers want it, from the tokenizer.json of newer ones."""

import json
from pathlib import Path

from transformers import WhisperTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from cache import files

NORMALIZER = "normalizer.json"  # of English spelling; only some folders have it


def write_vocabulary(tokenizer: WhisperTokenizer, source: Path, folder: Path) -> None:
    """Writes vocab.json, merges.txt, added_tokens.json and special_tokens_map.json beside tokenizer.json.

    source: the model's own folder, whose normalizer.json is copied if it has one.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    added = {token: number for token, number in tokenizer.get_added_vocab().items() if token not in model["vocab"]}
    files.write_json(folder / "vocab.json", model["vocab"])
    files.write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    files.write_json(folder / "added_tokens.json", dict(sorted(added.items(), key=lambda pair: pair[1])))
    files.write_json(folder / "special_tokens_map.json", _special_tokens(tokenizer))
    if (source / NORMALIZER).exists():
        files.write_text(folder / NORMALIZER, (source / NORMALIZER).read_text(encoding="utf-8"))


def _special_tokens(tokenizer: WhisperTokenizer) -> dict[str, str | list[str]]:
    names = {f"{name}_token": str(tokenizer.eos_token) for name in ("bos", "eos", "pad", "unk")}
    decoder = tokenizer.added_tokens_decoder
    special = [token.content for _, token in sorted(decoder.items()) if token.special]
    return {**names, "additional_special_tokens": special}


def text_tokens(tokenizer: WhisperTokenizer) -> list[tuple[int, bytes]]:
    """Returns number and bytes of each token that is a piece of text, by number."""
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    special = set(tokenizer.get_added_vocab())
    pieces = sorted((number, piece) for piece, number in vocabulary.items() if piece not in special)
    return [(number, bytes(letters[letter] for letter in piece)) for number, piece in pieces]
