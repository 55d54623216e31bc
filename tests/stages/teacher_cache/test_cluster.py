"""The teacher on a Ray cluster of several processes of this machine: the output is that of one process, whatever dies."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from click.testing import CliRunner
from makers import make_utterance_shards
from ruamel.yaml import YAML
from sources import ROOT

from cache.errors import PipelineError
from cache.files import read_json
from cache.shards import ShardReader
from pipeline.cli import cli
from stages.shared.whisper.models import load_whisper
from stages.teacher_cache import pool
from stages.teacher_cache.cluster import cache_teacher_on_ray, connected, plan_workers
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.pool import Plan
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import ClusterSettings, TeacherCacheSettings
from stages.teacher_cache.worker import ScoringRequest, Worker

ROWS = 24
SHARDS = 10
# its own token: nobody else can use these clusters, and Ray writes none into the home folder
OWN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
SETTINGS = TeacherCacheSettings(top_k=8, batch_size=2, dtype="fp32")


class StopError(Exception):
    """Stands for anything that ends a run."""


class Machines:
    """A Ray cluster whose machines are processes here; each has one core."""

    def __init__(self, folder: str):
        from ray.cluster_utils import Cluster

        # Ray notes a cluster's address in its usual folder, which a machine where Ray has never run does not have
        (Path(tempfile.gettempdir()) / "ray").mkdir(exist_ok=True)
        self.cluster = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": folder})
        self.add()

    def add(self, **resources):
        return self.cluster.add_node(**{"num_cpus": 1, **resources})


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    folder = tempfile.mkdtemp(prefix="ray-")  # not tmp_path: the names of sockets must be short
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OWN.items():
            patch.setenv(name, value)
        machines = Machines(folder)
        patch.setenv("RAY_ADDRESS", machines.cluster.address)
        yield machines
    machines.cluster.shutdown()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_utterance_shards(tmp_path_factory.mktemp("source") / "train", [ROWS] * SHARDS)


@pytest.fixture(scope="module")
def whole(tiny_whisper: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    torch.set_num_threads(1)
    return files_of(here(tiny_whisper, source, tmp_path_factory.mktemp("whole") / "train"))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster that does not start would be waited for without end."""

    def stop(*_: object) -> None:
        raise TimeoutError("not done in 10 minutes")

    monkeypatch.setattr(pool, "POLL_S", 0.02)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def here(model: Path, source: Path, out: Path, progress=lambda *counts: None) -> Path:
    teacher = load_whisper(str(model), 1)
    cache_teacher(ScoringJob(teacher, "cs", SETTINGS, torch.device("cpu")), source, out, progress=progress)
    return out


def on_ray(model: Path, source: Path, out: Path, progress=lambda *counts: None, device: str = "auto") -> list[str]:
    """What it says."""
    said: list[str] = []
    task = ScoringRequest((str(model),), str(model), 1, "cs", SETTINGS, source, out)
    cache_teacher_on_ray(task, ClusterSettings(engine="ray"), device, progress=progress, say=said.append)
    return said


def doomed(once: Path | None = None) -> type[Worker]:
    """A worker that ends its process by SIGKILL in the middle of shard 5; with `once`, a file, only the first time.

    Made here, so that Ray carries it along: the workers cannot import the tests.
    """

    class Doomed(Worker):
        def _add_progress(self, index: int, utterances: int, seconds: float) -> None:
            super()._add_progress(index, utterances, seconds)
            if index == 5 and self.done[index][0] >= rows // 2 and not (once and once.exists()):
                if once:
                    once.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    rows = ROWS
    return Doomed


def test_a_worker_is_killed_and_the_output_is_that_of_one_process(
    machines, tiny_whisper, source, whole, tmp_path, monkeypatch
):
    """Begun in this process, gone on with on the cluster, where a worker dies."""

    def stop(utterances: int, total: int, seconds: float) -> None:
        if utterances >= 3 * ROWS:
            raise StopError

    with pytest.raises(StopError):
        here(tiny_whisper, source, tmp_path / "train", stop)
    begun = len(read_json(tmp_path / "train/progress.json")["shards"])
    monkeypatch.setattr(pool, "Worker", doomed(once=tmp_path / "killed"))
    seen: list[tuple[int, int, float]] = []
    said = on_ray(tiny_whisper, source, tmp_path / "train", lambda *counts: seen.append(counts))
    assert said[0].startswith("Ray: machines: 2, workers: 2")
    assert "a worker died while it had shard 5; another one does it again" in said
    assert (tmp_path / "killed").exists()
    assert files_of(tmp_path / "train") == whole
    assert 1 <= begun < SHARDS
    assert seen[0][0] == begun * ROWS
    assert seen[-1][:2] == (SHARDS * ROWS, SHARDS * ROWS)
    assert seen[-1][2] == pytest.approx(ShardReader(tmp_path / "train", "teacher").manifest["seconds"])


