"""The command line as a user meets it: exit status, one clear line for each mistake, parameters read as DVC reads them."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from click.testing import CliRunner
from makers import make_utterance_shards, run_captured

from cache.shards import ShardReader
from pipeline.cli import cli as group
from pipeline.params import load_params
from stages.shared.audio import decode_flac

COMMANDS = sorted(group.commands)


class Result:
    def __init__(self, status: int, out: str, err: str):
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """Runs a command line in an empty folder, without the hub; nothing but SystemExit may come out of it."""
    monkeypatch.setattr("pipeline.commands.common.use_all_cores", lambda: torch.set_num_threads(1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PIPELINE_PARAMS", raising=False)

    return lambda *arguments: Result(*run_captured(monkeypatch, capsys, *arguments))


def assert_one_line(result: Result, status: int, *parts: str) -> None:
    """The last line on standard error; what comes before it may only say which model is used."""
    assert result.status == status, result.err
    *before, last = filter(None, result.err.splitlines())
    assert last.startswith("pipeline: ")
    assert all(line.endswith(": local folder") for line in before), result.err
    assert result.out == ""
    for part in parts:
        assert part in last


def write_params(text: str) -> None:
    Path("params.yaml").write_text(text, encoding="utf-8")


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command, pipeline):
    result = pipeline(command, "--help")
    assert result.status == 0
    example = result.out.partition("Example:\n")[2].strip().splitlines()[0].strip()
    assert example.startswith(f"pipeline {command}")
    assert result.err == ""


def test_help_lists_the_commands(pipeline):
    result = pipeline("--help")
    assert result.status == 0
    expected = ["prepare", "teacher-cache", "train-student", "evaluate", "report", "transcribe"]
    assert all(f"\n  {command} " in result.out for command in expected)
    assert "Example" in result.out


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_every_example_is_a_command_line_that_is_understood(command):
    """Its flags exist and its values are of their types: parsed, not run."""
    examples = (group.commands[command] if command else group).epilog.partition("Example:\n")[2]
    for line in examples.strip().splitlines():
        words = line.split()
        assert words[0] == "pipeline"
        with group.make_context("pipeline", words[1:]) as context:
            rest = [*context._protected_args, *context.args]
            assert rest, f"no command in `{line.strip()}`"
            name, command_, arguments = group.resolve_command(context, rest)
            command_.make_context(name, list(arguments), parent=context)


def test_version(pipeline):
    result = pipeline("--version")
    assert result.status == 0
    assert "0." in result.out


# Wrong usage: 2


@pytest.mark.parametrize("command", ["prepare", "teacher-cache", "train-student", "evaluate", "adapt-teacher"])
def test_an_unknown_language(command, pipeline):
    assert_one_line(pipeline(command, "--lang", "catlan"), 2, "catlan", "did you mean catalan")
    assert_one_line(pipeline(command, "--lang", "cs,zz"), 2, "zz")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fly"], "fly"),
        (["prepare", "--wings"], "--wings"),
        (["train-student", "--method", "magic"], "clsr-kd"),
        (["evaluate", "--lang", "cs", "--system", "magic"], "no such system, expected one of base, teacher, full"),
        (["teacher-cache", "--top-k", "many"], "many"),
        (["teacher-cache", "--targets", "magic"], "pseudo"),
        (["--set", "train.epochs", "evaluate"], "NAME=VALUE"),
        (["--params", "nowhere.yaml", "report"], "nowhere.yaml"),
        (["transcribe", "--model", "x"], "FILES"),
        (["prepare", "--lang", "cs", "--path", "x.csv"], "--corpus"),
    ],
)
def test_wrong_usage(arguments, text, pipeline):
    assert_one_line(pipeline(*arguments), 2, text)


# Anything a user, a file or a parameter can cause: 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("trian: {epochs: 3}", ["params.yaml", "trian"]),
        ("train: {epoch: 3}", ["train.epoch", "found 3"]),
        ("train: {epochs: many}", ["train.epochs", "'many'"]),
        ("train: {epochs: -1}", ["train.epochs", "greater than 0"]),
        ("audio_window_s: 31", ["audio_window_s", "30"]),
        ("audio_window_s: 2.5", ["audio_window_s", "2.5"]),
        ("teacher_cache: {top_k: 0}", ["teacher_cache.top_k"]),
        ("teacher_cache: {top_p: 1.5}", ["teacher_cache.top_p", "found 1.5"]),
        ("teacher_cache: {bits: 9}", ["teacher_cache.bits", "8"]),
        ("train: {kd_tail: spread}", ["train", "kd_tail 'spread' goes with kd_divergence 'kl' alone"]),
        ("languages: {cs: {corpus: {corpus: nonsense}}}", ["languages.cs.corpus", "nonsense"]),
        ("train: [1, 2", ["params.yaml", "not valid YAML"]),
        ("a: 1\na: 2", ["params.yaml", "not valid YAML"]),
        ("\tx: 1", ["params.yaml", "not valid YAML"]),
        ("!!python/object/apply:os.system ['touch ran']", ["params.yaml"]),
        ("- 1\n- 2", ["params.yaml", "list"]),
        ("just text", ["params.yaml", "str"]),
        ("5: 6", ["params.yaml"]),
    ],
)
def test_a_parameters_file_that_is_not_right(text, parts, pipeline):
    write_params(text)
    assert_one_line(pipeline("evaluate", "--lang", "cs"), 1, *parts)
    assert not Path("ran").exists()


def test_a_parameters_file_that_is_no_text(pipeline):
    Path("params.yaml").write_bytes(b"\xff\xfe\x00")
    assert_one_line(pipeline("evaluate", "--lang", "cs"), 1, "params.yaml")
    Path("folder.yaml").mkdir()
    assert_one_line(pipeline("--params", "folder.yaml", "evaluate", "--lang", "cs"), 1, "folder.yaml")


@pytest.mark.parametrize(
    "value", ["train.epochs=many", "train.epochs=", "nothing=1", "train=5", "=1", ".=1", "train..=1"]
)
def test_a_set_that_makes_no_sense(value, pipeline):
    result = pipeline("--set", value, "evaluate", "--lang", "cs")
    assert_one_line(result, 1)


@pytest.mark.parametrize("value", ["train.epochs=[1", "train.epochs={", "train.epochs=!!x 1", "a=\x01", "a=1\na: 2"])
def test_a_set_that_is_no_yaml(value, pipeline):
    result = pipeline("--set", value, "evaluate", "--lang", "cs")
    assert_one_line(result, result.status)
    assert result.status in (1, 2)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["prepare", "--lang", "cs", "--corpus", "manifest", "--path", "nowhere.csv"], ["nowhere.csv"]),
        (["prepare", "--lang", "cs", "--corpus", "common-voice", "--path", "nowhere"], ["nowhere"]),
        (["prepare", "--lang", "cs", "--corpus", "fleurs", "--path", "nowhere"], ["nowhere"]),
        (["prepare", "--lang", "cs", "--corpus", "manifest"], ["path"]),
        (["prepare", "--lang", "cs"], ["no corpus for 'cs'", "--corpus"]),
        (["prepare"], ["no language"]),
        (
            ["evaluate", "--lang", "cs", "--system", "clsr-kd"],
            ["models/cs/clsr-kd", "pipeline train-student --lang cs"],
        ),
        (["transcribe", "x.wav", "--lang", "cs", "--model", "./nowhere"], ["./nowhere", "no such folder"]),
        (["transcribe", "x.wav", "--lang", "cs", "--model", "."], ["config.json"]),
        (["train-student", "--lang", "cs", "--student", "."], ["config.json", "transformers"]),
        (["train-student", "--lang", "cs", "--student", "someone/some-model"], ["someone/some-model"]),
        (["evaluate", "--lang", "cs", "--device", "toaster"], ["device 'toaster'", "auto, cpu or cuda"]),
    ],
)
def test_what_is_not_there(arguments, parts, pipeline):
    assert_one_line(pipeline(*arguments), 1, *parts)


@pytest.mark.parametrize(
    "files", [{"config.json": "{}"}, {"config.json": "{"}, {"config.json": '{"model_type": "bert"}'}]
)
def test_a_folder_that_is_no_whisper(files, pipeline, tiny_whisper, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes((tiny_whisper / name).read_bytes())
    for name, text in files.items():
        (folder / name).write_text(text)
    assert_one_line(pipeline("transcribe", "x.wav", "--lang", "cs", "--model", folder), 1, str(folder))


def test_a_model_with_cut_weights(pipeline, tiny_whisper, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_whisper.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert_one_line(pipeline("transcribe", "x.wav", "--lang", "cs", "--model", folder), 1, str(folder))


def test_shards_that_are_not_there(pipeline, tiny_whisper):
    write_params(f"student: {tiny_whisper}\nteacher: {{model: {tiny_whisper}}}\naudio_window_s: 1\n")
    for command in (["teacher-cache"], ["train-student", "--method", "clsr"]):
        assert_one_line(pipeline(*command, "--lang", "cs"), 1, "data/utterances/cs/train", "manifest.json")
    assert_one_line(pipeline("evaluate", "--lang", "cs", "--system", "base"), 1, "data/utterances/cs/test")


def test_training_with_a_teacher_that_has_not_been_run(pipeline, tiny_whisper, utterances):
    write_params(f"student: {tiny_whisper}\naudio_window_s: 1\n")
    assert_one_line(pipeline("train-student", "--lang", "cs"), 1, "data/teacher/cs/train", "manifest.json")


def test_an_adapted_teacher_that_is_not_there(pipeline, tiny_whisper, utterances):
    write_params(f"teacher: {{model: {tiny_whisper}, adapt: {{epochs: 1}}}}\naudio_window_s: 1\n")
    for command in (["teacher-cache"], ["evaluate", "--system", "teacher"]):
        assert_one_line(pipeline(*command, "--lang", "cs"), 1, "pipeline adapt-teacher --lang cs")


def test_a_full_disk(pipeline, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "/some/shard")

    monkeypatch.setattr("pipeline.params.load_params", full)
    result = pipeline("evaluate", "--lang", "cs")
    assert_one_line(result, 1, "/some/shard", "No space left on device", "free some space")


def test_interrupted(pipeline, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.params.load_params", interrupt)
    assert_one_line(pipeline("evaluate", "--lang", "cs"), 130, "goes on where it was")


# Parameters


def test_yaml_is_read_as_dvc_reads_it(tmp_path):
    """`no` is Norwegian, not false; 1e-4 is a number, not text; so is what comes by --set."""
    (tmp_path / "params.yaml").write_text(
        "languages:\n  no: {corpus: {corpus: manifest, path: no.csv}}\n  cs: {corpus: {corpus: fish-fillets}}\n"
        "train: {learning_rate: 1e-4}\n"
    )
    params = load_params(tmp_path / "params.yaml", {})
    assert list(params.languages) == ["no", "cs"]
    assert params.train.learning_rate == 1e-4


def test_norwegian_on_the_command_line(pipeline):
    write_params("languages:\n  no: {corpus: {corpus: manifest, path: no.csv}}\n")
    assert_one_line(pipeline("prepare", "--lang", "no"), 1, "no.csv")
    assert_one_line(pipeline("prepare"), 1, "no.csv")
    assert_one_line(pipeline("prepare", "--lang", "norwegian"), 1, "no.csv")


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str):
    """The parameters that a command's work would be given."""
    seen = []
    monkeypatch.setattr("pipeline.commands.teacher_cache.teacher_cache", lambda params, *_: seen.append(params))
    result = CliRunner().invoke(group, list(arguments))
    assert result.exception is None, result.output
    return seen[0]


