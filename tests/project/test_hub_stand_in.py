"""The stand-in for the hub, with huggingface_hub's own client."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Hub, environment, serving, use
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

FILES = {
    "config.json": b"{}",
    "cs/experts.json": b'{"a": 1}',
    "cs/weights.bin": bytes(range(256)) * 1000,
    "log.txt": b"",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path / "repositories") as hub:
        use(monkeypatch, hub, tmp_path / "home")
        for name, data in FILES.items():
            path = hub.repository("someone/model") / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        yield hub


def test_the_files_that_match_are_downloaded_once(hub, tmp_path):
    folder = Path(snapshot_download("someone/model", allow_patterns=["*.json", "*/*.bin"]))
    assert folder.is_relative_to(tmp_path / "home")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {name: data for name, data in FILES.items() if name != "log.txt"}
    before = len(hub.asked)
    assert Path(snapshot_download("someone/model", allow_patterns=["*.json", "*/*.bin"])) == folder
    assert not any("/resolve/" in one for one in hub.asked[before:])
    assert hub.asked_for("someone/model") == 2
    assert Path(hf_hub_download("someone/model", "log.txt")).read_bytes() == b""


def test_new_content_is_a_new_revision(hub):
    before = Path(snapshot_download("someone/model"))
    (hub.repository("someone/model") / "config.json").write_bytes(b'{"new": 1}')
    after = Path(snapshot_download("someone/model"))
    assert ((before / "config.json").read_bytes(), (after / "config.json").read_bytes()) == (b"{}", b'{"new": 1}')


def test_what_is_not_there(hub):
    hub.private.add("someone/model")
    for id in ("someone/else", "someone/model"):
        with pytest.raises(RepositoryNotFoundError):
            snapshot_download(id)
    hub.private.clear()
    with pytest.raises(RevisionNotFoundError):
        snapshot_download("someone/model", revision="v2")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("someone/model", "none.json")


def test_another_process_uses_it(hub, tmp_path):
    code = "from huggingface_hub import snapshot_download; print(snapshot_download('someone/model'))"
    env = environment(hub, tmp_path / "other") | {"PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / "cs/weights.bin").read_bytes() == FILES["cs/weights.bin"]
