"""`dvc repro` with the real `pipeline` on real recordings: after a change, no old output stands as new."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from makers import TEXTS, write_command
from ruamel.yaml import YAML
from sources import ROOT

from cache.files import read_json, sha256_file

pytestmark = pytest.mark.real  # takes two minutes; test_dvc.py has a stand-in for `pipeline`
NAMES = ("cache", "stages", "pipeline", ".dvc", "dvc.yaml", ".dvcignore", ".gitignore")
STAGES = ("prepare", "adapt-teacher", "teacher-cache", "train-from-teacher")
# Starting Python with torch takes longer than a command does here. So a process that has loaded the libraries, and nothing of
# this project, forks for each call of `pipeline`; the fork loads the project's sources as they are then.
SERVER = """
import json, os, socket, sys
import accelerate, click, jinja2, peft, pyarrow.parquet, pydantic, soundfile, soxr, torch, webdataset
import transformers.models.whisper.modeling_whisper, transformers.models.whisper.tokenization_whisper
assert not {"cache", "pipeline", "stages"} & sys.modules.keys()
torch.set_num_threads(1)
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    message, files, *_ = socket.recv_fds(connection, 1 << 16, 3)
    if not (child := os.fork()):
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.argv, folder = json.loads(message)
        os.chdir(folder)
        from pipeline.cli import main
        main()
        sys.exit(0)
    for file in files:
        os.close(file)
    connection.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    connection.close()
"""
CLIENT = """
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(ADDRESS)
socket.send_fds(connection, [json.dumps([sys.argv, os.getcwd()]).encode()], [0, 1, 2])
sys.exit(int(connection.recv(16) or 1))
"""
ALWAYS = {"parameters", "prepare"}  # the stages that DVC runs each time
# All else, down to single fields of `train`, has its defaults
PARAMS = {
    "languages": {"gl": {"corpus": {"corpus": "manifest", "path": "recordings/rows.csv"}}},
    "audio_window_s": 1,
    "device": "cpu",
    "student": "tiny",
    "teacher": {"model": "tiny", "adapt": None},
    "methods": {"from_transcripts": {}, "from_teacher": {"clsr-kd": {}}},
    "prepare": {"shard_rows": 4},
    "teacher_cache": {"top_k": 8, "dtype": "fp32"},
    "cluster": {"engine": "local"},
    "train": {"max_steps": 2, "batch_size": 4, "accumulate": 1, "dtype": "fp32"},
    "evaluate": {"dtype": "fp32"},
    "paths": {name: name for name in ("utterances", "teacher", "models", "metrics", "report")},
}


class Project:
    """A copy of the sources, whose `pipeline` runs the copy, with a tiny model and ten recordings."""

    def __init__(self, folder: Path, model: Path):
        self.folder = folder
        for name in NAMES:
            ignored = shutil.ignore_patterns("__pycache__", "tmp", "cache" if name == ".dvc" else "")
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name, **({"ignore": ignored} if copy is shutil.copytree else {}))
        shutil.copytree(model, folder / "tiny")
        lines = ["path,text,split"]
        for number in range(10):
            self.record(number, number)
            split = {0: "test", 1: "validation"}.get(number, "train")
            lines.append(f'{number}.wav,"{TEXTS[number % len(TEXTS)]} {number}",{split}')
        (folder / "recordings/rows.csv").write_text("\n".join(lines), encoding="utf-8")
        YAML().dump(PARAMS, folder / "params.yaml")
        (folder / "bin").mkdir()
        self.address = Path(tempfile.mkdtemp()) / "socket"  # whose name may not be long
        write_command(folder / "bin/pipeline", CLIENT.replace("ADDRESS", repr(str(self.address))), "-S")
        path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        # the sources are compiled once, and not for each command; DVC ignores __pycache__
        only = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "", "OMP_NUM_THREADS": "1"}
        self.environment = {**os.environ, **only, "PATH": path}

    @contextmanager
    def served(self) -> Iterator["Project"]:
        command = [sys.executable, "-c", SERVER, str(self.address)]
        # not from the folder of a checkout, whose sources would come before the copy's
        with subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None and server.stdout.readline() == "ready\n"
                yield self
            finally:
                server.kill()
        shutil.rmtree(self.address.parent)

    def record(self, number: int, pitch: int) -> None:
        (self.folder / "recordings").mkdir(exist_ok=True)
        samples = 0.1 * np.sin(2 * np.pi * (150 + 20 * pitch) * np.arange(8_000) / 16_000)
        soundfile.write(self.folder / f"recordings/{number}.wav", samples, 16_000)

    def edit(self, name: str, change: Callable[[str], str]) -> None:
        before = (self.folder / name).read_text(encoding="utf-8")
        assert change(before) != before
        (self.folder / name).write_text(change(before), encoding="utf-8")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300
        )

    def repro(self, *targets: str) -> set[str]:
        """The stages that were run, without the matrix' parts of their names."""
        done = self.run("dvc", "repro", *targets)
        assert done.returncode == 0, done.stdout + done.stderr
        return set(re.findall(r"^Running stage '([\w-]+)", done.stdout, re.MULTILINE))

    def outputs(self) -> dict[str, str]:
        """The hash of what each stage has made."""
        files = {
            "prepare": "utterances/gl/train/shard-00000.parquet",
            "teacher-cache": "teacher/gl/train/shard-00000.parquet",
            "train-from-teacher": "models/gl/clsr-kd/experts.safetensors",
        }
        return {stage: sha256_file(self.folder / name) for stage, name in files.items()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_whisper: Path) -> Iterator[Project]:
    """Without git, as a release archive is; what README says makes DVC work there."""
    with Project(tmp_path_factory.mktemp("a project"), tiny_whisper).served() as project:
        assert project.run("dvc", "config", "--local", "core.no_scm", "true").returncode == 0
        assert len(project.repro()) == 9
        yield project


