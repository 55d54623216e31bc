"""When each token is said: from the decoder's cross-attention, by dynamic time warping, as openai/whisper does it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from stages.shared.whisper.targets import decoder_inputs
from stages.shared.whisper.window import POSITIONS_PER_SECOND

# Shapes: B clips of a batch, H alignment heads, T positions of the decoder, S positions of the encoder, D model width,
# W width of a head

Heads = dict[int, list[int]]  # layer -> heads whose attention follows the speech

# (decoder layers, heads, vocabulary) -> layer.head of the released multilingual models, `_ALIGNMENT_HEADS` of
# openai/whisper, for a model whose configuration names none. large-v1 has large-v2's key.
RELEASED: dict[tuple[int, int, int], str] = {
    (4, 6, 51865): "2.2 3.0 3.2 3.3 3.4 3.5",  # tiny
    (6, 8, 51865): "3.1 4.2 4.3 4.7 5.1 5.2 5.4 5.6",  # base
    (12, 12, 51865): "5.3 5.9 8.0 8.4 8.7 8.8 9.0 9.7 9.9 10.5",  # small
    (24, 16, 51865): "13.15 15.4 15.15 16.1 20.0 23.4",  # medium
    (32, 20, 51865): "10.12 13.17 16.11 16.12 16.13 17.15 17.16 18.4 18.11 18.19 19.11 21.2 21.3 22.3 22.9 22.12 "
    "23.5 23.7 23.13 25.5 26.1 26.12 27.15",  # large-v2
    (32, 20, 51866): "7.0 10.17 12.18 13.12 16.1 17.14 19.11 21.4 24.1 25.6",  # large-v3
    (4, 20, 51866): "2.4 2.11 3.3 3.6 3.11 3.14",  # large-v3-turbo
}


def alignment_heads(model: WhisperForConditionalGeneration) -> Heads:
    """Returns the heads that the model's generation configuration names, else those of the released model of its size.

    A model of another size: all heads of the upper half of its decoder's layers, as in openai/whisper.
    """
    config = model.config
    layers, heads = config.decoder_layers, config.decoder_attention_heads
    named = [tuple(pair) for pair in getattr(model.generation_config, "alignment_heads", None) or []]
    if not named or any(layer >= layers or head >= heads for layer, head in named):  # those of another model
        known = RELEASED.get((layers, heads, config.vocab_size), "").split()
        named = [tuple(map(int, pair.split("."))) for pair in known]
    found: Heads = {}
    for layer, head in named or [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]:
        found.setdefault(layer, []).append(head)
    return dict(sorted(found.items()))


def align(
    model: WhisperForConditionalGeneration,
    encoded_BSD: torch.Tensor,
    prompt: list[int],
    texts: Sequence[list[int]],
    positions: Sequence[int],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns for each clip (times, probs): where its tokens begin and the last one ends, (T + 1,) seconds, and their
    probabilities, (T,), when the decoder reads them. In a model with experts the caller sets the route.

    texts: T tokens of each clip, without end of text; none is empty. positions: of the encoder that each clip fills.
    """
    inputs = decoder_inputs(prompt, [[*ids, prompt[0]] for ids in texts], prompt[0]).to(encoded_BSD.device)
    with _scores_of(model, alignment_heads(model)) as scores:
        hidden_BTD = model.model.decoder(
            input_ids=inputs, encoder_hidden_states=encoded_BSD, use_cache=False
        ).last_hidden_state
    scores_BHTS = torch.cat(scores, dim=1)
    found = []
    for row, (ids, filled) in enumerate(zip(texts, positions, strict=True)):
        read = slice(len(prompt) - 1, len(prompt) + len(ids) - 1)  # the positions from which the tokens are predicted
        probs_TV = model.proj_out(hidden_BTD[row, read]).float().softmax(-1)
        probs = probs_TV[torch.arange(len(ids)), torch.tensor(ids)].cpu().numpy()
        scores_HTS = scores_BHTS[row, :, : len(prompt) + len(ids), :filled].float()
        found.append((token_times(scores_HTS, len(prompt), model.config.median_filter_width), probs))
    return found


def token_times(scores_HTS: torch.Tensor, prompt: int, filter_width: int) -> np.ndarray:
    """Returns where each token after the prompt begins, and where the last one ends: (T - prompt + 1,) seconds.

    scores_HTS: of the cross-attention before its softmax, (H, T, S). prompt: number of its tokens. filter_width: of a
    median over S, odd. The position of a token attends to the sound of the next one, which it predicts: the path through
    the positions from the end of the prompt on begins a row where a token begins.
    """
    weights_HTS = scores_HTS.softmax(-1)
    std, mean = torch.std_mean(weights_HTS, dim=-2, keepdim=True, unbiased=False)
    standard_HTS = (weights_HTS - mean) / std.clamp_min(torch.finfo(torch.float32).tiny)
    filtered_TS = _median_filter(standard_HTS, filter_width).mean(dim=0)[prompt - 1 :]
    rows, columns = _dynamic_time_warping(-filtered_TS.cpu().double().numpy())
    begins = np.pad(np.diff(rows), (1, 0), constant_values=1).astype(bool)
    return columns[begins] / POSITIONS_PER_SECOND


@contextmanager
def _scores_of(model: WhisperForConditionalGeneration, heads: Heads) -> Iterator[list[torch.Tensor]]:
    """Yields a list that gets the scores (B, heads, T, S) of each of the layers, in their order, when the decoder runs.

    The faster ways to compute attention return none, and all heads of a large model would fill the memory.
    """
    scores: list[torch.Tensor] = []

    def record(own: list[int], attention: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        query_BHTW = _split(attention.q_proj(given[0]) * attention.scaling, attention)[:, own]
        key_BHSW = _split(attention.k_proj(named["key_value_states"]), attention)[:, own]
        scores.append(query_BHTW @ key_BHSW.transpose(-1, -2))

    layers = [(model.model.decoder.layers[layer].encoder_attn, own) for layer, own in heads.items()]
    hooks = [layer.register_forward_pre_hook(partial(record, own), with_kwargs=True) for layer, own in layers]
    try:
        yield scores
    finally:
        for hook in hooks:
            hook.remove()


def _split(states: torch.Tensor, attention: Any) -> torch.Tensor:
    """Splits (B, positions, D) into the heads: (B, heads, positions, W)."""
    return states.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)
