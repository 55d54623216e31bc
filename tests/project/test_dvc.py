"""The graph of dvc.yaml: what `dvc repro` runs and leaves alone, with a quick stand-in for the `pipeline` command."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from makers import write_command
from ruamel.yaml import YAML
from sources import NAMES, ROOT, imported, module_of

from pipeline.params import Params

# Writes the outputs that dvc.yaml declares, from the parameters that the real command reads, and notes each call. It starts
# 20 times as fast as the real one, which tests/project/test_dvc_real.py runs; `params`, which DVC calls once, is the real one.
STAND_IN = """
import json, sys
from pathlib import Path
arguments = sys.argv[1:]
flags = dict(zip(arguments[1::2], arguments[2::2]))
lang = flags.get("--lang")
with open("calls.txt", "a") as file:
    file.write(" ".join(arguments).replace(" --update", "") + "\\n")
def write(folder, name, value):
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / name).write_text(json.dumps(value))
if arguments[0] == "params":
    from pipeline.commands.params import write_params
    write_params(Path("params.yaml"), {}, Path(arguments[2]))
    sys.exit()
params = json.loads(Path("params.resolved.json").read_text())
if arguments[0] == "prepare":
    corpus = params["languages"][lang]
    for split in ["train", "validation", "test", *(f"test@{name}" for name in params["further_tests"])]:
        write(f"data/utterances/{lang}/{split}", "manifest.json", [split, corpus, params["prepare"]])
elif arguments[0] == "adapt-teacher":
    write(f"models/{lang}/teacher", "teacher.json", [lang, params["teacher"]])
elif arguments[0] == "teacher-cache":
    write(f"data/teacher/{lang}/train", "manifest.json", [lang, params["teacher_cache"]])
elif arguments[0] == "train-student":
    inputs = f"data/teacher/{lang}/train/manifest.json" if "kd" in flags["--method"] else "params.resolved.json"
    write(f"models/{lang}/{flags['--method']}", "training.json", [params["train"], Path(inputs).read_text()])
elif arguments[0] == "evaluate":
    name = flags["--system"] + (f"@{flags['--corpus']}" if "--corpus" in flags else "")
    write(f"metrics/{lang}", name + ".json", {"wer": 0.5, "system": flags["--system"]})
    write(f"metrics/{lang}", name + ".utterances.jsonl", {})
elif arguments[0] == "report":
    Path("report/curves").mkdir(parents=True, exist_ok=True)
    for method in ("lora", "lora-kd"):
        Path(f"report/curves/cs-{method}.csv").write_text("step,loss,validation_wer\\n1,2.0,\\n2,1.5,0.7\\n")
