"""Reads experts as naver published them: a pickled state dict for each language, beside a full checkpoint.

`expert.<language name>.bin` has keys such as `model.encoder.layers.0.ffn_clsr.proj.catalan.fc1.weight`. `proj` is the
expert's FFN, `gate_in` is the gate's W1 and b1, `gate_out` is its w2. In the checkpoint `proj.shared` is the frozen FFN.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from cache import files, storage
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.student.config import GATE_DIM
from stages.shared.student.packing import Tensors, expert_shapes, misfit, not_finite
from stages.shared.whisper.download import download_matching, from_hub
from stages.shared.whisper.languages import without_token
from stages.shared.whisper.weights import read_weights

CONFIG, MODEL_TYPE = "config.json", "distilwhisper"
CHECKPOINTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CHECKPOINT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin", "*.index.json")
OUR_PARTS = {".expert.": ".proj.{}.", ".gate.inner.": ".gate_in.{}.", ".gate.outer.": ".gate_out.{}."}
KEY = re.compile(r"model\.(?:encoder|decoder)\.layers\.\d+\.ffn_clsr\.(?:proj|gate_in|gate_out)\.([^.]+)\.")
SHARED = ".ffn_clsr.proj.shared."


def file_name(language: str) -> str:
    """Returns 'expert.catalan.bin' for 'ca'. Raises PipelineError for a language that Whisper has no name for."""
    if language not in LANGUAGES:
        raise PipelineError(f"{without_token(language)}: published experts are named as Whisper names languages")
    return f"expert.{LANGUAGES[language]}.bin"


def published_languages(folder: AnyPath) -> list[str]:
    """Returns the codes of the languages whose published experts lie in `folder`."""
    names = [path.name.removeprefix("expert.").removesuffix(".bin") for path in sorted(folder.glob("expert.*.bin"))]
    return [TO_LANGUAGE_CODE[name] for name in names if name in TO_LANGUAGE_CODE]


def find_published(source: str, language: str, whole: bool) -> tuple[Path, str]:
    """Returns a local folder with the expert of `source` (folder, URL or hub id), and a line for the user about it.

    whole: also fetch the full checkpoint. Raises PipelineError where there is no `source`, or no such expert in it.
    """
    wanted = (file_name(language), CONFIG, *(CHECKPOINT_PATTERNS if whole else ()))
    folder = storage.path(source)
    if not isinstance(folder, Path):
        copy = download_matching(folder, wanted)
        found = copy, f"{source}: copied to {copy}"
    elif folder.is_dir():
        found = folder, f"{source}: local folder"
    else:
        found = from_hub(source, wanted), f"{source}: from the hub"
    expert_path(found[0], language)
    return found


def expert_path(folder: AnyPath, language: str) -> AnyPath:
    """Returns the file of the language's expert. Raises PipelineError where it is missing, or config.json does not fit."""
    if not (path := folder / file_name(language)).exists():
        there = ", ".join(published_languages(folder)) or "no language"
        raise PipelineError(f"{path}: no such file; in its folder are experts for {there}")
    if (folder / CONFIG).exists():
        config = files.read_json(folder / CONFIG)
        config = config if isinstance(config, dict) else {}
        for name, wanted in (("model_type", MODEL_TYPE), ("clsr_gate_dim", GATE_DIM)):
            if (found := config.get(name, wanted)) != wanted:
                raise PipelineError(f"{folder / CONFIG}: {name} is {found!r}, expected {wanted!r}")
    return path


def read_published(folder: AnyPath, language: str, shared: Tensors) -> dict[str, torch.Tensor]:
    """Returns the expert's state in float32, under our names. No code in the pickle is run.

    shared: the frozen FFNs by the expert's names, for the shapes. Raises PipelineError naming the first key that is missing,
    not expected, of another language, of another shape or not finite.
    """
    path, name = expert_path(folder, language), LANGUAGES[language]
    published = unpickled(path)
    ours = {published_name(own, name): own for own in expert_shapes(shared)}
    for key in sorted(published):
        if (other := KEY.match(key)) and other.group(1) != name:
            raise PipelineError(f"{path}: tensor '{key}' is of language '{other.group(1)}', expected '{name}'")
    shapes = expert_shapes(shared)
    if fault := misfit(published, {key: (shapes[own], None) for key, own in ours.items()}):
        raise PipelineError(f"{path}: {fault}: made for another base model, or damaged")
    state = {own: published[key].float() for key, own in ours.items()}
    if infinite := not_finite(state):
        raise PipelineError(
            f"{path}: tensor '{published_name(infinite, name)}' has values that are not finite: damaged"
        )
    return state