@pytest.mark.cluster
def test_a_machine_is_lost_and_the_others_do_its_work(machines, tiny_whisper, source, whole, tmp_path, monkeypatch):
    """While its worker has a shard; the others begin when it has."""
    machine, begun = machines.add(resources={"doomed": 1}), tmp_path / "begun"
    own = machine.node_id

    class Slow(Worker):
        def score(self, index: int) -> dict:
            import ray

            if ray.get_runtime_context().get_node_id() == own:
                begun.touch()
                time.sleep(600)
            while not begun.exists():
                time.sleep(0.01)
            return super().score(index)

    def lose(utterances: int, total: int, seconds: float) -> None:
        if utterances and machine in machines.cluster.worker_nodes:
            machines.cluster.remove_node(machine, allow_graceful=False)

    monkeypatch.setattr(pool, "Worker", Slow)
    said = on_ray(tiny_whisper, source, tmp_path / "train", lose)
    assert said[0].startswith("Ray: machines: 3, workers: 3")
    assert any(line.startswith("a worker died while it had shard") for line in said)
    assert files_of(tmp_path / "train") == whole


@pytest.mark.cluster
def test_a_shard_that_kills_its_workers_ends_the_run(machines, tiny_whisper, source, whole, tmp_path, monkeypatch):
    """What is done is kept, and one process goes on with it."""
    monkeypatch.setattr(pool, "Worker", doomed())
    with pytest.raises(PipelineError, match=r"^3 workers died while they had shard 5 \(.*\); what is done is kept"):
        on_ray(tiny_whisper, source, tmp_path / "train")
    done = read_json(tmp_path / "train/progress.json")["shards"]
    assert 5 <= len(done) < SHARDS
    for entry in done:
        assert (tmp_path / "train" / entry["name"]).read_bytes() == whole[entry["name"]]
    assert files_of(here(tiny_whisper, source, tmp_path / "train")) == whole


@pytest.mark.cluster
def test_an_error_in_a_worker_is_the_one_line_it_is_elsewhere(machines, tiny_whisper, source, tmp_path, capfd):
    damaged = shutil.copytree(source, tmp_path / "damaged")
    path = damaged / "shard-00004.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PipelineError) as elsewhere:
        here(tiny_whisper, damaged, tmp_path / "here")
    capfd.readouterr()
    with pytest.raises(PipelineError) as caught:
        on_ray(tiny_whisper, damaged, tmp_path / "there")
    assert str(path) in str(caught.value)
    assert str(caught.value) == str(elsewhere.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.cluster
def test_workers_that_differ_are_refused(machines, tiny_whisper, source, tmp_path, monkeypatch):
    """The second one would compute in bfloat16."""
    first = tmp_path / "first"

    class Mixed(Worker):
        def open(self) -> dict:
            facts = super().open()
            try:
                first.touch(exist_ok=False)
            except FileExistsError:
                return {**facts, "dtype": "bfloat16"}
            return facts

        def score(self, index: int) -> dict:
            time.sleep(600)
            return {}

    monkeypatch.setattr(pool, "Worker", Mixed)
    with pytest.raises(PipelineError, match=r"the workers differ \(dtype: found 'bfloat16', wanted 'float32'\)"):
        on_ray(tiny_whisper, source, tmp_path / "train")


@pytest.mark.cluster
def test_a_machine_that_has_other_folders_is_refused(machines, tiny_whisper, source, tmp_path, monkeypatch):
    """First to read from, then to write to."""
    with monkeypatch.context() as patch, pytest.raises(PipelineError, match=r"the workers differ \(utterances: found"):
        patch.setattr(ShardReader, "fingerprint", lambda self: "of another folder with this name, here")
        on_ray(tiny_whisper, source, tmp_path / "train")
    assert not (tmp_path / "train").exists()
    elsewhere = tmp_path / "elsewhere"

    class Alone(Worker):
        def score(self, index: int) -> dict:
            self.request = replace(self.request, out=elsewhere)
            return super().score(index)

    monkeypatch.setattr(pool, "Worker", Alone)
    with pytest.raises(
        PipelineError, match=r"train/shard-0000\d.parquet: a worker has written this file, but it is not visible here"
    ):
        on_ray(tiny_whisper, source, tmp_path / "train")
    assert list(elsewhere.glob("shard-*.parquet"))
    assert not (tmp_path / "train/progress.json").exists()


@pytest.mark.cluster
def test_a_worker_is_placed_where_the_gpu_is(machines, tiny_whisper, source, tmp_path):
    """Ray believes what it is told of GPUs; a worker placed by that finds that there is none."""
    machine = machines.add(num_gpus=1)
    try:
        with pytest.raises(PipelineError, match=r"^on \S+: device 'cuda' cannot be used.*; every machine must"):
            on_ray(tiny_whisper, source, tmp_path / "train")
    finally:
        machines.cluster.remove_node(machine)


@pytest.mark.cluster
def test_interrupted_on_the_command_line_it_leaves_no_process_and_goes_on(tiny_whisper, source, whole, tmp_path):
    """With a cluster of its own, which ends with it. SIGINT goes to all processes of the terminal, as Ctrl-C does."""
    shutil.copytree(source, tmp_path / "data/utterances/cs/train")
    out = tmp_path / "data/teacher/cs/train"
    values = {**SETTINGS.model_dump(include={"top_k", "batch_size", "dtype"})}
    sets = [f"teacher_cache.{name}={value}" for name, value in values.items()]
    sets += [
        "audio_window_s=1",
        f"student={tiny_whisper}",
        f"teacher.model={tiny_whisper}",
        "languages.cs.corpus={corpus: fish-fillets}",
    ]
    options = [part for each in [*sets, "cluster.cpus_per_worker=1"] for part in ("--set", each)]
    command = [sys.executable, "-m", "pipeline", *options, "teacher-cache", "--lang", "cs"]
    environment = {**os.environ, **OWN, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        [*command, "--engine", "ray"],
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
        text=True,
        stderr=subprocess.PIPE,
    )
    while not (out / "progress.json").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.002)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "pipeline: interrupted; the same command goes on where it was"
    assert "Traceback" not in errors
    assert len(started) > 3
    assert not psutil.wait_procs(started, timeout=20)[1]
    begun = len(read_json(out / "progress.json")["shards"])
    assert 1 <= begun < SHARDS
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {name: content for name, content in files_of(out).items() if name != "manifest.json"} == {
        name: content for name, content in whole.items() if name != "manifest.json"
    }