"""


class Project:
    """A copy of dvc.yaml and what it depends on, in a repository of its own."""

    def __init__(self, folder: Path, params: dict):
        self.folder = folder
        for name in ("cache", "stages"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder / name)
        (folder / "bin").mkdir()
        write_command(folder / "bin/pipeline", STAND_IN)
        self.write_params(params)
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)

    def write_params(self, params: dict) -> None:
        self.params = params
        YAML().dump(params, self.folder / "params.yaml")

    def dvc(self, *arguments: str) -> str:
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            ["dvc", *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=240
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def repro(self) -> set[str]:
        """The `pipeline` commands that `dvc repro` ran."""
        calls = self.folder / "calls.txt"
        calls.unlink(missing_ok=True)
        self.dvc("repro", "--quiet")
        return set(calls.read_text().splitlines()) if calls.exists() else set()


def small_params() -> dict:
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    corpus = {"corpus": "manifest", "path": "corpus.csv"}
    params["languages"] = {"cs": {"corpus": dict(corpus)}, "no": {"corpus": dict(corpus)}}
    return params


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("project"), small_params())
    assert len(project.repro()) == 1 + 2 * 10 + 1
    return project


PARAMETERS = "params --out params.resolved.json"  # reads params.yaml and the defaults each time
ALWAYS = {PARAMETERS, "prepare --lang cs", "prepare --lang no"}  # prepare looks at the corpus each time


def follows_the_cache(lang: str) -> set[str]:
    return {
        f"teacher-cache --lang {lang}",
        f"train-student --lang {lang} --method lora-kd",
        f"evaluate --lang {lang} --system lora-kd",
    }


def test_second_repro_looks_at_the_parameters_and_the_corpora_alone(project: Project):
    assert project.repro() == ALWAYS


def test_top_k_reruns_the_cache_and_what_follows(project: Project):
    project.params["teacher_cache"]["top_k"] += 1
    project.write_params(project.params)
    ran = project.repro()
    assert ran == ALWAYS | follows_the_cache("cs") | follows_the_cache("no") | {"report"}


def test_one_language_leaves_the_others_alone(project: Project):
    project.params["languages"]["no"]["corpus"]["test_fraction"] = 0.3
    project.write_params(project.params)
    ran = project.repro() - {PARAMETERS, "prepare --lang cs"}
    assert len(ran) == 10 + 1
    assert all("--lang no" in call or call == "report" for call in ran)


def test_training_settings_leave_cache_and_base_alone(project: Project):
    project.params["train"]["epochs"] = 1
    project.write_params(project.params)
    ran = project.repro()
    trained = {
        f"train-student --lang {lang} --method {method}" for lang in ("cs", "no") for method in ("lora", "lora-kd")
    }
    assert {call for call in ran if not call.startswith(("evaluate", "report", "prepare", "params"))} == trained
    assert not any("--system base" in call or "--system teacher" in call for call in ran)


def test_the_share_of_times_reruns_the_cache_and_all_training(project: Project):
    project.params["train"]["timestamps"] = 0.5
    project.write_params(project.params)
    ran = project.repro()
    assert {call for call in ran if call.startswith("teacher-cache")} == {
        f"teacher-cache --lang {lang}" for lang in ("cs", "no")
    }
    assert sum(call.startswith("train-student") for call in ran) == 4
    assert not any("--system base" in call or call.startswith("adapt-teacher") for call in ran)


def test_what_equals_its_default_may_be_left_out(project: Project):
    """A params.yaml of an earlier version lacks sections, and so may any."""
    defaults = Params().model_dump(mode="json")
    named = {name: defaults[name] for name in ("baselines", "further_tests", "report", "evaluate", "cluster")}
    project.write_params({**project.params, **named, "train": {**project.params["train"], "timestamps": 0.0}})
    project.repro()
    left = {name: value for name, value in project.params.items() if name not in named}
    del left["train"]["timestamps"]
    project.write_params(left)
    assert project.repro() == ALWAYS
    project.write_params({**left, "evaluate": {"batch_size": 3}})
    ran = project.repro() - ALWAYS - {"report"}
    assert len(ran) == 2 * 4 and all(call.startswith("evaluate") for call in ran)


def test_metrics_and_plots(project: Project):
    shown = project.dvc("metrics", "show", "--md")
    assert "metrics/cs/lora-kd.json" in shown.replace("\\", "/")
    page = project.dvc("plots", "show", "--out", str(project.folder / "plots")).strip()
    html = Path(page.removeprefix("file://")).read_text()
    assert "report_curves_cs-lora_csv" in html and "report_curves_cs-lora-kd_csv" in html


def test_paper_preset_covers_all_languages_and_fleurs():
    params = YAML(typ="safe").load((ROOT / "presets/paper.yaml").read_text())
    # stage list only: the preset is resolved by DVC itself
    listed = stage_list(params)
    assert {f"teacher-cache@{lang}" for lang in ("ca", "cs", "gl", "hu", "pl", "ta", "th", "uk")} <= listed
    assert {
        "further-from-teacher@ca-fleurs-clsr-kd",
        "further-base@uk-fleurs",
        "train-from-teacher@th-clsr-kd",
        "train-from-transcripts@ta-full",
        "evaluate-from-transcripts@pl-lora",
        "further-from-transcripts@hu-fleurs-lora",
    } <= listed


def test_preset_by_size_has_each_size_as_a_language_of_its_own():
    listed = stage_list(YAML(typ="safe").load((ROOT / "presets/paper-sizes.yaml").read_text()))
    entries = [f"{lang}-x-{size}" for lang in ("ca", "ta", "th") for size in ("3k", "10k", "28k")]
    assert {f"prepare@{entry}" for entry in entries} <= listed
    assert {f"train-from-teacher@{entry}-clsr-kd" for entry in entries} <= listed
    assert {f"further-from-transcripts@{entry}-fleurs-clsr" for entry in entries} <= listed


def stage_list(params: dict) -> set[str]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder), params)
        return {line.split()[0] for line in project.dvc("stage", "list").splitlines()}


# Dependencies on code

STAGE_OF = {"adapt-teacher": "train_student", "train-student": "train_student", "teacher-cache": "teacher_cache"}


def unit(module: str) -> str | None:
    """The file or folder by which dvc.yaml names a module: a layer, or what lies directly in stages/."""
    layer, *rest = module.split(".")
    if layer == "stages":
        folder = f"stages/{rest[0]}" if rest else None
        return folder if folder is None or (ROOT / folder).is_dir() else f"{folder}.py"
    return layer


def needed(stage: str) -> set[str]:
    """The units of all that the stage's modules import, and what those import, and so on."""
    seen: set[str] = set()
    waiting = [name for name in NAMES if name.startswith(f"stages.{stage}.")]
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            waiting += [found for full in imported(NAMES[name]) if (found := module_of(full))]
    return {found for name in seen if (found := unit(name))}


def test_code_that_a_stage_imports_is_among_its_dependencies():
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    assert len(stages) == 17
    del stages["parameters"]  # always run
    for name, stage in stages.items():
        command = stage["cmd"].split()[1]
        code = {dependency for dependency in stage["deps"] if "${" not in dependency}
        assert code == needed(STAGE_OF.get(command, command)), name
        assert len(code) >= 3
        keeps_work = command in ("prepare", "adapt-teacher", "teacher-cache", "train-student")
        assert (
            ("--update" in stage["cmd"])
            is keeps_work
            is ("persist: true" in str(stage["outs"]).replace("'", "").replace("True", "true"))
        )
