"""The pipeline on paths in S3: a real S3 API server that fails one request in ten, and every result as on local paths."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3fs
import soundfile
from flaky_s3 import BUCKET, EVERY, FAULTS, FlakyApp, flaky_s3
from makers import TEXTS, make_tiny_whisper, run
from sources import ROOT

from cache import files, locks, storage
from cache.errors import PipelineError
from cache.storage import StorageError
from stages.shared.whisper.models import load_whisper

Requests = list[tuple[str, str, str | None]]  # method, path, fault
FOLDERS = ("utterances", "teacher", "models", "metrics", "report")


@pytest.fixture(scope="module")
def app() -> Iterator[FlakyApp]:
    with flaky_s3() as (address, app), pytest.MonkeyPatch.context() as patch:
        for name, value in {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret"}.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # botocore would try each request again by itself, and nothing would be left for `storage.retried` to do.
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setattr(storage, "FIRST_PAUSE_S", 0.01)
        patch.setattr(locks, "SETTLE_S", 0.01)
        s3fs.S3FileSystem.clear_instance_cache()
        storage.path(f"s3://{BUCKET}").fs.mkdir(BUCKET)
        yield app
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(autouse=True)
def nothing_fails(app: FlakyApp) -> None:
    """Until a test says so."""
    app.fails, app.seen = lambda environ: None, []


def objects(prefix: str) -> dict[str, bytes]:
    """Every object below `prefix`, read without the code under test."""
    store = s3fs.S3FileSystem(use_listings_cache=False)
    return {name.removeprefix(f"{BUCKET}/{prefix}/"): store.cat_file(name) for name in store.find(f"{BUCKET}/{prefix}")}


def local_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_corpus(folder: Path, clips: int) -> None:
    folder.mkdir(parents=True)
    lines = ["path,text,speaker,split"]
    for number in range(clips):
        samples = 0.1 * np.sin(2 * np.pi * (150 + 20 * number) * np.arange(8_000 + 400 * number) / 16_000)
        soundfile.write(folder / f"{number}.wav", samples, 16_000)
        split = {0: "test", 1: "validation"}.get(number % 4, "train")
        lines.append(f'{number}.wav,"{TEXTS[number % len(TEXTS)]}",s{number % 5},{split}')
    lines.append("gone.wav,Nic.,s0,train")
    (folder / "corpus.csv").write_text("\n".join(lines), encoding="utf-8")


def write_params(path: Path, root: str, model: Path) -> Path:
    settings = {
        "languages": {"cs": {"corpus": {"corpus": "manifest", "path": f"{root}/corpus/corpus.csv"}}},
        "audio_window_s": 2,
        "student": str(model),
        "teacher": {"model": str(model), "adapt": {"max_steps": 1, "accumulate": 1, "dtype": "fp32"}},
        "train": {"max_steps": 3, "save_every": 2, "log_every": 1, "batch_size": 4, "accumulate": 1, "dtype": "fp32"},
        "prepare": {"shard_rows": 5},
        "teacher_cache": {"top_k": 8, "dtype": "fp32"},
        "evaluate": {"dtype": "fp32"},
        "paths": {name: f"{root}/{name}" for name in FOLDERS},
    }
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


COMMANDS = (
    ["prepare"],
    ["adapt-teacher"],
    ["teacher-cache"],
    ["train-student", "--method", "clsr-kd"],
    ["evaluate", "--system", "teacher", "--system", "clsr-kd"],
    ["report"],
)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, tiny_whisper: Path) -> Path:
    """The same commands on local paths."""
    folder = tmp_path_factory.mktemp("local")
    make_corpus(folder / "corpus", 20)
    params = write_params(folder / "params.yaml", str(folder), tiny_whisper)
    with pytest.MonkeyPatch.context() as patch:
        for command in COMMANDS:
            assert run(patch, "--params", str(params), *command) == 0
    return folder


@pytest.fixture(scope="module")
def remote(app: FlakyApp, local: Path, tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Requests:
    """All commands on s3://…/run, from the corpus to the report, while one request in ten fails; all its requests."""
    folder = tmp_path_factory.mktemp("remote")
    store = s3fs.S3FileSystem()
    store.put(str(local / "corpus"), f"{BUCKET}/run/corpus", recursive=True)
    params = write_params(folder / "params.yaml", f"s3://{BUCKET}/run", tiny_whisper)
    app.one_in_ten, app.seen = True, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_CACHE", str(folder / "cache"))
        for command in COMMANDS:
            assert run(patch, "--params", str(params), *command) == 0
    app.one_in_ten = False
    return app.seen


