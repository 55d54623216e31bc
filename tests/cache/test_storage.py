"""Paths that are URLs, on fsspec's own `memory://`, which like SFTP has files that can be renamed."""

import errno
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from makers import make_utterance

from cache import files, storage
from cache.errors import PipelineError
from cache.shards import ShardReader, ShardWriter
from cache.storage import AnyPath, StorageError, retried


@pytest.fixture
def memory() -> Iterator[storage.RemotePath]:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    folder = storage.path("memory://data/set")
    assert isinstance(folder, storage.RemotePath)
    yield folder
    MemoryFileSystem.store.clear()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited; nothing is."""
    found: list[float] = []
    monkeypatch.setattr("time.sleep", found.append)
    return found


def in_memory() -> dict[str, bytes]:
    return {name: file.getvalue() for name, file in MemoryFileSystem.store.items()}


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Names


def test_a_local_path_stays_what_it_was(tmp_path: Path):
    for text in ("data/utterances", "/data", "a:b", "s3:/bucket", str(tmp_path)):
        assert type(storage.path(text)) is type(Path(text)) and storage.path(text) == Path(text)
    assert storage.path(Path("x")) == Path("x")
    assert storage.path("~/data") == Path.home() / "data"
    assert storage.path("file:///data/x") == Path("/data/x")


@pytest.mark.parametrize("url", ["s3://bucket/a/b", "memory://a/b"])
def test_a_url_stays_intact(url: str):
    path = storage.path(url)
    assert str(path) == url == f"{path.parent / path.name}" == str(storage.path(path))
    assert str(path / "test@x" / "base@x.json") == f"{url}/test@x/base@x.json"
    assert str((path / "base@x.json").with_suffix(".utterances.jsonl")) == f"{url}/base@x.utterances.jsonl"
    assert (path.name, (path / "curve.jsonl").stem, (path / "c" / "d").parent.parent.name) == ("b", "curve", "b")
    assert pickle.loads(pickle.dumps(path)) == path and path in {path}
    assert sorted([path / "b", path / "a"]) == [path / "a", path / "b"]
    assert str(storage.path(f"{url}/") / "c") == f"{url}/c"


def test_join_takes_urls_and_absolute_paths_as_they_are():
    folder = storage.path("s3://bucket/corpus")
    assert str(storage.join(folder, "clips/1.wav")) == "s3://bucket/corpus/clips/1.wav"
    assert str(storage.join(Path("corpus"), "s3://bucket/1.wav")) == "s3://bucket/1.wav"
    assert storage.join(Path("corpus"), "/data/1.wav") == Path("/data/1.wav")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "gs://bucket/x",
            r"gs://bucket/x: the package for gs:// is not installed: pip install -c constraints.txt -e '.\[gcs\]'",
        ),
        ("sftp://host/x", "sftp://host/x: the package for sftp:// is not installed: .*paramiko"),
        ("s4://bucket/x", "s4://bucket/x: s4:// is not known: expected s3://, gs:// or another"),
        ("S3://bucket/x", "S3:// is not known"),
        ("s3://", "s3://: no bucket in it, expected s3://BUCKET/NAME"),
        ("s3:///x", "no bucket in it"),
        ("github://x", r"github://x: github:// cannot be used \(.*'org' and 'repo'\)$"),
        ("simplecache::s3://bucket/x", "is not known"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, said: str, monkeypatch):
    for protocol, module in {"gs": "gcsfs", "sftp": "paramiko"}.items():
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
        monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, "fsspec.implementations.sftp", raising=False)
    with pytest.raises(StorageError, match=said):
        storage.path(url)


# Reading and writing


def make_files(folder: AnyPath) -> None:
    files.write_text(folder / "a.txt", "á\r\n\u2028b\n")
    files.write_json(folder / "deep/er/b.json", {"é": [1, None]})
    files.write_jsonl(folder / "c.jsonl", [{"n": 1}, {"n": 2}])
    for row in ("one", "two"):
        files.append_text(folder / "curve.jsonl", f"{row}\n")
    with files.atomic_path(folder / "deep/d.npy") as temporary:
        np.save(temporary, np.arange(5))
    with files.local_folder(folder / "deep") as local:
        local.mkdir(parents=True, exist_ok=True)
        (local / "config.json").write_text("{}")
    files.write_text(folder / "gone", "")
    (folder / "gone").unlink()
    (folder / "gone").unlink(missing_ok=True)


def test_the_same_bytes_as_on_disk(memory, tmp_path: Path):
    make_files(memory)
    make_files(tmp_path)
    assert {name.removeprefix("/data/set/"): data for name, data in in_memory().items()} == on_disk(tmp_path)


def test_what_is_asked_is_answered_as_on_disk(memory, tmp_path: Path):
    make_files(memory)
    make_files(tmp_path)
    for name in ("a.txt", "deep", "deep/er/b.json", "no", "a.txt/no", ""):
        here, there = tmp_path / name, memory / name if name else memory
        assert (there.exists(), there.is_file(), there.is_dir()) == (here.exists(), here.is_file(), here.is_dir()), name
    for name in ("deep", "deep/er", "no", ""):
        assert storage.sizes(memory / name if name else memory) == storage.sizes(tmp_path / name), name
    for pattern in ("*", "*.json*", "*/*", "*/*.json", "deep/*/*.json", "no*", "d?ep", "*/*/*/*"):
        found = [str(path).removeprefix(str(memory)) for path in memory.glob(pattern)]
        assert found == sorted(str(path).removeprefix(str(tmp_path)) for path in tmp_path.glob(pattern)), pattern
    for path in (memory / "a.txt", tmp_path / "a.txt"):
        assert path.read_text(encoding="utf-8") == "á\n\u2028b\n"
        with path.open("rb") as file, files.local_copy(path) as copy:
            assert file.read() == copy.read_bytes() == "á\r\n\u2028b\n".encode()
    assert files.read_jsonl(memory / "c.jsonl") == [{"n": 1}, {"n": 2}]
    with pytest.raises(PipelineError, match=r"^memory://data/set/no.json: no such file$"):
        files.read_json(memory / "no.json")
    with pytest.raises(FileNotFoundError) as error, files.local_copy(memory / "no"):
        pass
    assert (error.value.errno, error.value.filename) == (errno.ENOENT, "memory://data/set/no")


@pytest.mark.parametrize("failing", ["put_file", "mv"])
def test_a_write_that_fails_leaves_what_was_there(failing: str, memory, pauses, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files.write_text(memory / "a", "before")

    def fail(*args, **options):
        if failing == "put_file":  # half of it
            MemoryFileSystem.pipe_file(memory.fs, args[-1], b"aft")
        raise ConnectionResetError("gone")

    monkeypatch.setattr(memory.fs, failing, fail)
    with pytest.raises(StorageError, match=r"^memory://data/set/a: the store failed 6 times \(gone\)"):
        files.write_text(memory / "a", "after")
    assert in_memory() == {"/data/set/a": b"before"}
    with pytest.raises(KeyError), files.atomic_path(memory / "b") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert in_memory() == {"/data/set/a": b"before"}
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(memory):
    files.write_text(memory / ".tmp-123-a", "")
    files.write_text(memory / "a", "")
    files.remove_temporaries(memory)
    assert list(in_memory()) == ["/data/set/a"]


def test_a_folder_is_removed_with_all_below_and_nothing_beside(memory):
    for name in ("a", "b/c", "b/d/e"):
        files.write_text(memory / name, "")
    files.write_text(memory.parent / "set2", "")
    storage.remove_tree(memory)
    storage.remove_tree(memory)
    assert list(in_memory()) == ["/data/set2"]


# Trying again


class ClientError(Exception):
    """As botocore's: what the server answered."""

    def __init__(self, status: int, code: str = ""):
        super().__init__(f"answered {status} {code}")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


