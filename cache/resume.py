"""Decides whether earlier output is kept. Output made otherwise is never mixed in: it is refused, or removed on request."""

import json
from typing import Any, Literal

from cache import storage
from cache.errors import PipelineError
from cache.storage import AnyPath

# What to do with a folder that holds earlier work. `refuse`: keeps the same work, other work is an error. `update`: keeps the
# same work, removes other work. `restart`: removes all.
Rerun = Literal["refuse", "update", "restart"]


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Returns `values` as they are after a round trip through JSON, so that found and wanted values compare equal."""
    return json.loads(json.dumps(values))


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Returns each differing field as `name: found X, wanted Y`, '' where all are equal."""
    fields = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return "; ".join(f"{name}: found {found.get(name)!r}, wanted {wanted.get(name)!r}" for name in fields)


def discard_if_changed(folder: AnyPath, found: dict[str, Any], wanted: dict[str, Any], rerun: Rerun) -> bool:
    """Removes the content of `folder`, made with settings `found`, if it must be made again. Returns whether it did so.

    Raises PipelineError naming the fields that differ, if `rerun` is `refuse`.
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
    """Removes all that the folder holds, and keeps the folder."""
    storage.remove_tree(folder)
    folder.mkdir(parents=True, exist_ok=True)