def unsigned(manifest: bytes) -> bytes:
    """Without the manifest's own sha256, which follows from the names of folders in it."""
    return re.sub(rb'"sha256": "\w+"\n}\n$', b"", manifest)


def test_everything_is_as_on_local_paths(remote: Requests, local: Path):
    expected = {name: data for name, data in local_files(local).items() if name.split("/")[0] in FOLDERS}
    expected.pop("utterances/.cs.recordings", None)  # notes of this machine's files
    found = {name: data for name, data in objects("run").items() if name.split("/")[0] in FOLDERS}
    assert found.keys() == expected.keys()
    assert {"utterances/cs/train/manifest.json", "teacher/cs/train/tail.npy", "models/cs/teacher/model.safetensors",
            "models/cs/clsr-kd/curve.jsonl", "metrics/cs/clsr-kd.json", "report/index.html"} <= found.keys()  # fmt: skip

    def comparable(name: str, data: bytes, root: str) -> bytes:
        if re.match(r"metrics/.*\.json$", name):
            data = re.sub(rb'"seconds": [\d.]+', b"", data)  # how long it took
        if name.startswith("utterances"):  # recordings count by content here, by version there
            data = re.sub(rb'"(recordings|splits_before)": "\w*"', b"", data)
        return unsigned(data).replace(root.encode(), b"ROOT")

    timed = r"report/(?!curves/)"  # and holds names shortened to fit
    for name in (name for name in expected if not re.match(timed, name)):
        assert comparable(name, found[name], f"s3://{BUCKET}/run") == comparable(name, expected[name], str(local)), name
    assert len(json.loads(found["teacher/cs/train/manifest.json"])["shards"]) == 3
    assert b"gone.wav" in found["utterances/cs/train/left_out.jsonl"]


def test_one_request_in_ten_failed_in_every_way(remote: Requests):
    failed = [fault for _, _, fault in remote if fault]
    assert len(failed) == len(remote) // EVERY > 20
    assert set(failed) == set(FAULTS)


def test_no_object_is_temporary_and_the_manifest_comes_last(remote: Requests):
    assert not [path for _, path, _ in remote if ".tmp-" in path]
    done = (None, "cut", "lost")
    written = [path.rpartition("/")[2] for method, path, fault in remote
               if method == "PUT" and f"/{BUCKET}/run/teacher/" in path and fault in done]  # fmt: skip
    steps = list(dict.fromkeys(name for name in written if name not in ("progress.json", ".train.lock")))
    shards = [
        f"{kind}-0000{index}.{end}" for index in range(3) for kind, end in (("part", "npy"), ("shard", "parquet"))
    ]
    assert steps == [*shards, "left_out.jsonl", "tail.npy", "manifest.json"]
    for shard in (name for name in shards if name.startswith("shard")):
        assert written[written.index(shard) + written[written.index(shard) :].count(shard)] == "progress.json"


def test_a_cache_stopped_by_an_outage_goes_on_and_is_the_same(
    remote: Requests, app: FlakyApp, local: Path, tiny_whisper: Path, tmp_path: Path, monkeypatch, capsys
):
    params = write_params(tmp_path / "params.yaml", f"s3://{BUCKET}/run", tiny_whisper)
    command = ["--params", str(params), "--set", f"paths.teacher=s3://{BUCKET}/again", "teacher-cache"]

    def outage(environ) -> str | None:
        begun = any("again/cs/train/shard-00001" in path for _, path, _ in app.seen)
        return "503" if begun or "again/cs/train/shard-00001" in environ["PATH_INFO"] else None

    app.fails = outage
    assert run(monkeypatch, *command) == 1
    assert "shard-00001.parquet: the store failed 6 times" in capsys.readouterr().err.splitlines()[-1]
    app.fails = lambda environ: None
    assert set(objects("again/cs/train")) == {
        "part-00000.npy",
        "shard-00000.parquet",
        "part-00001.npy",
        "progress.json",
    }
    app.one_in_ten, app.seen = True, []
    assert run(monkeypatch, *command) == 0
    app.one_in_ten = False
    assert not [path for method, path, _ in app.seen if method == "PUT" and "00000" in path]
    again, whole = objects("again/cs/train"), local_files(local / "teacher/cs/train")
    manifest = unsigned(again.pop("manifest.json")).replace(f"s3://{BUCKET}/run".encode(), str(local).encode())
    assert manifest == unsigned(whole.pop("manifest.json"))
    assert again == whole


