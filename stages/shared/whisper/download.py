"""Downloads models from an object store or from the hub."""

import hashlib
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

from cache import files, storage
from cache.errors import PipelineError
from cache.locks import taking_turns
from cache.storage import RemotePath

HUB_TIMEOUT_S = 10


def download_matching(folder: RemotePath, patterns: Iterable[str]) -> Path:
    """Returns a local copy of the files in `folder` whose names match. The same content is downloaded once."""
    versions = {
        name: version
        for name, version in sorted(storage.versions(folder).items())
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    key = hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:32]
    copy = files.download_folder() / "models" / key
    if not copy.is_dir():
        with taking_turns(copy):
            if not copy.is_dir():
                with files.new_folder(copy) as whole:
                    for name in versions:
                        files.download(folder / name, whole / name)
    return copy


def from_hub(source: str, wanted: Iterable[str]) -> Path:
    """Returns a local copy of the files in a repository of the hub whose names match. Each version is downloaded once.

    wanted: patterns, whose * also stands for folders. Raises PipelineError where `source` is no hub id, or where the hub does
    not give the files.
    """
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise PipelineError(f"{source}: no such folder, and not a hub id (owner/name)")
    try:
        return Path(snapshot_download(source, allow_patterns=list(wanted), etag_timeout=HUB_TIMEOUT_S))
    except RepositoryNotFoundError:  # the hub's answer is the same for both, and for a gated one
        raise PipelineError(
            f"{source}: not a local folder, and the hub has no such repository, or does not open it to you: check the name; "
            "for a private or gated one log in with `hf auth login`, or set HF_TOKEN"
        ) from None
    except Exception as error:  # the hub's client passes on the errors of many libraries
        reason = next(iter(str(error).strip().splitlines()), "no message")
        raise PipelineError(
            f"{source}: not a local folder, and the hub does not give it ({type(error).__name__}: {reason}): "
            "download the repository on another machine, and give its folder"
        ) from None