def test_flags_override_set_and_set_overrides_the_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_params("teacher_cache: {top_k: 3, batch_size: 5}\ndevice: cpu\nteacher: {model: a/b, adapt: {epochs: 2}}\n")
    params = parsed(monkeypatch, "teacher-cache")
    assert (params.teacher_cache.top_k, params.teacher_cache.batch_size, params.device) == (3, 5, "cpu")
    assert params.teacher.adapt.epochs == 2
    params = parsed(monkeypatch, "--set", "teacher_cache.top_k=4", "--set", "train.learning_rate=1e-4", "teacher-cache")
    assert (params.teacher_cache.top_k, params.teacher_cache.batch_size) == (4, 5)
    assert params.train.learning_rate == 1e-4
    params = parsed(monkeypatch, "--set", "teacher_cache.top_k=4", "teacher-cache", "--top-k", "6", "--device", "auto")
    assert (params.teacher_cache.top_k, params.teacher_cache.batch_size, params.device) == (6, 5, "auto")
    params = parsed(monkeypatch, "teacher-cache", "--targets", "pseudo", "--top-p", "0.5", "--format", "webdataset")
    assert (params.teacher_cache.targets, params.teacher_cache.top_p) == ("pseudo", 0.5)
    assert (params.teacher_cache.format, params.teacher_cache.top_k) == ("webdataset", 3)
    params = parsed(monkeypatch, "teacher-cache", "--teacher", "c/d")
    assert (params.teacher.model, params.teacher.adapt) == ("c/d", None)  # used as it is


