"""How commands end: one line whatever happens, a log file for what nobody foresaw, and the other files and languages done."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import soundfile
import torch
from makers import make_tiny_whisper, make_utterance_shards
from sources import ROOT

import pipeline.commands.evaluate  # noqa: F401  all that a command imports, for the forks
import pipeline.commands.prepare
import pipeline.commands.teacher_cache
import pipeline.commands.train
import pipeline.commands.transcribe  # noqa: F401
from cache import files
from cache.errors import PipelineError, is_out_of_memory
from cache.shards import ShardReader
from pipeline.cli import main
from pipeline.errors import each, explained
from stages.shared.audio import decode_flac

CAUSES = {  # Python run before the command, each fault somewhere else
    "a fault of ours": "import pipeline.params as p; p.load_params = lambda *_: {}['planted']",
    "several lines": "import pipeline.params as p\n"
    "def f(*_): raise RuntimeError('first\\nsecond s3://me:hunter2@store')\np.load_params = f",
    "an import": "import sys; sys.modules['pipeline.commands.evaluate'] = None",
    "no message": "import pipeline.params as p\ndef f(*_): assert False\np.load_params = f",
    "an OSError without a number": "import pipeline.params as p\ndef f(*_): raise OSError('planted')\np.load_params = f",
    "recursion": "import pipeline.params as p\ndef f(*_): return f()\np.load_params = f",
}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(tmp_path: Path, *arguments: str, before: str = "", encoding: str = "utf-8", **env: str) -> Done:
    """The command line in a process of its own, in `tmp_path`. A fork has everything imported, and starts at once."""
    if not (child := os.fork()):
        status = 99
        try:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(tmp_path / f".{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (open(number, "w", encoding=encoding) for number in (1, 2))  # noqa: SIM115
            status = _command_line(tmp_path, arguments, before, env)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Done(status, *((tmp_path / name).read_text(encoding) for name in (".out", ".err")))


def _command_line(folder: Path, arguments: tuple[str, ...], before: str, env: dict[str, str]) -> int:
    pipeline.commands.common.use_all_cores = lambda: torch.set_num_threads(1)  # a fork has no others
    os.chdir(folder)
    for name in ("PIPELINE_DEBUG", "PIPELINE_PARAMS"):
        os.environ.pop(name, None)
    os.environ.update({"HF_HUB_OFFLINE": "1", "PIPELINE_CACHE": str(folder / "cache"), **env})
    tempfile.tempdir = None  # it remembers TMPDIR
    sys.argv = ["pipeline", *arguments]
    exec(before, {})
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 98
    return 0


@pytest.mark.parametrize("cause", CAUSES)
def test_what_nobody_foresaw_is_a_line_and_a_log(cause, tmp_path):
    done = run(tmp_path, "evaluate", "--lang", "cs", before=CAUSES[cause])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("pipeline: unexpected error (") and "fault of the program" in line
    (log,) = (tmp_path / "cache/logs").iterdir()
    assert str(log) in line
    assert re.fullmatch(r"pipeline-\d{8}-\d{6}-\d+-\w+\.log", log.name)
    text = log.read_text()
    assert "Traceback (most recent call last)" in text
    assert "command: pipeline evaluate --lang cs" in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text and "Python 3." in text
    assert "hunter2" not in text and os.environ["PATH"] not in text


def test_a_log_that_cannot_be_written_goes_elsewhere_or_is_printed(tmp_path):
    (tmp_path / "cache").write_text("a file, where the folder should be")
    (tmp_path / "tmp").mkdir()
    fault = CAUSES["a fault of ours"]
    done = run(tmp_path, "evaluate", "--lang", "cs", before=fault, TMPDIR=str(tmp_path / "tmp"))
    (log,) = (tmp_path / "tmp").iterdir()
    assert str(log) in done.stderr and len(done.stderr.splitlines()) == 1
    nowhere = "import tempfile; tempfile.mkstemp = lambda *_: open('/nowhere/at/all')\n"
    done = run(tmp_path, "evaluate", "--lang", "cs", before=nowhere + fault)
    assert "Traceback" in done.stderr and "no log file could be written" in done.stderr.splitlines()[-1]


def test_debugging_shows_the_traceback(tmp_path):
    """Of a known error, too, with the one that it stands for."""
    for fault, status in (("", 1), (CAUSES["a fault of ours"], 1)):
        done = run(tmp_path, "evaluate", "--lang", "cs", "--device", "toaster", before=fault, PIPELINE_DEBUG="1")
        assert done.returncode == status
        assert "Traceback (most recent call last)" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("pipeline: ")
        assert ("During handling of the above exception" in done.stderr) == (not fault)
    done = run(tmp_path, "evaluate", "--lang", "cs", "--device", "toaster")
    assert "Traceback" not in done.stderr


def test_an_error_in_a_thread_is_a_line(tmp_path):
    threaded = (
        "import threading, pipeline.params as p\ndef f(*_):\n"
        "    t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()\n    raise KeyboardInterrupt\np.load_params = f"
    )
    done = run(tmp_path, "evaluate", "--lang", "cs", before=threaded)
    assert done.returncode == 130
    first, last = filter(None, done.stderr.splitlines())  # click ends the line that ^C has begun
    assert "ZeroDivisionError" in first and ".log" in first and "interrupted" in last


@pytest.mark.parametrize(("signum", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_it_in_order(signum, status, tmp_path):
    waiting = (
        "import os, signal, time, pipeline.params as p\ndef f(*_):\n    try:\n"
        f"        os.kill(os.getpid(), signal.{signum}); time.sleep(20)\n"
        "    finally:\n        open('ended', 'w').close()\np.load_params = f\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGTERM, signal.SIG_DFL)"
    )
    done = run(tmp_path, "evaluate", before=waiting)
    assert done.returncode == status
    (line,) = filter(None, done.stderr.splitlines())
    assert line.endswith("the same command goes on where it was")
    assert (tmp_path / "ended").exists()


# Output that is not read, or cannot be shown


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper of a window of one second, with two recordings beside it."""
    folder = tmp_path_factory.mktemp("speaker")
    make_tiny_whisper(folder / "model")
    config = json.loads((folder / "model/config.json").read_text())
    (folder / "model/config.json").write_text(json.dumps({**config, "audio_window_s": 1}))
    for number, row in enumerate(ShardReader(make_utterance_shards(folder / "u", [2]), "utterances").read(0)):
        soundfile.write(folder / f"{number}.wav", decode_flac(row["audio"]), 16000)
    return folder


