"""Writes a model with its experts as two ONNX graphs, in which the gates decide for each token as they do here.

The encoder takes features and gives the keys and values of the decoder's cross-attention. The decoder takes one token with
the keys and values of those before it. Both take the number of the language's token: rows in the expert's language go
through the gates, all others through the shared blocks.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import WhisperFeatureExtractor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from cache import files
from stages.shared.student.clsr import RoutedFeedForward
from stages.shared.student.loading import LoadedModel
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.targets import prompt_ids
from stages.shared.whisper.window import FRAMES_PER_SECOND

# Shapes: B clips, M mel bins, F frames, T positions, S encoder positions, D width, L decoder layers, H heads, d width of one
ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
OPSET = 20
EMPTY: dict[str, Any] = {"suppress_tokens": [], "begin_suppress_tokens": []}  # not every Whisper names any
BATCH = torch.export.Dim("batch")
LARGEST_FILE = 1_900_000_000  # bytes; a file of ONNX holds 2 GB at most, the weights of larger ones lie beside it


class _Asked:
    """Holds, while a graph is traced, which rows of the batch are in the expert's language: (B,) bool."""

    rows: torch.Tensor


class _RoutedBlock(nn.Module):
    """Computes both blocks for all tokens and takes the one that the gate chooses: a graph cannot leave tokens out."""

    def __init__(self, routed: RoutedFeedForward, language: str, asked: _Asked):
        super().__init__()
        self.shared, self.expert = routed.shared, routed.experts[language]
        self.gate = routed.gates[language] if language in routed.gates else None  # noqa: SIM401 (no dict)
        self.asked = asked

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        takes_BT = self.asked.rows[:, None].expand(x_BTD.shape[:2])
        if self.gate is not None:
            takes_BT = takes_BT & (self.gate(x_BTD) >= 0)
        return torch.where(takes_BT[..., None], self.expert(x_BTD), self.shared(x_BTD))


class _Side(nn.Module):
    def __init__(self, model: Any, token: int | None, asked: _Asked):
        super().__init__()
        self.model, self.token, self.asked = model, -1 if token is None else token, asked

    def ask(self, language_B: torch.Tensor) -> None:
        self.asked.rows = torch.eq(language_B, self.token)


