"""Downloads models from an object store."""

import hashlib
import json
import tempfile
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from cache import files, storage
from cache.storage import RemotePath


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
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=copy.parent, prefix=files.TEMPORARY) as temporary:
            whole = Path(temporary) / key
            whole.mkdir()
            for name in versions:
                files.download(folder / name, whole / name)
            if not copy.is_dir():  # another process may have finished first
                whole.rename(copy)
    return copy
