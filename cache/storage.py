"""Paths that may be URLs: fsspec's stores with pathlib's interface. Operations are retried if a store fails temporarily."""

import errno
import io
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.utils import tokenize
from upath.extensions import ProxyUPath

from cache.errors import PipelineError, how_to_install

# In these stores an upload is all or nothing: the object is absent or unchanged until the last byte has arrived.
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> extra of this package
ATTEMPTS = 6
FIRST_PAUSE_S = 0.5  # before the second attempt; doubles before each further one

PASSING_STATUS = (408, 409, 425, 429)  # temporary, of 300-499; from 500 on all are
PASSING_CODES = ("RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch")  # S3, status 400
# Error types by name, since a store's package may be missing: of botocore, then of google.auth.
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"}
WRONG_REQUESTS = {"ValueError", "NotImplementedError", "ParamValidationError", "IsADirectoryError", "FileExistsError"}
OUR_FAULTS = (TypeError, AttributeError, LookupError, AssertionError, NameError)
T = TypeVar("T")

logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # otherwise it prints a traceback for each failed attempt


class StorageError(PipelineError):
    """An error of a store that refuses or does not answer."""


class RemotePath(ProxyUPath):
    """A path in a store. Queries, reads and removals are retried; for writing see `cache.files.atomic_path`.

    Methods raise FileNotFoundError where a file is missing, as pathlib does, and StorageError for every other failure.
    """

    def _try(self, call: Callable[[], T]) -> T:
        return retried(str(self), call)

    def _info(self) -> dict[str, Any]:
        """Returns what the store says of the path, {} where there is no such file or folder."""
        try:
            return self._try(lambda: self.fs.info(self.path))
        except FileNotFoundError:
            return {}

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return bool(self._info())

    def is_file(self) -> bool:
        return self._info().get("type") == "file"

    def is_dir(self) -> bool:
        return self._info().get("type") == "directory"

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        return self._try(super().stat)

    def read_bytes(self) -> bytes:
        """Downloads the whole object. Raises FileNotFoundError where it is missing, StorageError where the store fails."""
        return self._try(lambda: self.fs.cat_file(self.path))

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding, errors, newline).read()

    def open(self, mode: str = "rb", *args: Any, **options: Any) -> IO[Any]:  # type: ignore[override]
        """Downloads the whole object first: a connection lost half-way then raises instead of giving a truncated file."""
        if mode != "rb":
            raise NotImplementedError(f"mode {mode!r}: a store's file is written by cache.files.atomic_path")
        return io.BytesIO(self.read_bytes())

    def glob(
        self, pattern: str, *, case_sensitive: bool | None = None, recurse_symlinks: bool = False
    ) -> Iterator[Any]:
        """Yields the paths that match `pattern`, part by part and without "**".

        fsspec's own glob silently leaves out what it could not list.
        """
        wanted = pattern.split("/")
        below = [name.removeprefix(self.path).strip("/").split("/") for name in self._find()]
        found = {tuple(parts[: len(wanted)]) for parts in below if len(parts) >= len(wanted)}
        matching = [parts for parts in sorted(found) if all(map(fnmatchcase, parts, wanted))]
        return iter([self.joinpath(*parts) for parts in matching])

    def _find(self) -> list[str]:
        return self._try(lambda: self.fs.find(self.path))

    def tree(self) -> list[str]:
        """Returns all files below this folder, as paths from it, sorted."""
        return sorted(name.removeprefix(self.path).strip("/") for name in self._find())

    def listing(self) -> dict[str, dict[str, Any]]:
        """Maps each name directly in this folder to the store's entry for it. {} where there is no such folder."""
        try:
            entries = self._try(lambda: self.fs.ls(self.path, detail=True))
        except FileNotFoundError:
            return {}
        return {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in entries}

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder exists once it holds a file. (s3fs would make the bucket, if it could not be reached.)"""

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object. Raises FileNotFoundError where it is missing, unless `missing_ok`; StorageError on failure."""
        try:
            self._try(lambda: self.fs.rm_file(self.path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Removes the path and all below it. Raises StorageError where a file is left."""
        self._try(self._remove_once)

    def _remove_once(self) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm(self.path, recursive=True)
        if left := self.fs.find(self.path):  # S3 answers with success and lists in the body what it could not remove
            raise OSError(errno.EIO, f"{len(left)} files below it could not be removed")

    def __reduce__(self) -> tuple[Any, ...]:
        return path, (str(self),)  # another process then sets up its store as this one did


AnyPath = Path | RemotePath


def path(location: str | os.PathLike[str] | RemotePath) -> AnyPath:
    """Turns a URL into a RemotePath, anything else into a Path; "~" is the home folder. Raises StorageError for a wrong URL."""
    if isinstance(location, RemotePath):
        return location
    text = os.fspath(location)
    protocol, is_url, rest = text.partition("://")
    if not is_url:
        return home(text)
    if protocol == "file":
        return Path(rest)
    _check_installed(protocol, text)
    if protocol in OBJECT_STORES and not rest.partition("/")[0]:
        raise StorageError(f"{text}: no bucket in it, expected {protocol}://BUCKET/NAME")
    # No listing is kept: files that another process writes must be seen.
    options: dict[str, Any] = {"use_listings_cache": False} if protocol in OBJECT_STORES else {}
    try:
        remote = RemotePath(text, **options)
        store = remote.fs  # made here and shared by all paths below it: otherwise fsspec makes one for each thread
    except Exception as error:  # types differ by store: part of the address is missing, or a library, or the host
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StorageError(f"{text}: {protocol}:// cannot be used ({reason})") from None
    if protocol in ("s3", "s3a"):
        # botocore retries each request (AWS_MAX_ATTEMPTS), and `retried` each operation. s3fs's own retries would
        # multiply the two: an unreachable store would fail only after half an hour.
        store.retries = 1
    return remote


def home(text: str) -> Path:
    """Returns `text` as a path, with "~" replaced where there is such a home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def _check_installed(protocol: str, url: str) -> None:
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        needed = how_to_install(extra) if extra else str(error)
        raise StorageError(f"{url}: the package for {protocol}:// is not installed: {needed}") from None
    except ValueError:
        raise StorageError(f"{url}: {protocol}:// is not known: expected s3://, gs:// or another of fsspec's") from None


def retried(url: str, call: Callable[[], T]) -> T:
    """Returns what `call` returns. Calls it again, after a pause, if the store at `url` fails temporarily.

    Raises FileNotFoundError where the object is missing, StorageError where the store refuses or fails ATTEMPTS times.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except OUR_FAULTS:
            raise
        except Exception as error:  # of a dozen types, of the network and of the store
            _raise_if_final(url, error)
            if attempt == ATTEMPTS:
                raise StorageError(
                    f"{url}: the store failed {ATTEMPTS} times ({_reason(error)}): the same command goes on from here"
                ) from None
        time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.5, 1))
    raise AssertionError("unreachable")


def _raise_if_final(url: str, error: Exception) -> None:
    """Raises an error that another attempt would not help against. Returns where the failure may be temporary."""
    status, code = _status(error)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if code == "NoSuchBucket":
        raise StorageError(f"{url}: no such bucket: make it, or correct the address") from None
    if isinstance(error, FileNotFoundError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from None
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error  # the disk of this machine is full
    if kinds & NO_CREDENTIALS:
        raise StorageError(
            f"{url}: no credentials ({_reason(error)}): see docs/storage.md for how to give them"
        ) from None
    if (
        isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden")
    ):  # "Forbidden": gcsfs
        raise StorageError(f"{url}: not allowed ({_reason(error)}): check the credentials and their rights") from None
    refused = 300 <= status < 500 and status not in PASSING_STATUS and code not in PASSING_CODES
    if refused or kinds & WRONG_REQUESTS:
        raise StorageError(f"{url}: the store refuses ({_reason(error)})") from None


def _status(error: Exception) -> tuple[int, str]:
    """Returns the HTTP status and error code of the store's answer, 0 and '' where there was none."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):  # of botocore: the cause of s3fs's errors
            answer, details = response.get("ResponseMetadata", {}), response.get("Error", {})
            return int(answer.get("HTTPStatusCode", 0)), str(details.get("Code", ""))
    # The cause is not asked: for a truncated body it is an error of aiohttp's own, with the code 400.
    values = [str(getattr(error, name, None)) for name in ("status", "status_code", "code")]  # aiohttp, azure, gcsfs
    return next((int(value) for value in values if value.isdecimal()), 0), ""


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__


def join(folder: AnyPath, location: str) -> AnyPath:
    """Returns `location` relative to `folder`, or itself if it is a URL, an absolute path or begins with "~"."""
    return (
        path(location)
        if "://" in location or location.startswith("~") and home(location).is_absolute()
        else folder / location
    )


def sizes(folder: AnyPath) -> dict[str, int]:
    """Returns the bytes of each file in `folder`, by name; a store is asked once. {} where there is no such folder."""
    if not isinstance(folder, Path):
        return {name: entry["size"] for name, entry in folder.listing().items() if entry["type"] == "file"}
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def versions(folder: RemotePath) -> dict[str, str]:
    """Returns for each file in `folder`, by name, a string that changes with its content."""
    files = {name: entry for name, entry in folder.listing().items() if entry["type"] == "file"}
    return {name: entry.get("ETag") or entry.get("etag") or tokenize(entry) for name, entry in files.items()}


def remove_tree(folder: AnyPath) -> None:
    """Removes all that `folder` holds, and `folder` itself unless it is a link or a mount point."""
    if not isinstance(folder, Path):
        folder.remove_tree()
        return
    for entry in list(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if not folder.is_symlink() and not folder.is_mount():
        folder.rmdir()