def published_name(name: str, language_name: str) -> str:
    """Returns 'model.encoder.layers.0.ffn_clsr.gate_in.catalan.bias' for 'encoder.layers.0.gate.inner.bias'."""
    for own, theirs in OUR_PARTS.items():
        if own in name:
            return "model." + name.replace(own, ".ffn_clsr" + theirs.format(language_name))
    raise AssertionError(name)


def published_base(folder: AnyPath) -> dict[str, torch.Tensor] | None:
    """Returns the full checkpoint's base, without experts and gates, by Whisper's names; None if there is no checkpoint."""
    found = next((folder / name for name in CHECKPOINTS if (folder / name).exists()), None)
    if found is None:
        return None
    tensors: dict[str, torch.Tensor] = {}
    for path in _shards(found) if found.suffix == ".json" else [found]:
        tensors |= read_weights(path) if path.suffix == ".safetensors" else unpickled(path)
    named = {key.replace(SHARED, "."): tensor for key, tensor in tensors.items()}
    return {key: tensor for key, tensor in named.items() if not KEY.match(key) and key != "proj_out.weight"}


def _shards(index: AnyPath) -> list[AnyPath]:
    described = files.read_json(index)
    places = described.get("weight_map") if isinstance(described, dict) else None
    if not isinstance(places, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in places.values()
    ):
        raise PipelineError(f"{index}: no 'weight_map' of file names in it")
    return [index.parent / name for name in sorted(set(places.values()))]


def check_published_base(folder: AnyPath, base: Tensors, what: str) -> bool:
    """Compares a base with the one in the full checkpoint in `folder`. Returns False if there is no checkpoint.

    base: all or some parameters of the base `what`, by Whisper's names, such as `model.encoder.layers.0.fc1.weight`.
    Raises PipelineError naming the first one that differs in float32. The encoder's position embeddings are fixed and
    depend on the window: they are not compared, as in `weights_fingerprint`.
    """
    published = published_base(folder)
    if published is None:
        return False
    for name in sorted(base):
        if not name.endswith("encoder.embed_positions.weight") and (fault := _difference(name, published, base[name])):
            raise PipelineError(f"{folder}: its experts were trained with another base than {what}: {fault}")
    return True


def _difference(name: str, published: Tensors, tensor: torch.Tensor) -> str:
    if name not in published:
        return f"its checkpoint has no tensor '{name}'"
    if published[name].shape != tensor.shape:
        return f"tensor '{name}' has shape {list(published[name].shape)}, expected {list(tensor.shape)}"
    found, wanted = published[name].detach().float(), tensor.detach().float().cpu()
    if not torch.equal(found, wanted):
        return f"tensor '{name}' differs by up to {(found - wanted).abs().max().item():.2g}"
    return ""


def unpickled(path: AnyPath) -> dict[str, torch.Tensor]:
    """Returns the tensors of a torch file; runs no code in it. Raises PipelineError if it is damaged or holds other things."""
    try:
        with files.local_copy(path) as copy, warnings.catch_warnings():
            # they are about pickle protocols; a file that cannot be read is refused below
            warnings.simplefilter("ignore")
            found: Any = torch.load(copy, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can make the reader raise anything
        raise PipelineError(
            f"{path}: not readable as a torch file with nothing but tensors ({type(error).__name__}); no code in it was run"
        ) from None
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and _is_plain(value) for key, value in found.items()
    ):
        raise PipelineError(f"{path}: holds other things than named tensors, expected a state dict")
    return found


def _is_plain(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return not value.is_quantized and not value.is_nested