# Without a cluster


@pytest.mark.parametrize(
    "nodes, settings, plan",
    [
        ([{"CPU": 2}], {}, Plan(1, 2, 0)),
        ([{"CPU": 32}, {"CPU": 12}, {"memory": 1}], {}, Plan(5, 8, 0)),
        ([{"CPU": 32}, {"CPU": 4}], {"cpus_per_worker": 4}, Plan(9, 4, 0)),
        ([{"CPU": 64}, {"CPU": 64, "GPU": 8}, {"CPU": 16, "GPU": 4}], {}, Plan(12, 4, 1)),  # a quarter of the 16 cores
        ([{"CPU": 64, "GPU": 8}], {"workers": 3}, Plan(3, 8, 1)),
        ([{"CPU": 8, "GPU": 8}], {"cpus_per_worker": 2}, Plan(4, 2, 1)),
        ([{"CPU": 512}], {}, Plan(20, 8, 0)),  # no more than there are shards
    ],
)
def test_a_worker_has_a_gpu_or_a_share_of_the_cores(nodes, settings, plan):
    assert plan_workers(nodes, ClusterSettings(**settings), "auto", 20) == plan


def test_what_no_machine_has_is_refused():
    with pytest.raises(PipelineError, match="no machine of the Ray cluster has 9 CPUs for a worker"):
        plan_workers([{"CPU": 8}, {"CPU": 8}], ClusterSettings(cpus_per_worker=9), "auto", 20)
    with pytest.raises(PipelineError, match="device 'cuda': no machine of the Ray cluster has a GPU"):
        plan_workers([{"CPU": 8}], ClusterSettings(), "cuda", 20)
    assert plan_workers([{"CPU": 8, "GPU": 1}], ClusterSettings(), "cpu", 20) == Plan(1, 8, 0)


def test_without_ray_it_says_what_to_install(tiny_whisper, source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PipelineError, match=r"pip install -c constraints.txt -e '.\[cluster\]'"):
        on_ray(tiny_whisper, source, tmp_path / "train")
    assert not (tmp_path / "train").exists()


def test_an_address_where_no_cluster_is_is_refused_at_once(monkeypatch):
    for address, reason in {
        "127.0.0.1:1": "cannot be reached",
        "ray://127.0.0.1:1": "a machine of the cluster",
    }.items():
        with pytest.raises(PipelineError, match=reason), connected(address):
            pass


def test_workers_without_ray_are_wrong_usage():
    result = CliRunner().invoke(cli, ["teacher-cache", "--lang", "cs", "--workers", "2"])
    assert result.exit_code == 2
    assert "--workers and --ray-address need --engine ray" in result.output


def test_where_it_runs_is_no_dependency_of_a_stage():
    """Another number of workers must not make DVC run the teacher again; any other parameter of it must."""
    stage = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]["teacher-cache"]
    (names,) = stage["params"][0].values()
    assert "teacher_cache" in names
    assert not any(name.startswith("cluster") for name in names)


def test_the_estimate_is_what_its_formula_gives(capsys):
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), {})
    rows = capsys.readouterr().out
    assert len(rows.splitlines()) == 4
    assert rows in page
