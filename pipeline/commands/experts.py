"""pipeline experts import, info, compress (bundle.py has bundle)"""

from collections.abc import Iterator
from typing import Any

import torch

from cache import storage
from cache.errors import PipelineError
from cache.locks import sole_writer
from cache.storage import AnyPath
from pipeline.commands.common import load, say
from pipeline.errors import each
from pipeline.options import print_descriptions
from pipeline.progress import ProgressReport
from stages.shared.card.stored import write_card
from stages.shared.student import adapters, bundles, experts
from stages.shared.student.metadata import base_metadata, find_base, load_base
from stages.shared.student.packing import Precision, Tensors, check_choice, kept
from stages.shared.student.published import check_published_base, find_published, read_published
from stages.shared.whisper.models import parameter_count
from stages.shared.whisper.weights import read_weights
from stages.shared.whisper.window import FULL_WINDOW_S

BYTES_PER_PARAMETER = 2  # the base is released in float16
GATES = {"token": "for each token", "layer": "for each layer", "none": "none: the expert takes every token"}


def import_published(base_source: str, source: str, language: str, out: AnyPath, check_base: bool) -> None:
    """Writes the published expert at `source` (folder, URL or hub id) to `out`, in our layout.

    check_base: require a full checkpoint, whose base is compared. Raises PipelineError where the base or the expert does not
    fit, or where `out` holds an expert.
    """
    _refuse_taken(out)
    folder, line = find_published(source, language, check_base)
    say(line)
    base = load(base_source, FULL_WINDOW_S)
    shared = experts.shared_of(base.model)
    state = read_published(folder, language, shared)
    checked = check_published_base(folder, dict(base.model.named_parameters()), base.model_id)
    if check_base and not checked:
        raise PipelineError(f"{folder}: holds no full checkpoint: --check-base has nothing to compare the base with")
    named = base_metadata(base.model_id, dict(base.model.named_parameters()), FULL_WINDOW_S, base.fingerprint)
    metadata = {**named, "base_checked": checked, "source": source}
    with sole_writer(out):
        _refuse_taken(out)
        experts.write_expert(out, language, state, shared, metadata, _exact_precision(state))
        write_card(out, base_source)
    equal = f"the base in its checkpoint equals {base.model_id}"
    unchecked = f"{source} has no full checkpoint here: whether its base is {base.model_id} was not checked"
    say(f"{out}: {_summary(describe(out))}; {equal if checked else unchecked}")


def compress(
    folder: AnyPath, out: AnyPath, precision: Precision, rank: int | None, base_source: str | None = None
) -> None:
    """Writes the expert in `folder` to `out` in fewer bytes. base_source: of its base; None takes the one that it names."""
    _refuse_taken(out)
    metadata = experts.read_expert_metadata(folder)
    base = load_base(find_base(metadata, folder, base_source), metadata, folder / experts.METADATA)
    shared = experts.shared_of(base.model)
    check_choice(shared, precision, rank)
    state = experts.read_expert(folder, metadata, shared).state
    before = {"precision": metadata["precision"], "rank": metadata["rank"]}
    changed = {
        "base_parameters": parameter_count(dict(base.model.named_parameters())),
        "compressed_from": metadata.get("compressed_from", before),
    }
    header = ("format_version", "parameters", "precision", "rank")
    carried = {name: value for name, value in metadata.items() if name not in header}
    with sole_writer(out), ProgressReport(f"experts compress {folder}", "tensors") as progress:
        _refuse_taken(out)
        experts.write_expert(out, metadata["language"], state, shared, carried | changed, precision, rank, progress)
        write_card(out, base.model_id)
    stored = experts.read_expert(out, experts.read_expert_metadata(out), shared).state
    say(f"{out}: {_summary(describe(out))}; {_kept(state, stored, shared)}")


def _kept(state: Tensors, stored: Tensors, shared: Tensors) -> str:
    return f"{100 * kept(state, stored, shared):.2f} % of what training changed in the FFNs is kept (squared norm)"