def raised(constant: str) -> Callable[[str], str]:
    return lambda text: re.sub(rf"^{constant} = .*", f"{constant} = 99", text, flags=re.MULTILINE)


def test_nothing_changed(project: Project):
    before = project.outputs()
    assert project.repro() == ALWAYS
    assert project.outputs() == before
    assert not [path for path in project.folder.rglob(".*.lock") if ".dvc" not in path.parts]


def test_code_of_another_version_makes_its_work_again(project: Project):
    """The same change without a raised version runs the stage, which keeps its work: so its numbers are golden ones."""
    before = project.outputs()
    project.edit("stages/train_student/losses.py", lambda text: text + "\n# A remark.\n")
    assert project.repro("train-from-teacher@gl-clsr-kd") == ALWAYS | {"adapt-teacher", "train-from-teacher"}
    assert project.outputs() == before
    project.edit("stages/train_student/loop.py", lambda text: text.replace("loss.backward()", "(-loss).backward()"))
    project.edit("stages/train_student/run.py", raised("TRAIN_VERSION"))
    assert project.repro() == ALWAYS | {"adapt-teacher", "train-from-teacher", "evaluate-from-teacher", "report"}
    after = project.outputs()
    assert after.pop("train-from-teacher") != before.pop("train-from-teacher")
    assert after == before
    assert read_json(project.folder / "models/gl/clsr-kd/training.json")["settings"]["train_version"] == 99


def test_another_version_of_the_teacher_s_stage_reaches_training(project: Project):
    before = project.outputs()
    project.edit("stages/teacher_cache/run.py", raised("TEACHER_CACHE_VERSION"))
    project.edit("stages/teacher_cache/score.py", lambda text: text.replace("= F.linear(", "= 0.5 * F.linear("))
    assert project.repro("train-from-teacher@gl-clsr-kd") == ALWAYS | {"teacher-cache", "train-from-teacher"}
    after = project.outputs()
    assert [stage for stage in before if after[stage] != before[stage]] == ["teacher-cache", "train-from-teacher"]


def test_a_corrected_transcript_and_a_replaced_recording_are_noticed(project: Project):
    """The recording is another of the same length, under the same name."""
    before, target = project.outputs(), "teacher-cache@gl"
    project.edit("recordings/rows.csv", lambda text: text.replace('3"', 'tri"'))
    assert project.repro(target) == ALWAYS | {"adapt-teacher", "teacher-cache"}
    corrected = project.outputs()
    assert corrected["prepare"] != before["prepare"] and corrected["teacher-cache"] != before["teacher-cache"]
    size = (project.folder / "recordings/4.wav").stat().st_size
    project.record(4, 40)
    assert (project.folder / "recordings/4.wav").stat().st_size == size
    assert project.repro(target) == ALWAYS | {"adapt-teacher", "teacher-cache"}
    replaced = project.outputs()
    assert replaced["prepare"] != corrected["prepare"] and replaced["teacher-cache"] != corrected["teacher-cache"]
    assert project.repro(target) == ALWAYS