class HttpError(Exception):
    """As gcsfs's."""

    code = "503"


class NoCredentialsError(Exception):
    """As botocore's."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


PASSING = [
    ConnectionResetError("reset"),
    TimeoutError(),
    OSError(errno.EIO, "strange"),
    HttpError(),
    *[ClientError(status) for status in (408, 409, 429, 500, 502, 503, 504)],
    ClientError(200, "InternalError"),
    caused(OSError(errno.EBUSY, "SlowDown"), ClientError(503, "SlowDown")),
    caused(OSError(errno.EINVAL, "digest"), ClientError(400, "BadDigest")),
    caused(OSError("payload is not complete"), type("ContentLengthError", (Exception,), {"code": 400})()),
]
FINAL = [
    (PermissionError("AccessDenied"), "not allowed"),
    (OSError("Forbidden: o/x"), "not allowed"),
    (ClientError(403), "not allowed"),
    (caused(FileNotFoundError("x"), ClientError(404, "NoSuchBucket")), "no such bucket"),
    (NoCredentialsError("Unable to locate credentials"), "no credentials"),
    (ClientError(400, "InvalidRequest"), "the store refuses"),
    (ClientError(301, "PermanentRedirect"), "the store refuses"),
    (ValueError("Invalid bucket name"), "the store refuses"),
    (NotImplementedError(), r"the store refuses \(NotImplementedError\)"),
]


def failing(error: Exception, times: int) -> tuple[Callable[[], str], list[int]]:
    calls: list[int] = []

    def call() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return call, calls


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass_is_tried_again(error: Exception, pauses):
    call, calls = failing(error, 5)
    assert retried("s3://b/x", call) == "done"
    assert len(calls) == 6
    for number, pause in enumerate(pauses):
        assert 0.25 * 2**number <= pause <= 0.5 * 2**number
    call, calls = failing(error, 6)
    with pytest.raises(StorageError, match=r"^s3://b/x: the store failed 6 times \(.+\): the same command goes on"):
        retried("s3://b/x", call)
    assert len(calls) == 6 and len(pauses) == 10


@pytest.mark.parametrize(("error", "said"), FINAL, ids=lambda value: repr(value))
def test_what_cannot_pass_is_said_at_once(error: Exception, said: str, pauses):
    call, calls = failing(error, 6)
    with pytest.raises(StorageError, match=rf"^s3://b/x: {said}"):
        retried("s3://b/x", call)
    assert (len(calls), pauses) == (1, [])


@pytest.mark.parametrize(
    "error", [FileNotFoundError("x"), OSError(errno.ENOSPC, "full"), TypeError("ours"), KeyError("ours")], ids=repr
)
def test_what_is_not_the_stores_fault_stays_what_it_is(error: Exception, pauses):
    call, calls = failing(error, 6)
    with pytest.raises(type(error)) as raised:
        retried("s3://b/x", call)
    assert not isinstance(raised.value, StorageError) and (len(calls), pauses) == (1, [])


@pytest.mark.parametrize(
    ("method", "use"),
    [
        ("info", lambda path: path.exists()),
        ("cat_file", lambda path: path.read_bytes()),
        ("get_file", lambda path: files.local_copy(path).__enter__()),
        ("find", lambda path: path.parent.glob("*")),
        ("ls", lambda path: storage.sizes(path.parent)),
        ("rm_file", lambda path: path.unlink()),
        ("rm", lambda path: storage.remove_tree(path.parent)),
        ("put_file", lambda path: files.write_text(path, "")),
        ("mv", lambda path: files.write_text(path, "")),
    ],
)  # fmt: skip
def test_every_use_of_a_store_is_tried_again(method: str, use: Callable, memory, pauses, monkeypatch):
    files.write_text(memory / "a", "text")
    whole, calls = getattr(memory.fs, method), []

    def flaky(*args, **options):
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionResetError("reset")
        return whole(*args, **options)

    monkeypatch.setattr(memory.fs, method, flaky)
    use(memory / "a")
    assert len(calls) >= 3


def test_files_that_could_not_be_removed_are_noticed(memory, pauses, monkeypatch):
    """S3 answers 200 to the request that removes many, and says in its body which it could not."""
    files.write_text(memory / "a", "")
    monkeypatch.setattr(memory.fs, "rm", lambda *args, **options: [])
    with pytest.raises(StorageError, match="1 files below it could not be removed"):
        storage.remove_tree(memory)


# Shards


def write_shards(folder: AnyPath, stop_after: int = 3) -> None:
    writer = ShardWriter(folder, "utterances", {"made": 1}, rerun="update")
    for index in [index for index in range(3) if index not in writer.shards][:stop_after]:
        writer.write(index, [make_utterance(index)], seconds=1.0)
    if len(writer.shards) == 3:
        writer.finish()


def test_shards_resumed_and_read_as_on_disk(memory, tmp_path: Path, monkeypatch):
    write_shards(tmp_path)
    write_shards(memory, 1)
    (memory / "shard-00000.parquet").read_bytes()
    write_shards(memory, 1)
    memory.fs.pipe_file((memory / "shard-00001.parquet").path, b"cut")
    write_shards(memory)
    assert {name.removeprefix("/data/set/"): data for name, data in in_memory().items()} == on_disk(tmp_path)
    asked: list[str] = []
    info = memory.fs.info
    monkeypatch.setattr(memory.fs, "info", lambda path, **options: asked.append(path) or info(path, **options))
    reader = ShardReader(memory, "utterances")
    assert not [path for path in asked if "shard" in path]  # one listing instead
    here = ShardReader(tmp_path, "utterances")
    assert reader.manifest == here.manifest and reader.fingerprint() == here.fingerprint()
    assert [reader.read(index) for index in range(3)] == [here.read(index) for index in range(3)]
    (memory / "shard-00002.parquet").unlink()
    with pytest.raises(PipelineError, match=r"^memory://data/set/shard-00002.parquet is missing"):
        ShardReader(memory, "utterances")


def test_other_settings_in_a_store(memory):
    write_shards(memory)
    with pytest.raises(
        PipelineError, match=r"^memory://data/set was made with other settings \(made: found 1, wanted 2"
    ):
        ShardWriter(memory, "utterances", {"made": 2})
    ShardWriter(memory, "utterances", {"made": 2}, rerun="update")
    assert in_memory() == {}
    with pytest.raises(PipelineError, match=r"^memory://data/set holds no manifest.json"):
        ShardReader(memory, "utterances")
