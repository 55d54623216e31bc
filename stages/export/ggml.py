"""Writes a file for whisper.cpp, as its own models/convert-h5-to-ggml.py does."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from cache.errors import PipelineError
from stages.export.vocabulary import text_tokens
from stages.shared.whisper.models import ENGLISH_VOCABULARY, Whisper
from stages.shared.whisper.window import FULL_WINDOW_S, POSITIONS_PER_SECOND

MAGIC = 0x67676D6C  # "ggml"
F32, F16 = 0, 1  # types of a tensor; as the file's own type, that of the matrices
VOCABULARIES = (ENGLISH_VOCABULARY, 51865, 51866)  # whisper.cpp tells the control tokens by the size
FFN_WIDTHS = 4
MODULES = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}
OUTSIDE = {  # of the layers
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
    "encoder.embed_positions.weight": "encoder.positional_embedding",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
    "decoder.embed_tokens": "decoder.token_embedding",
}


def check_sizes(whisper: Whisper) -> None:
    """Raises PipelineError where whisper.cpp, which takes some sizes for granted, would not read the file or misread it."""
    config = whisper.model.config
    if config.vocab_size not in VOCABULARIES:
        raise PipelineError(
            f"{whisper.model_id}: {config.vocab_size} tokens, expected {', '.join(map(str, VOCABULARIES))} as in a released "
            "Whisper: whisper.cpp finds the control tokens by this number"
        )
    inner = {config.encoder_ffn_dim, config.decoder_ffn_dim}
    if inner != {FFN_WIDTHS * config.d_model}:
        raise PipelineError(
            f"{whisper.model_id}: feed-forward blocks of {', '.join(map(str, sorted(inner)))}, expected "
            f"{FFN_WIDTHS * config.d_model} ({FFN_WIDTHS} times the model's width): whisper.cpp reads no other"
        )


def write_ggml(whisper: Whisper, path: Path) -> None:
    """Writes the model, whose encoder has the positions of all 30 s.

    Matrices are float16. Biases, norms and positions are float32: whisper.cpp adds them in that type. whisper.cpp does not
    run files whose matrices are float32: its convolution is float16 alone.
    Raises PipelineError where the model's sizes are not those of a released Whisper.
    """
    check_sizes(whisper)
    with open(path, "wb") as file:
        file.write(struct.pack("<i", MAGIC))
        _write_sizes(file, whisper)
        _write_filters(file, whisper.model.config.num_mel_bins)
        pieces = [piece for _, piece in text_tokens(whisper.tokenizer)]
        file.write(struct.pack("<i", len(pieces)))
        for piece in pieces:
            file.write(struct.pack("<i", len(piece)) + piece)
        for name, values in tensors(whisper.model):
            _write_tensor(file, name, values)


def _write_sizes(file: BinaryIO, whisper: Whisper) -> None:
    config = whisper.model.config
    assert config.max_source_positions == FULL_WINDOW_S * POSITIONS_PER_SECOND
    encoder = (config.max_source_positions, config.d_model, config.encoder_attention_heads, config.encoder_layers)
    decoder = (config.max_target_positions, config.d_model, config.decoder_attention_heads, config.decoder_layers)
    file.write(struct.pack("<11i", config.vocab_size, *encoder, *decoder, config.num_mel_bins, F16))


def _write_filters(file: BinaryIO, mels: int) -> None:
    filters_MF = WhisperFeatureExtractor(feature_size=mels).mel_filters.T
    file.write(struct.pack("<2i", *filters_MF.shape) + filters_MF.astype("<f4").tobytes())


def tensors(model: torch.nn.Module) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and values of each tensor as the file has it: float16 or float32. The output projection is tied."""
    for name, tensor in model.state_dict().items():
        if name == "proj_out.weight":
            continue
        values = tensor.detach().float().cpu().numpy()
        own = ggml_name(name.removeprefix("model."))
        if own in ("encoder.conv1.bias", "encoder.conv2.bias"):
            values = values[:, None]
        small = values.ndim < 2 or values.shape[-1] == 1 or own.endswith("positional_embedding")
        yield own, values.astype("<f4" if small else "<f2")


def ggml_name(name: str) -> str:
    """Returns 'encoder.blocks.0.attn.key.weight' for 'encoder.layers.0.self_attn.k_proj.weight'."""
    side, _, rest = name.partition(".layers.")
    if rest:
        number, _, inner = rest.partition(".")
        module, _, kind = inner.rpartition(".")
        return f"{side}.blocks.{number}.{MODULES[module]}.{kind}"
    return next((new + name.removeprefix(old) for old, new in OUTSIDE.items() if name.startswith(old)), name)


def _write_tensor(file: BinaryIO, name: str, values: np.ndarray) -> None:
    kind = F32 if values.dtype == np.float32 else F16
    key = name.encode()
    file.write(struct.pack("<3i", values.ndim, len(key), kind))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + key)
    file.write(np.ascontiguousarray(values).tobytes())