def test_a_recording_and_experts_at_urls_are_transcribed(
    remote: Requests, app: FlakyApp, local: Path, tiny_whisper: Path, tmp_path: Path, monkeypatch, capsys
):
    said = []
    for root in (str(local), f"s3://{BUCKET}/run"):
        app.one_in_ten = root.startswith("s3")
        params = write_params(tmp_path / "params.yaml", root, tiny_whisper)
        command = ["transcribe", f"{root}/corpus/7.wav", "--model", f"{root}/models/cs/clsr-kd"]
        assert run(monkeypatch, "--params", str(params), *command) == 0
        said.append(capsys.readouterr().out)
    app.one_in_ten = False
    assert said[0] == said[1] != ""


def test_other_settings_are_refused_and_restart_removes_what_they_made(
    remote: Requests, app: FlakyApp, tiny_whisper: Path, tmp_path: Path, monkeypatch, capsys
):
    params = write_params(tmp_path / "params.yaml", f"s3://{BUCKET}/run", tiny_whisper)
    command = ["--params", str(params), "--set", f"paths.metrics=s3://{BUCKET}/m", "--set", "train.max_steps=1"]
    command += ["--set", f"paths.models=s3://{BUCKET}/models", "train-student", "--method", "clsr"]
    storage.path(f"s3://{BUCKET}").fs.copy(f"{BUCKET}/run/models/", f"{BUCKET}/models/", recursive=True)
    assert run(monkeypatch, *command[:-1], "clsr-kd") == 1
    assert f"s3://{BUCKET}/models/cs/clsr-kd was made with other settings" in capsys.readouterr().err
    app.one_in_ten = True
    assert run(monkeypatch, *command[:-1], "clsr-kd", "--restart") == 0
    app.one_in_ten = False
    assert json.loads(objects("models/cs/clsr-kd")["training.json"])["steps"] == 1


