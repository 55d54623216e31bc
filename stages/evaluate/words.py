"""The expert's share of each word of a text."""

# Shapes: B clips that are not silent, T positions

import torch

from stages.shared.gate_use import PROMPT_TOKENS
from stages.shared.whisper.decode import Gates, Transcriber, Transcript


def expert_words(transcribe: Transcriber, found: list[Transcript], gates: Gates) -> list[list[int] | None]:
    """Returns for each text the expert's share of each of its words, in percent, with words as the text is written.

    A token's share is that of the decoder's layers that took the expert to predict it, a word's the mean of its tokens'.
    gates: (B, T) for each call of a layer. Each is None where the model has no expert for the language.
    """
    if transcribe.language not in getattr(transcribe.whisper.model, "languages", ()):
        return [None] * len(found)
    layers = [torch.cat(calls, dim=1) for layer, calls in gates.items() if layer.startswith("decoder")]
    # the prompt's last position predicts the first token
    shares_BT = torch.stack(layers).float().mean(dim=0)[:, PROMPT_TOKENS - 1 :].tolist() if layers else []
    each = iter(shares_BT)
    return [[] if one.silent else _words(transcribe, one.tokens, next(each)) for one in found]


def _words(transcribe: Transcriber, tokens: list[int], shares: list[float]) -> list[int]:
    """Gives each token to the last word of the text up to it: a letter may be several tokens. The end of text is no word's."""
    words: list[list[float]] = []
    for number, token in enumerate(tokens):
        count = len(transcribe.text(tokens[: number + 1]).split())
        words += [[] for _ in range(count - len(words))]
        if words and token != transcribe.whisper.tokenizer.eos_token_id:
            words[-1].append(shares[number])
    return [round(100 * sum(word) / max(1, len(word))) for word in words]


def kept_shares(shares: list[int], before: Transcript, after: Transcript) -> list[int]:
    """Returns the shares of the words that are left of a window's text once it was joined with others.

    before: the transcript that `shares` are of. after: the same, perhaps without some of its first and last words.
    """
    count = len(after.text.split())
    if len(before.words) == len(after.words):
        return shares[:count]
    told, left = ([(word.text, word.probability) for word in one.words] for one in (before, after))
    first = next((n for n in range(len(told)) if told[n : n + len(left)] == left), 0)
    dropped = len("".join(word.text for word in before.words[:first]).split())
    start = min(dropped, max(0, len(shares) - count))  # in a script without spaces a text is one word
    return shares[start : start + count]
