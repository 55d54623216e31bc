"""A command once more: what becomes of work that is there, and what two at the same time do."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from makers import make_teacher_shards, run
from training import train_one

from cache.convert import convert
from cache.errors import PipelineError
from cache.files import read_json
from cache.locks import sole_writer
from cache.shards import ShardReader
from stages.evaluate.run import EVALUATE_VERSION, Subject, evaluate
from stages.evaluate.settings import EvaluateSettings
from stages.report.run import Sources, write_report
from stages.shared.student.loading import load_model
from stages.shared.whisper.models import Whisper, load_whisper
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.train_student.settings import TrainSettings

CPU = torch.device("cpu")
Steps = list[int]


@pytest.fixture
def whisper(tiny_whisper: Path) -> Whisper:
    return load_whisper(str(tiny_whisper), 1)


def cached(whisper: Whisper, utterances: Path, out: Path, **options) -> Steps:
    """How many utterances were done when it began, and whenever it told of progress."""
    steps: Steps = []
    settings = TeacherCacheSettings(top_k=8, dtype="fp32")
    progress = lambda done, total, seconds: steps.append(done)  # noqa: E731
    cache_teacher(ScoringJob(whisper, "cs", settings, CPU), utterances / "train", out, progress=progress, **options)
    return steps


def trained(whisper: Whisper, utterances: Path, out: Path, **options) -> Steps:
    steps: Steps = []
    settings = TrainSettings(max_steps=2, batch_size=4, accumulate=1, dtype="fp32", max_validation=1)
    progress = lambda done, total, losses: steps.append(done)  # noqa: E731
    train_one(whisper, "clsr", "cs", utterances, None, out, settings, CPU, progress=progress, **options)
    return steps


Work = Callable[..., Steps]
STAGES = pytest.mark.parametrize(
    ("work", "constant"),
    [
        (cached, "stages.teacher_cache.run.TEACHER_CACHE_VERSION"),
        (trained, "stages.train_student.run.TRAIN_VERSION"),
    ],
)


@STAGES
def test_kept_made_again_or_refused(
    work: Work, constant: str, whisper: Whisper, utterances: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    assert work(whisper, utterances, out)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for rerun in ("refuse", "update"):
        assert work(whisper, utterances, out, rerun=rerun) == []
    (out / "of before").touch()
    assert work(whisper, utterances, out, rerun="restart")[0] == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.setattr(constant, 99)
    with pytest.raises(
        PipelineError, match=rf"{constant.rpartition('.')[2].lower()}: found \d+, wanted 99\): give --upd"
    ):
        work(whisper, utterances, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert work(whisper, utterances, out, rerun="update")[0] == 0


@STAGES
def test_unfinished_work_of_another_version_is_not_continued(
    work: Work, constant: str, whisper: Whisper, utterances: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class KilledError(Exception):
        pass

    def killed(done: int, total: int, _: object) -> None:
        if done:
            raise KilledError

    out = tmp_path / "out"
    settings = TrainSettings(max_steps=2, batch_size=4, accumulate=1, dtype="fp32", max_validation=1)
    with pytest.raises(KilledError):
        if work is trained:
            train_one(whisper, "clsr", "cs", utterances, None, out, settings, CPU, progress=killed)
        else:
            own = TeacherCacheSettings(top_k=8, dtype="fp32")
            shards = utterances / "train"
            times = iter([0, 0, 0, 1])  # the first shard is recorded
            cache_teacher(
                ScoringJob(whisper, "cs", own, CPU),
                shards,
                out,
                progress=lambda done, *rest: killed(next(times, 1), 1, 0),
            )
    assert (out / "progress.json").exists()
    monkeypatch.setattr(constant, 99)
    with pytest.raises(PipelineError, match=r"found \d+, wanted 99"):
        work(whisper, utterances, out)
    assert work(whisper, utterances, out, rerun="update")[0] == 0


def test_old_rows_never_stand_beside_new_metrics(tiny_whisper: Path, utterances: Path, tmp_path: Path):
    """The rows cannot be written here: then there are no metrics, old ones neither."""
    out = tmp_path / "metrics/base.json"
    arguments = (utterances / "test", Subject("cs", "base", "base"), out, EvaluateSettings(dtype="fp32"), CPU)
    evaluate(load_model(str(tiny_whisper), 1), *arguments)
    assert read_json(out)["evaluate_version"] == EVALUATE_VERSION
    rows = out.with_suffix(".utterances.jsonl")
    rows.unlink()
    rows.mkdir()
    with pytest.raises(OSError, match="directory"):
        evaluate(load_model(str(tiny_whisper), 1), *arguments)
    assert not out.exists()


def test_a_folder_in_use_is_refused_by_every_stage(
    whisper: Whisper, utterances: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    out = tmp_path / "out"
    teacher = make_teacher_shards(tmp_path / "teacher", utterances / "train", whisper)
    (tmp_path / "none").mkdir()
    with sole_writer(out):
        for work in (
            lambda: cached(whisper, utterances, out),
            lambda: trained(whisper, utterances, out),
            lambda: convert(ShardReader(teacher, "teacher"), out, "webdataset"),
        ):
            with pytest.raises(PipelineError, match=rf"{out}: in use by process \d+ on "):
                work()
        assert not out.exists()
    monkeypatch.chdir(tmp_path)
    params = {"paths": {"utterances": "data/utterances"}, "student": whisper.model_id, "audio_window_s": 1}
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    with sole_writer(tmp_path / "metrics/cs/base.json"):
        assert run(monkeypatch, "evaluate", "--lang", "cs", "--system", "base") == 1
    assert "metrics/cs/base.json: in use by process" in capsys.readouterr().err


def test_a_report_keeps_nothing_of_systems_that_are_gone(utterances: Path, tiny_whisper: Path, tmp_path: Path):
    out = tmp_path / "metrics/cs/base.json"
    settings = EvaluateSettings(dtype="fp32")
    evaluate(load_model(str(tiny_whisper), 1), utterances / "test", Subject("cs", "base", "base"), out, settings, CPU)
    for method in ("clsr", "lora"):
        (tmp_path / "models/cs" / method).mkdir(parents=True)
        (tmp_path / "models/cs" / method / "curve.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    sources = Sources(tmp_path / "metrics", tmp_path / "models", utterances.parent, tmp_path / "teacher")
    places = (sources, tmp_path / "report")
    write_report(*places, resamples=10)
    assert {path.name for path in (tmp_path / "report/curves").iterdir()} == {"cs-clsr.csv", "cs-lora.csv"}
    (tmp_path / "models/cs/lora/curve.jsonl").unlink()
    (tmp_path / "report/figures/old.svg").write_text("")
    write_report(*places, resamples=10)
    assert {path.name for path in (tmp_path / "report/curves").iterdir()} == {"cs-clsr.csv"}
    assert not (tmp_path / "report/figures/old.svg").exists()
    with sole_writer(tmp_path / "report"), pytest.raises(PipelineError, match="report: in use by process"):
        write_report(*places, resamples=10)


def test_an_adapted_teacher_gives_way_to_one_that_is_used_as_it_is(
    tiny_whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    params = {"teacher": {"model": str(tiny_whisper), "adapt": None}, "audio_window_s": 1}
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    folder = tmp_path / "models/cs/teacher"
    folder.mkdir(parents=True)
    (folder / "training.json").write_text('{"settings": {"method": "full"}}')
    assert run(monkeypatch, "adapt-teacher", "--lang", "cs") == 1
    assert "teacher.adapt" in capsys.readouterr().err
    assert run(monkeypatch, "adapt-teacher", "--lang", "cs", "--update") == 0
    assert [path.name for path in folder.iterdir()] == ["teacher.json"]
    assert run(monkeypatch, "adapt-teacher", "--lang", "cs") == 0


@pytest.mark.parametrize("command", ["prepare", "adapt-teacher", "teacher-cache", "train-student", "cache convert"])
def test_update_and_restart_together_are_wrong_usage(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    rest = ["a", "b", "--format", "parquet"] if command == "cache convert" else ["--lang", "cs"]
    assert run(monkeypatch, *command.split(), *rest, "--update", "--restart") == 2
    assert "--update keeps the same work, --restart keeps none" in capsys.readouterr().err


def test_the_three_ways_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    for number, split in enumerate(("train", "validation", "test")):
        wave = 0.1 * np.sin(2 * np.pi * (200 + 50 * number) * np.arange(8_000) / 16_000)
        soundfile.write(f"{number}.wav", wave, 16_000)
        with open("rows.csv", "a") as file:
            file.write(("" if number else "path,text,split\n") + f"{number}.wav,Frase {number}.,{split}\n")
    command = ["prepare", "--lang", "gl", "--corpus", "manifest", "--path", "rows.csv"]
    manifest = Path("data/utterances/gl/train/manifest.json")

    def made() -> bool:
        """Whether the last command wrote the shards."""
        told = capsys.readouterr()
        assert "3/3 utterances" in told.err or "gl/train: 1 utterances" in told.err, told.err
        fresh = not manifest.with_name("mark").exists()
        manifest.with_name("mark").touch()
        return fresh

    assert run(monkeypatch, *command) == 0 and made()
    for flags, expected in (([], False), (["--update"], False), (["--restart"], True), ([], False)):
        assert run(monkeypatch, *command, *flags) == 0
        assert made() == expected
    Path("rows.csv").write_text(Path("rows.csv").read_text().replace("Frase 0", "Frase cero"))
    assert run(monkeypatch, *command) == 1
    assert "transcripts: found" in capsys.readouterr().err
    assert run(monkeypatch, *command, "--update") == 0 and made()
