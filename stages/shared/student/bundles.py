"""Reads and writes bundles: experts and adapters of several languages in one folder, for one base.

`bundle.json` names the base, and for each language the folder of its expert or adapter, which is as training wrote it.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cache import files
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.student import adapters, experts
from stages.shared.student.experts import StoredExpert
from stages.shared.student.metadata import BASE_FIELDS, read_metadata
from stages.shared.student.packing import Tensors
from stages.shared.student.sources import Base, read_any_expert
from stages.shared.whisper.languages import language_code

METADATA = "bundle.json"
FORMAT_VERSION = 1
REQUIRED = {"languages": dict, **BASE_FIELDS}
# What loading needs of a folder; what else training left there stays behind.
EXPERT_FILES = (experts.METADATA, experts.WEIGHTS)
ADAPTER_FILES = (adapters.METADATA, adapters.ADAPTER, adapters.WEIGHTS)


class Part(NamedTuple):
    """A folder of one expert, or of one adapter, that goes into a bundle."""

    folder: AnyPath
    tokens: Mapping[str, str | None]  # its languages; for each the one whose token stands for it, None for its own

    @property
    def name(self) -> str:
        """Returns the name of its folder in the bundle: cs, or cs-nl for an adapter of two languages."""
        return "-".join(self.tokens)


def is_bundle_folder(folder: AnyPath) -> bool:
    return (folder / METADATA).exists()


def read_bundle_metadata(folder: AnyPath) -> dict[str, Any]:
    """Reads `bundle.json`. Raises PipelineError where it is of another format version, incomplete, or not sound."""
    path = folder / METADATA
    metadata = read_metadata(path, (FORMAT_VERSION,), REQUIRED)
    if not metadata["languages"]:
        raise PipelineError(f"{path}: languages is empty, expected one or several")
    for code, entry in metadata["languages"].items():
        if not isinstance(entry, dict) or not _is_name(entry.get("folder")):
            raise PipelineError(
                f"{path}: language {code!r} is {entry!r}, expected the name of a folder beside this file"
            )
        if language_code(code) != code:
            raise PipelineError(f"{path}: {code!r} is no code of a language, expected {language_code(code)!r}")
    return metadata


def _is_name(found: Any) -> bool:
    """A name that leads out of the bundle is refused: the file may come from anywhere."""
    return isinstance(found, str) and found not in ("", ".", "..") and not set(found) & set("/\\:")


def part_folders(folder: AnyPath, metadata: Mapping[str, Any]) -> list[AnyPath]:
    """Returns the folders of the experts and adapters in a bundle, each once."""
    return [folder / name for name in dict.fromkeys(entry["folder"] for entry in metadata["languages"].values())]


def read_bundle(folder: AnyPath, metadata: Mapping[str, Any], shared: Tensors, base: Base) -> Iterator[StoredExpert]:
    """Yields the expert of each language, in the order of `bundle.json`. Adapters are experts without gates.

    shared: the base's FFNs by the expert's names. Raises PipelineError where an expert does not fit the base, or is not
    what `bundle.json` says.
    """
    for code, entry in metadata["languages"].items():
        expert = read_any_expert(folder / entry["folder"], code, shared, base)
        if expert.token != entry.get("token"):
            raise PipelineError(
                f"{folder / METADATA}: the token of {code} is {entry.get('token')!r}, but {entry['folder']} has "
                f"{expert.token!r}: damaged; bundle the folders again"
            )
        yield expert


def write_bundle(out: AnyPath, parts: Sequence[Part], base: Mapping[str, Any]) -> None:
    """Writes a bundle of `parts` to the new folder `out`, whole or not at all.

    base: what `base_metadata` returns. The caller must have checked that the parts fit it, and that no language is twice.
    """
    languages = {
        code: {"folder": part.name, **({"token": token} if token else {})}
        for part in parts
        for code, token in part.tokens.items()
    }
    with files.new_folder(out) as whole:
        for part in parts:
            _copy(part.folder, whole / part.name)
        files.write_json(whole / METADATA, {"format_version": FORMAT_VERSION, **base, "languages": languages})


def _copy(folder: AnyPath, target: Path) -> None:
    target.mkdir()
    for name in EXPERT_FILES if experts.is_experts_folder(folder) else ADAPTER_FILES:
        with files.local_copy(folder / name) as copy:
            shutil.copyfile(copy, target / name)