def test_a_model_is_fetched_once_and_again_when_it_changes(
    app: FlakyApp, tiny_whisper: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
    store, source = s3fs.S3FileSystem(), f"s3://{BUCKET}/base"
    store.put(str(tiny_whisper), f"{BUCKET}/base", recursive=True)
    app.one_in_ten = True
    assert load_whisper(source).fingerprint == load_whisper(str(tiny_whisper)).fingerprint
    app.seen = []
    assert load_whisper(source).model_id == source
    assert not [path for method, path, _ in app.seen if method == "GET" and path.startswith(f"/{BUCKET}/base/")]
    app.one_in_ten = False
    other = make_tiny_whisper(tmp_path / "other", seed=1)
    store.put_file(str(other / "model.safetensors"), f"{BUCKET}/base/model.safetensors")
    assert load_whisper(source).fingerprint == load_whisper(str(other)).fingerprint
    assert len(list((tmp_path / "cache/models").iterdir())) == 2
    app.fails = lambda environ: "500" if environ["PATH_INFO"].endswith("tokenizer.json") else None
    store.pipe_file(f"{BUCKET}/base/new.json", b"{}")
    with pytest.raises(StorageError, match="base/tokenizer.json: the store failed 6 times"):
        load_whisper(source)
    assert len(list((tmp_path / "cache/models").iterdir())) == 2  # no half of a third
    with pytest.raises(PipelineError, match=rf"^s3://{BUCKET}/run/nothing: no config.json in it"):
        load_whisper(f"s3://{BUCKET}/run/nothing")


def test_a_write_that_fails_for_good_leaves_nothing(app: FlakyApp):
    app.fails = lambda environ: "503" if environ["REQUEST_METHOD"] == "PUT" else None
    with pytest.raises(StorageError, match=rf"^s3://{BUCKET}/none/a.json: the store failed 6 times \(.*told to fail\)"):
        files.write_json(storage.path(f"s3://{BUCKET}/none/a.json"), {})
    assert objects("none") == {}
    assert [fault for *_, fault in app.seen if fault] == ["503"] * storage.ATTEMPTS


def test_an_upload_in_parts_is_there_whole_or_not_at_all(app: FlakyApp, monkeypatch):
    monkeypatch.setattr(
        "s3fs.core.calculate_chunksize", lambda *size, **options: 5 << 20
    )  # S3's least; 50 MiB as it is
    data = np.random.default_rng(0).bytes(11 << 20)
    path = storage.path(f"s3://{BUCKET}/large/data.bin")
    app.fails = lambda environ: (
        "500" if environ["REQUEST_METHOD"] == "POST" and "uploadId=" in environ["QUERY_STRING"] else None
    )
    with pytest.raises(StorageError, match="failed 6 times"), files.atomic_path(path) as temporary:
        temporary.write_bytes(data)
    app.fails = lambda environ: None
    assert not path.exists()
    assert not path.fs.call_s3("list_multipart_uploads", Bucket=BUCKET).get("Uploads")
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(data)
    assert path.read_bytes() == data
    assert [path for method, path, _ in app.seen if "partNumber=3" in path]


def test_what_is_refused_is_refused_at_once(app: FlakyApp, monkeypatch):
    with pytest.raises(StorageError, match="s3://nobody-has-this/x: no such bucket"):
        storage.path("s3://nobody-has-this/x").exists()
    with pytest.raises(StorageError, match="no such bucket"):
        files.write_text(storage.path("s3://nobody-has-this/x"), "")
    app.seen, app.fails = [], lambda environ: "403"
    with pytest.raises(StorageError, match=r"s3://speech/x: not allowed \(.*\): check the credentials"):
        files.write_text(storage.path(f"s3://{BUCKET}/x"), "")
    assert len(app.seen) == 1
    with pytest.raises(StorageError, match="not allowed"):
        storage.path(f"s3://{BUCKET}/x").exists()


def test_asking_for_the_size_is_tried_again(app: FlakyApp):
    path = storage.path(f"s3://{BUCKET}/asked")
    path.fs.pipe_file(path.path, b"12345")
    app.seen = []
    app.fails = lambda environ: "500" if not app.seen else None
    assert path.stat().st_size == 5
    assert [fault for *_, fault in app.seen] == ["500", None]


def test_without_credentials(app: FlakyApp, monkeypatch, tmp_path: Path):
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=f"s3://{BUCKET}/x: no credentials"):
        storage.path(f"s3://{BUCKET}/x").read_bytes()
    assert app.seen == []
    s3fs.S3FileSystem.clear_instance_cache()


def test_what_another_process_writes_is_seen_at_once(app: FlakyApp):
    folder, other = storage.path(f"s3://{BUCKET}/seen"), s3fs.S3FileSystem()
    assert storage.sizes(folder) == {} and not (folder / "a").exists()
    other.pipe_file(f"{BUCKET}/seen/a", b"12")
    assert storage.sizes(folder) == {"a": 2} and (folder / "a").exists()
    other.pipe_file(f"{BUCKET}/seen/a", b"123")
    assert storage.sizes(folder) == {"a": 3} and (folder / "a").read_bytes() == b"123"
    assert [str(path) for path in folder.glob("*")] == [f"s3://{BUCKET}/seen/a"]


def test_a_store_that_never_answers_is_one_line_and_status_1(app: FlakyApp, tmp_path: Path, tiny_whisper: Path):
    params = write_params(tmp_path / "params.yaml", f"s3://{BUCKET}/run", tiny_whisper)
    app.fails = lambda environ: FAULTS[len(app.seen) % len(FAULTS)]
    code = "import cache.storage as s; s.FIRST_PAUSE_S = 0.01; from pipeline.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--params", str(params), "report"],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(rf"pipeline: s3://{BUCKET}/run/metrics: the store failed 6 times \(.+\): .+\n", done.stderr)