def test_without_a_file_the_defaults_hold(tmp_path):
    assert load_params(tmp_path / "none.yaml", {}).teacher_cache.top_k == 64


# A small run through the commands


def test_the_commands_one_after_the_other(pipeline, tiny_whisper, utterances):
    write_params(
        f"student: {tiny_whisper}\nteacher: {{model: {tiny_whisper}}}\naudio_window_s: 1\ndevice: cpu\n"
        "teacher_cache: {top_k: 4, transcribe: true, dtype: fp32}\nevaluate: {dtype: fp32}\n"
        "train: {batch_size: 4, accumulate: 1, max_steps: 2, max_validation: 1, dtype: fp32}\n"
        "baselines: {base-2s: {audio_window_s: 2}}\n"
    )
    cached = pipeline("teacher-cache", "--lang", "Czech")
    assert cached.status == 0, cached.err
    lines = cached.err.splitlines()
    assert lines[0] == f"{tiny_whisper}: local folder"
    (last,) = (line for line in lines if line.startswith("teacher-cache cs: 9/9 utterances, "))
    assert "utterances/s" in last
    manifest = json.loads(Path("data/teacher/cs/train/manifest.json").read_text())
    assert lines[-1].startswith(f"data/teacher/cs/train: 9 utterances, {manifest['tokens']} tokens, ")
    assert lines[-1].endswith(f" bytes per token, teacher's own WER {100 * manifest['teacher_wer']:.1f} %")
    refused = pipeline("teacher-cache", "--lang", "cs", "--top-k", "5")
    assert_one_line(refused, 1, "top_k: found 4, wanted 5", "--restart")
    trained = pipeline("train-student", "--lang", "cs", "--method", "clsr-kd", "--seed", "3")
    assert trained.status == 0, trained.err
    assert any(line.startswith("clsr-kd cs: 2/2 steps, ") and " kd " in line for line in trained.err.splitlines())
    assert json.loads(Path("models/cs/clsr-kd/training.json").read_text())["settings"]["seed"] == 3
    scored = pipeline("evaluate", "--lang", "cs", "--system", "clsr-kd", "--system", "base", "--system", "base-2s")
    assert scored.status == 0, scored.err
    for system, window in {"clsr-kd": 1, "base": 1, "base-2s": 2}.items():
        metrics = json.loads(Path(f"metrics/cs/{system}.json").read_text())
        assert (metrics["system"], metrics["utterances"], metrics["audio_window_s"]) == (system, 4, window)
        assert f"metrics/cs/{system}.json: WER {100 * metrics['wer']:.1f} %" in scored.err
    for result in (cached, trained, scored):
        assert result.out == ""
        assert not set(result.err) & set("\x1b\r\b")  # no terminal, no bar


def test_transcribe_prints_text_alone(pipeline, tiny_whisper, tmp_path):
    folder = make_utterance_shards(tmp_path / "u", [2])
    for number, row in enumerate(ShardReader(folder, "utterances").read(0)):
        soundfile.write(tmp_path / f"{number}.wav", decode_flac(row["audio"]), 16000)
    model = shutil.copytree(tiny_whisper, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "audio_window_s": 1}))
    result = pipeline("transcribe", "0.wav", "1.wav", "--lang", "cs", "--model", model, "--device", "cpu")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert [line for line in lines if line.endswith(".wav:")] == ["0.wav:", "1.wav:"]
    assert_one_line(pipeline("transcribe", "gone.wav", "--lang", "cs", "--model", model), 1, "gone.wav", "no such file")
    assert_one_line(pipeline("transcribe", "0.wav", "--lang", "cs,nl", "--model", model), 2, "one language")
