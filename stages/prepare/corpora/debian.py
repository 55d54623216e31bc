"""Fetches and unpacks Debian packages with apt's own tools, as any user."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from cache.errors import PipelineError
from cache.files import TEMPORARY, download_folder
from cache.locks import taking_turns


def fetch(packages: list[str], name: str) -> list[Path]:
    """Returns the folder of each package's files (PACKAGE_VERSION_ARCHITECTURE), and downloads what is not there yet.

    name: of the folder among the downloads. Raises PipelineError where a package cannot be fetched.
    """
    folder = download_folder() / name
    if _missing(packages, folder):
        with taking_turns(folder):
            if missing := _missing(packages, folder):
                _download(missing, folder)
    found = [_unpacked(folder, package) for package in packages]
    return [path for path in found if path is not None]


def _missing(packages: list[str], folder: Path) -> list[str]:
    return [package for package in packages if _unpacked(folder, package) is None]


def _unpacked(folder: Path, package: str) -> Path | None:
    return max(folder.glob(f"{package}_*"), default=None)


def _download(packages: list[str], folder: Path) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise PipelineError(
                f"{tool} is not on PATH, so the packages {', '.join(packages)} cannot be fetched: "
                "set the corpus's `path` to their extracted files"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY) as temporary:
        _apt_download(packages, Path(temporary))
        for deb in sorted(Path(temporary).glob("*.deb")):
            unpacked = Path(temporary) / deb.stem
            _run(["dpkg-deb", "-x", str(deb), str(unpacked)], Path(temporary), packages)
            unpacked.rename(folder / deb.stem)


def _apt_download(packages: list[str], folder: Path) -> None:
    download = ["download", *packages]
    try:
        _run(["apt-get", *download], folder, packages)
    except PipelineError:
        # Most likely the machine's package lists are missing, as in slim images. Only root may update those, but
        # anyone may have lists of their own from the same sources. Root's sandbox user could not enter our folder.
        state, cache = folder / "state", folder / "cache"
        (state / "lists" / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        own = ["apt-get", "-o", f"Dir::State={state}", "-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User="]
        _run([*own, "update"], folder, packages)
        _run([*own, *download], folder, packages)


def _run(command: list[str], folder: Path, packages: list[str]) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        errors = [line for line in lines if line.startswith("E:")] or lines
        raise PipelineError(
            f"fetching {', '.join(packages)} failed, {command[0]} says '{errors[0]}': try again with a network, "
            "or set the corpus's `path` to their extracted files"
        )