def _refuse_taken(out: AnyPath) -> None:
    if experts.is_experts_folder(out):
        raise PipelineError(f"{out}: already holds an expert: remove it, or give another folder")


def _exact_precision(state: dict[str, torch.Tensor]) -> Precision:
    """Returns fp16 if that loses nothing, else fp32."""
    return "fp16" if all(torch.equal(tensor.half().float(), tensor) for tensor in state.values()) else "fp32"


def info(folders: tuple[AnyPath, ...], as_json: bool) -> None:
    found: list[dict[str, Any]] = []
    try:
        each(folders, str, lambda folder: found.extend(_described(folder)))
    finally:
        print_descriptions(found, as_json, _lines)


def _described(folder: AnyPath) -> list[dict[str, Any]]:
    """Returns the description of the folder, or of each expert and adapter in a bundle."""
    bundled = bundles.is_bundle_folder(folder)
    parts = bundles.part_folders(folder, bundles.read_bundle_metadata(folder)) if bundled else [folder]
    return [describe(part) for part in parts]


def describe(folder: AnyPath) -> dict[str, Any]:
    """Returns the metadata of an expert or an adapter, the bytes of its weights, and their share of the base's in float16."""
    adapter = adapters.is_lora_folder(folder)
    metadata = _of_adapter(folder) if adapter else experts.read_expert_metadata(folder)
    name = folder / (adapters.WEIGHTS if adapter else experts.WEIGHTS)
    size = storage.sizes(folder).get(name.name)
    if size is None:
        raise PipelineError(f"{name}: no such file")
    whole = metadata.get("base_parameters")
    share = size / (BYTES_PER_PARAMETER * whole) if isinstance(whole, int) and whole > 0 else None
    return {"folder": str(folder), **metadata, "bytes": size, "share_of_base": share}


def _of_adapter(folder: AnyPath) -> dict[str, Any]:
    """Returns the adapter's metadata with the fields that only an expert's file has."""
    metadata, rank = adapters.read_adapter_metadata(folder), adapters.adapter_rank(folder)
    parameters = sum(tensor.numel() for tensor in read_weights(folder / adapters.WEIGHTS).values())
    return {**metadata, "parameters": parameters, "rank": rank, "gates": "none", "precision": "LoRA", "layers": None}


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    tokens = found.get("language_tokens", {})
    named = found.get("languages") or [found["language"]]
    other = {code: token for code in named if (token := tokens.get(code, found.get("token", code))) != code}
    under = [f"{code} under the token of {other[code]}" if code in other else code for code in named]
    yield "language", ", ".join(under)
    yield "base", f"{found['base']}, weights {str(found['base_weights'])[:12]}"
    yield "audio window", f"{found['audio_window_s']} s"
    if "source" in found:
        yield "source", f"{found['source']}, base {'checked' if found.get('base_checked') else 'not checked'}"
    yield "parameters", f"{found['parameters']:,}" if isinstance(found.get("parameters"), int) else "not known"
    yield "layers", "all" if found["layers"] is None else ", ".join(found["layers"])
    yield "gates", GATES[found["gates"]]
    yield "stored as", _stored_as(found)
    yield "bytes", f"{found['bytes']:,}, {_share(found)}"
    yield "validation WER", _validation(found)


def _summary(found: dict[str, Any]) -> str:
    return (
        f"expert for {found['language']}, {found['parameters'] / 1e6:.1f} M parameters, {_stored_as(found)}, "
        f"{found['bytes']:,} bytes, {_share(found)}"
    )


def _stored_as(found: dict[str, Any]) -> str:
    return f"{found['precision']}, " + ("full rank" if found["rank"] is None else f"rank {found['rank']}")


def _share(found: dict[str, Any]) -> str:
    share = found["share_of_base"]
    return "share of the base's size not known" if share is None else f"{100 * share:.1f} % of the base in fp16"


def _validation(found: dict[str, Any]) -> str:
    wer = found.get("validation_wer")
    if not isinstance(wer, int | float):
        return "not known"
    return f"{100 * wer:.1f} %" + (", before it was compressed" if "compressed_from" in found else "")