class _Encoder(_Side):
    def forward(self, features_BMF: torch.Tensor, language_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the keys and values of the cross-attention, (L, B, H, S, d) each."""
        self.ask(language_B)
        encoded_BSD = self.model.model.encoder(features_BMF).last_hidden_state
        keys, values = [], []
        for layer in self.model.model.decoder.layers:
            own = layer.encoder_attn
            shape = (*encoded_BSD.shape[:2], own.num_heads, own.head_dim)
            keys.append(own.k_proj(encoded_BSD).view(shape).transpose(1, 2))
            values.append(own.v_proj(encoded_BSD).view(shape).transpose(1, 2))
        return torch.stack(keys), torch.stack(values)


class _Decoder(_Side):
    def forward(
        self,
        token_B1: torch.Tensor,
        language_B: torch.Tensor,
        keys_LBHTd: torch.Tensor,
        values_LBHTd: torch.Tensor,
        cross_keys_LBHSd: torch.Tensor,
        cross_values_LBHSd: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the logits (B, V) of the next token, and the keys and values with those of this token."""
        self.ask(language_B)
        decoder = self.model.model.decoder
        own, cross = DynamicCache(), DynamicCache()
        for number in range(len(decoder.layers)):
            own.update(keys_LBHTd[number], values_LBHTd[number], number)
            cross.update(cross_keys_LBHSd[number], cross_values_LBHSd[number], number)
        cache = EncoderDecoderCache(own, cross)
        cache.is_updated = dict.fromkeys(range(len(decoder.layers)), True)
        position = torch.full((1,), keys_LBHTd.shape[3], dtype=torch.long)
        hidden_B1D = decoder.embed_tokens(token_B1) + decoder.embed_positions.weight[position]
        unused = hidden_B1D  # the cache has the cross-attention's keys and values
        for layer in decoder.layers:
            hidden_B1D = layer(hidden_B1D, None, unused, past_key_values=cache)
        logits_BV = self.model.proj_out(decoder.layer_norm(hidden_B1D))[:, -1]
        parts = [(layer.keys, layer.values) for layer in own.layers]
        return logits_BV, torch.stack([keys for keys, _ in parts]), torch.stack([values for _, values in parts])


def write_onnx(loaded: LoadedModel, folder: Path) -> None:
    """Writes encoder.onnx and decoder.onnx in float32, and the files that say how to make features and read tokens.

    The model's feed-forward blocks are replaced: it is of no other use afterwards.
    """
    whisper, asked = loaded.whisper, _Asked()
    model: Any = whisper.model.eval()
    token = None
    if loaded.student is not None:
        (language,) = loaded.languages
        token = prompt_ids(whisper, language)[1]
        _replace_blocks(model, language, asked)
    _trace_encoder(_Encoder(model, token, asked), whisper, folder / ENCODER)
    _trace_decoder(_Decoder(model, token, asked), whisper, folder / DECODER)
    whisper.tokenizer.save_pretrained(folder)
    generation = model.generation_config
    generation.max_length = model.config.max_target_positions
    files.write_json(folder / "generation_config.json", {**EMPTY, **generation.to_dict()})
    WhisperFeatureExtractor(
        feature_size=model.config.num_mel_bins, chunk_length=whisper.audio_window_s
    ).save_pretrained(folder)


def _replace_blocks(model: Any, language: str, asked: _Asked) -> None:
    for part in (model.model.encoder, model.model.decoder):
        for layer in part.layers:
            routed = layer.fc1
            layer.fc1 = _RoutedBlock(routed, language, asked) if language in routed.experts else routed.shared


def _trace_encoder(encoder: _Encoder, whisper: Whisper, path: Path) -> None:
    features = torch.zeros(2, whisper.model.config.num_mel_bins, FRAMES_PER_SECOND * whisper.audio_window_s)
    shapes = {"features_BMF": {0: BATCH}, "language_B": {0: BATCH}}
    names = ["features", "language"], ["cross_keys", "cross_values"]
    _trace(encoder, (features, torch.zeros(2, dtype=torch.long)), shapes, names, path)


def _trace_decoder(decoder: _Decoder, whisper: Whisper, path: Path) -> None:
    config = whisper.model.config
    heads = config.decoder_attention_heads
    sizes = [3, 3, config.max_source_positions, config.max_source_positions]  # of keys and values, own and cross
    # four tensors: the exporter takes one that is given twice for a single input
    caches = [torch.zeros(config.decoder_layers, 2, heads, size, config.d_model // heads) for size in sizes]
    past_dim = torch.export.Dim("past")
    own = {name: {1: BATCH, 3: past_dim} for name in ("keys_LBHTd", "values_LBHTd")}
    crosses = {name: {1: BATCH} for name in ("cross_keys_LBHSd", "cross_values_LBHSd")}
    shapes = {"token_B1": {0: BATCH}, "language_B": {0: BATCH}, **own, **crosses}
    inputs = ["token", "language", "past_keys", "past_values", "cross_keys", "cross_values"]
    example = (torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, dtype=torch.long), *caches)
    _trace(decoder, example, shapes, (inputs, ["logits", "keys", "values"]), path)


def _size(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


@torch.no_grad()
def _trace(module: nn.Module, example: tuple, shapes: dict, names: tuple[list[str], list[str]], path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names the packages that it could also use
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parts of torch that its exporter uses
        torch.onnx.export(
            module,
            example,
            path,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=names[0],
            output_names=names[1],
            opset_version=OPSET,
            external_data=_size(module) > LARGEST_FILE,
            verbose=False,
        )
