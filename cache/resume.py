"""Output made otherwise is never mixed in: it is refused by name, or removed where that was asked for."""

import json
from typing import Any, Literal

from cache import storage
from cache.errors import PipelineError
from cache.storage import AnyPath

# What becomes of a folder that holds earlier work. `refuse`: the same work is kept, other work is an error. `update`: the
# same work is kept, other work is removed. `restart`: all is removed.
Rerun = Literal["refuse", "update", "restart"]


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives them back, so that found and wanted settings compare equal."""
    return json.loads(json.dumps(values))


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """'' where equal, else each differing field as `name: found X, wanted Y`."""
    fields = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return "; ".join(f"{name}: found {found.get(name)!r}, wanted {wanted.get(name)!r}" for name in fields)


def discard_if_changed(folder: AnyPath, found: dict[str, Any], wanted: dict[str, Any], rerun: Rerun) -> bool:
    """Empties `folder`, made with settings `found`, where it must be made again; returns whether it did.

    Raises PipelineError naming the fields that differ, where `rerun` is `refuse`.
    """
    differing = differences(found, wanted)
    if not differing and rerun != "restart":
        return False
    if differing and rerun == "refuse":
        raise PipelineError(
            f"{folder} was made with other settings ({differing}): give --update or --restart to make it again, "
            "or another folder"
        )
    remove_contents(folder)
    return True


def remove_contents(folder: AnyPath) -> None:
    """Removes all that is in the folder."""
    storage.remove_tree(folder)
    folder.mkdir(parents=True, exist_ok=True)