SAYS = "import stages.shared.whisper.decode as d\nd.Transcriber.text = lambda *_: {!r}"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_text_that_a_console_cannot_show(encoding, speaker, tmp_path):
    text = "příliš žluťoučký kůň ♪ привет"
    done = run(
        tmp_path,
        *("transcribe", f"{speaker}/0.wav", "--model", f"{speaker}/model", "--lang", "cs"),
        before=SAYS.format(text),
        encoding=encoding,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == text.encode(encoding, "backslashreplace").decode(encoding)


def test_a_file_name_that_is_not_utf_8(speaker, tmp_path):
    name = os.fsdecode(b"m\xe9.wav")
    (tmp_path / name).write_bytes((speaker / "0.wav").read_bytes())
    arguments = ("--model", f"{speaker}/model", "--lang", "cs")
    done = run(tmp_path, "transcribe", name, name, *arguments, before=SAYS.format("ano"))
    assert (done.returncode, done.stdout.splitlines()) == (0, ["m\\udce9.wav:", "ano"] * 2), done.stderr
    done = run(tmp_path, "transcribe", "0" + name, *arguments)
    assert done.returncode == 1 and "0m\\udce9.wav" in done.stderr and "no such file" in done.stderr


def test_json_keeps_names_that_are_not_utf_8_and_any_console_prints_it(tmp_path):
    files.write_json(tmp_path / "a.json", {"path": "m\udce9.wav", "text": "kůň"})
    assert files.read_json(tmp_path / "a.json") == {"path": "m\udce9.wav", "text": "kůň"}
    folder = make_utterance_shards(tmp_path / "kůň é", [2])
    for encoding in ("cp1252", "utf-8"):
        done = run(tmp_path, "cache", "info", "--json", str(folder), encoding=encoding)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["folder"] == str(folder)


def test_output_that_nobody_reads(tmp_path):
    """As of `pipeline … | head`: no traceback, also where Python flushes at its end; nor on a full disk."""
    folder = make_utterance_shards(tmp_path / "u", [2])
    for arguments in (["cache", "info", str(folder)], ["--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        code = f"import sys; sys.argv = {['pipeline', *arguments]!r}\nfrom pipeline.cli import main; main()"
        with os.fdopen(writing, "w") as closed:
            done = subprocess.run(
                [sys.executable, "-c", code],
                stdout=closed,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        assert done.returncode in (1, 141)
        assert "Error" not in done.stderr and "Exception" not in done.stderr
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-c", code],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("pipeline: ") and "No space left" in done.stderr
        assert "Exception" not in done.stderr


# One of several


def test_a_broken_file_among_several(speaker, tmp_path):
    (tmp_path / "broken.wav").write_text("no audio")
    paths = [f"{speaker}/0.wav", "broken.wav", f"{speaker}/1.wav", "gone.wav", f"{speaker}/0.wav"]
    done = run(tmp_path, "transcribe", *paths, "--model", f"{speaker}/model", "--lang", "cs", before=SAYS.format("ano"))
    assert done.returncode == 1
    assert done.stdout.splitlines().count("ano") == 3
    *_, broken, gone, last = done.stderr.splitlines()
    refused = "neither libsndfile nor ffmpeg can read it" if shutil.which("ffmpeg") else "libsndfile cannot read it"
    assert broken.startswith(f"pipeline: broken.wav: {refused}")
    assert gone == "pipeline: gone.wav: no such file"
    assert last == "pipeline: 2 of 5 failed: broken.wav, gone.wav"


def test_a_language_that_fails_among_several(speaker, tmp_path):
    """The others are done: prepare, teacher-cache, train-student and evaluate."""
    text = "path,text,split\n" + "".join(
        f"{speaker}/{n}.wav,Slovo {n}.,{split}\n" for n, split in ((0, "train"), (1, "test"))
    )
    (tmp_path / "cs.csv").write_text(text)
    (tmp_path / "params.yaml").write_text(
        f"student: {speaker}/model\nteacher: {{model: {speaker}/model}}\naudio_window_s: 1\n"
        "teacher_cache: {top_k: 4, dtype: fp32}\nevaluate: {dtype: fp32}\nprepare: {min_seconds: 0}\n"
        "languages:\n  pl: {corpus: {corpus: manifest, path: pl.csv}}\n  cs: {corpus: {corpus: manifest, path: cs.csv}}\n"
    )
    for command, made in (
        (["prepare"], "data/utterances/cs/test/manifest.json"),
        (["teacher-cache"], "data/teacher/cs/train/manifest.json"),
        (["evaluate", "--system", "base"], "metrics/cs/base.json"),
    ):
        done = run(tmp_path, *command)
        assert done.returncode == 1, done.stderr
        assert (tmp_path / made).exists(), done.stderr
        assert done.stderr.splitlines()[-1].startswith("pipeline: 1 of 2 failed: pl")
        assert any(line.startswith("pipeline: ") and "pl" in line for line in done.stderr.splitlines()[:-1])
    done = run(tmp_path, "cache", "info", "--json", "nowhere", "data/utterances/cs/test")
    assert done.returncode == 1
    assert [found["folder"] for found in json.loads(done.stdout)] == ["data/utterances/cs/test"]


def failing(*errors: Exception | None) -> tuple[list[int], Exception | None]:
    """What was done, and what was raised in the end."""
    done = []

    def work(number: int) -> None:
        done.append(number)
        if (error := errors[number]) is not None:
            raise error

    try:
        each(range(len(errors)), str, work)
    except Exception as error:
        return done, error
    return done, None


def test_what_stops_the_others_too(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path))
    for error in (
        OSError(28, "No space left on device", "x"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"),
        click.UsageError("wrong"),
    ):
        assert failing(None, error, None) == ([0, 1], error)
    for error in (PipelineError("x"), OSError(13, "Permission denied", "x"), ZeroDivisionError(), KeyError("x")):
        done, raised = failing(None, error, None)
        assert done == [0, 1, 2]
        assert str(raised) == "1 of 3 failed: 1"
    assert failing(PipelineError("alone"))[1].args == ("alone",)
    done, raised = failing(*[PipelineError("x")] * 25)
    assert len(done) == 25 and str(raised).endswith("19 and 5 more")
    done, _ = failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), None)
    assert done == [0, 1]  # a smaller model may fit
    assert "CUDA out of memory" in capsys.readouterr().err


# Out of memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error):
    assert is_out_of_memory(error)
    line, status = explained(error)
    assert status == 1 and line.startswith("out of memory (")


def test_other_errors_are_not_out_of_memory():
    for error in (ValueError("out of memory"), PipelineError("x: out of memory"), RuntimeError("shape mismatch")):
        assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        (["teacher-cache"], "teacher_cache.batch_size"),
        (["train-student"], "train.batch_size"),
        (["train-student"], "train.gradient_checkpointing"),
        (["adapt-teacher"], "teacher.adapt.batch_size"),
        (["evaluate"], "evaluate.batch_size"),
    ],
)
def test_the_setting_to_lower_is_named(command, setting, tmp_path):
    real = "import pipeline.params as p, numpy\np.load_params = lambda *_: numpy.empty(1 << 50)"
    done = run(tmp_path, *command, "--lang", "cs", before=real)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("pipeline: out of memory (Unable to allocate") and setting in line


# Where downloads and logs lie


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "{home}/.cache/whisper-offline-distillation"),
        ({"XDG_CACHE_HOME": ""}, "{home}/.cache/whisper-offline-distillation"),
        ({"XDG_CACHE_HOME": "relative"}, "{home}/.cache/whisper-offline-distillation"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/whisper-offline-distillation"),
        ({"XDG_CACHE_HOME": "/x", "PIPELINE_CACHE": ""}, "/x/whisper-offline-distillation"),
        ({"XDG_CACHE_HOME": "/x", "PIPELINE_CACHE": "/y"}, "/y"),
        ({"PIPELINE_CACHE": "~/y"}, "{home}/y"),
        ({"PIPELINE_CACHE": "y"}, "{here}/y"),
    ],
)
def test_the_folder_of_downloads(environment, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "PIPELINE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(files.download_folder()) == expected.format(home=tmp_path / "home", here=tmp_path)
