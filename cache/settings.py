"""Output made with other settings is never mixed in: it is refused by name, or removed where that was asked for."""

import json
from typing import Any

from cache import storage
from cache.errors import PipelineError
from cache.storage import AnyPath


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives them back, so that found and wanted settings compare equal."""
    return json.loads(json.dumps(settings))


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """'' where equal, else each differing field as `name: found X, wanted Y`."""
    fields = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return "; ".join(f"{name}: found {found.get(name)!r}, wanted {wanted.get(name)!r}" for name in fields)


def superseded(folder: AnyPath, found: dict[str, Any], wanted: dict[str, Any], restart: bool) -> bool:
    """Whether `folder`, made with settings `found`, must be made again; then it has been emptied.

    Raises PipelineError naming the fields that differ, unless `restart`.
    """
    differing = differences(found, wanted)
    if differing and not restart:
        raise PipelineError(
            f"{folder} was made with other settings ({differing}): give --restart to make it again, or another folder"
        )
    if differing:
        storage.remove_tree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    return bool(differing)
