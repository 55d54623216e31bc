"""When each token is said: from the decoder's cross-attention, by dynamic time warping, as openai/whisper does it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from stages.shared.whisper.alignment_heads import alignment_heads
from stages.shared.whisper.targets import decoder_inputs
from stages.shared.whisper.window import POSITIONS_PER_SECOND

# Shapes: B clips of a batch, H alignment heads, T positions of the decoder, S positions of the encoder, D model width,
# W width of a head


def heads_by_layer(model: WhisperForConditionalGeneration) -> dict[int, list[int]]:
    """Returns the heads whose attention follows the speech, by layer.

    Where they are not known: all heads of the upper half of the decoder's layers, as in openai/whisper.
    """
    layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
    found: dict[int, list[int]] = {}
    upper = [[layer, head] for layer in range(layers // 2, layers) for head in range(heads)]
    for layer, head in alignment_heads(model) or upper:
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
    targets = [[*ids, prompt[0]] for ids in texts]
    inputs = decoder_inputs([prompt] * len(texts), targets, prompt[0]).to(encoded_BSD.device)
    with _scores_of(model, heads_by_layer(model)) as scores:
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
def _scores_of(model: WhisperForConditionalGeneration, heads: dict[int, list[int]]) -> Iterator[list[torch.Tensor]]:
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
