"""Published experts: logits and gates against an independent reference, and files that are not what they seem."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from makers import run
from published import PublishedLayer, make_published, save_published

from cache.errors import PipelineError
from stages.shared.student.experts import METADATA, shared_of
from stages.shared.student.loading import load_model
from stages.shared.student.model import DistilWhisperForConditionalGeneration as Student
from stages.shared.student.published import (
    check_published_base,
    find_published,
    published_base,
    published_languages,
    read_published,
)
from stages.shared.whisper.models import load_whisper

LANGUAGES = ["catalan", "galician"]
CHECKPOINTS = ["pytorch_model.bin", "model.safetensors", "pytorch_model.bin.index.json", "model.safetensors.index.json"]
KEY = "model.decoder.layers.1.ffn_clsr.{}.catalan.{}"


def batch(mels: int = 80, text: int = 256) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "input_features": torch.randn(2, mels, 3000, generator=random),
        "decoder_input_ids": torch.randint(0, text, (2, 7), generator=random),
    }


def published(base: Path, folder: Path, checkpoint: str | None = "pytorch_model.bin", scale: float = 0.3):
    """The reference's model and its layers, and the folder that was made of it."""
    model = load_whisper(str(base)).model
    made = make_published(model, LANGUAGES, scale)
    return model, made, save_published(model, LANGUAGES, folder, checkpoint)


@torch.no_grad()
def reference(model, made: dict[str, PublishedLayer], language: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    for layer in made.values():
        layer.language, layer.seen = language, []
    logits = model(**batch(), use_cache=False).logits
    return logits, {place: layer.seen[0] for place, layer in made.items()}


@torch.no_grad()
def assert_agrees(student: Student, language: str, logits: torch.Tensor, gates: dict[str, torch.Tensor]) -> None:
    with student.route(language) as routing:
        found = student.eval()(**batch(), use_cache=False).logits
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=0)
    assert routing.gates.keys() == gates.keys()
    for place, gate in gates.items():
        assert torch.equal(routing.gates[place][0].float(), gate), place
    for side in ("encoder", "decoder"):  # both ways are taken
        assert 0.05 < torch.cat([gate.flatten() for place, gate in gates.items() if side in place]).mean() < 0.95


@pytest.mark.parametrize("checkpoint", [*CHECKPOINTS, None])
def test_read_directly(checkpoint, tiny_whisper, tmp_path):
    model, made, folder = published(tiny_whisper, tmp_path, checkpoint)
    student = Student.from_whisper(load_whisper(str(tiny_whisper)).model)
    for name, code in (("catalan", "ca"), ("galician", "gl")):
        assert student.load_expert(folder, name) == code
    catalan, galician = reference(model, made, "catalan"), reference(model, made, "galician")
    assert (catalan[0] - galician[0]).abs().max() > 0.01
    assert_agrees(student, "ca", *catalan)
    assert_agrees(student, "gl", *galician)


def test_imported(tiny_whisper, tmp_path, monkeypatch, capsys):
    model, made, folder = published(tiny_whisper, tmp_path / "published")
    out = tmp_path / "ours"
    arguments = ["experts", "import", str(folder), "--lang", "galician", "--base", str(tiny_whisper), "--out", str(out)]
    assert run(monkeypatch, *arguments) == 0
    assert f"{out}: expert for gl, " in (said := capsys.readouterr().err)
    assert f"the base in its checkpoint equals {tiny_whisper}" in said
    loaded = load_model(str(out))
    assert loaded.student is not None
    assert_agrees(loaded.student, "gl", *reference(model, made, "galician"))
    config = json.loads((out / METADATA).read_text())
    whisper = load_whisper(str(tiny_whisper))
    expected = {
        "language": "gl",
        "base": str(tiny_whisper),
        "base_weights": whisper.fingerprint,
        "base_parameters": whisper.model.num_parameters() - 1500 * 32,  # its fixed positions
        "base_checked": True,
        "audio_window_s": 30,
        "source": str(folder),
        "precision": "fp32",  # these values are not exact in float16
        "rank": None,
    }
    assert {name: config[name] for name in expected} == expected
    assert run(monkeypatch, *arguments) == 1
    assert "already holds an expert" in capsys.readouterr().err


def test_values_that_float16_holds_are_stored_in_it(tiny_whisper, tmp_path, monkeypatch):
    model, made, _ = published(tiny_whisper, tmp_path / "single")
    with torch.no_grad():
        for layer in made.values():
            for parameter in layer.parameters():
                parameter.copy_(parameter.half())
    folder = save_published(model, LANGUAGES, tmp_path / "half", None)
    arguments = ["--lang", "ca", "--base", str(tiny_whisper), "--out", str(tmp_path / "ours")]
    assert run(monkeypatch, "experts", "import", str(folder), *arguments) == 0
    config = json.loads((tmp_path / "ours" / METADATA).read_text())
    assert (config["precision"], config["base_checked"]) == ("fp16", False)
    student = load_model(str(tmp_path / "ours")).student
    own, shared = student.expert_state("ca"), shared_of(load_whisper(str(tiny_whisper)).model)
    assert all(torch.equal(own[name], tensor) for name, tensor in read_published(folder, "ca", shared).items())


def test_the_checkpoint_gives_the_base(tiny_whisper, tmp_path):
    whisper = load_whisper(str(tiny_whisper))
    _, _, folder = published(tiny_whisper, tmp_path)
    base = published_base(folder)
    own = {name: p for name, p in whisper.model.named_parameters() if "encoder.embed_positions" not in name}
    assert own.keys() == {name for name in base if "encoder.embed_positions" not in name}
    assert all(torch.equal(base[name], tensor) for name, tensor in own.items())
    assert published_languages(folder) == ["ca", "gl"]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize(
    "name", ["model.decoder.layers.1.fc1.bias", "model.decoder.embed_tokens.weight", "model.encoder.conv1.weight"]
)
def test_another_base_is_named_by_its_first_tensor(checkpoint, name, tiny_whisper, tmp_path):
    _, _, folder = published(tiny_whisper, tmp_path, checkpoint)
    base = load_whisper(str(tiny_whisper)).model
    parameters = dict(base.named_parameters())
    assert check_published_base(folder, parameters, "tiny")
    with torch.no_grad():
        parameters[name].view(-1)[3] += 0.25
    with pytest.raises(PipelineError, match=f"another base than tiny: tensor '{name}' differs by up to 0.25"):
        check_published_base(folder, parameters, "tiny")
    if ".fc1." in name:
        student = Student.from_whisper(base)
        with pytest.raises(PipelineError, match=f"another base than this one: tensor '{name}' differs by up to 0.25"):
            student.load_expert(folder, "ca")
        assert student.languages == []


# What is refused


class Runs:
    """A pickle that makes a file when it is read without care."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def hostile(path: Path, target: Path, kind: str) -> None:
    payload = {KEY.format("proj", "fc1.bias"): Runs(target)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(payload))
    elif kind == "old torch file":
        torch.save(payload, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(payload, path)


@pytest.mark.parametrize("kind", ["plain pickle", "old torch file", "torch file"])
@pytest.mark.parametrize("name", ["expert.catalan.bin", "pytorch_model.bin"])
def test_a_hostile_pickle_runs_nothing(kind, name, tiny_whisper, tmp_path, monkeypatch, capsys):
    _, _, folder = published(tiny_whisper, tmp_path / "published")
    target = tmp_path / "ran"
    hostile(folder / name, target, kind)
    arguments = ["--lang", "ca", "--base", str(tiny_whisper), "--out", str(tmp_path / "out")]
    assert run(monkeypatch, "experts", "import", str(folder), *arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"pipeline: {folder / name}: not readable as a torch file with nothing but tensors")
    assert not target.exists()
    assert not (tmp_path / "out").exists()
    with pytest.raises(PipelineError, match="no code in it was run"):
        Student.from_whisper(load_whisper(str(tiny_whisper)).model).load_expert(folder, "ca")
    assert not target.exists()
    if kind != "old torch file":  # the same file does run where it is read without care: the test could fail
        data = folder / name
        content = zipfile.ZipFile(data).read(f"{data.stem}/data.pkl") if kind == "torch file" else data.read_bytes()
        pickle.loads(content)
        assert target.exists()


def edited(folder: Path, change) -> Path:
    path = folder / "expert.catalan.bin"
    state = torch.load(path, weights_only=True)
    torch.save(change(state) or state, path)
    return folder


BIAS = KEY.format("proj", "fc1.bias")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: {key: s[key] for key in s if key != BIAS}, f"'{BIAS}' is missing"),
        (
            lambda s: {key: s[key] for key in s if key != KEY.format("gate_out", "weight")},
            f"'{KEY.format('gate_out', 'weight')}' is missing",
        ),
        (lambda s: s.update({"proj_out.weight": torch.ones(1)}), "'proj_out.weight' is not expected"),
        (
            lambda s: s.update({KEY.format("gate_out", "bias"): torch.ones(1)}),
            f"'{KEY.format('gate_out', 'bias')}' is not expected",
        ),
        (
            lambda s: s.update({BIAS.replace("catalan", "galician"): s.pop(BIAS)}),
            f"'{BIAS.replace('catalan', 'galician')}' is of language 'galician', expected 'catalan'",
        ),
        (lambda s: s.update({BIAS: torch.ones(3)}), rf"'{BIAS}' has shape \[3\], expected \[64\]"),
        (lambda s: s.update({BIAS: torch.ones(64, dtype=torch.int64)}), f"'{BIAS}' is of type int64, expected a float"),
        (lambda s: s[BIAS].__setitem__(5, float("nan")), f"'{BIAS}' has values that are not finite"),
        (lambda s: s[BIAS].__setitem__(5, float("-inf")), f"'{BIAS}' has values that are not finite"),
        (lambda s: s.update({BIAS: "text"}), "other things than named tensors"),
        (lambda s: s.update({BIAS: torch.ones(64, device="meta")}), "other things than named tensors"),
        (lambda s: s.update({BIAS: torch.ones(64).to_sparse()}), "other things than named tensors"),
        (lambda s: list(s.values()), "other things than named tensors"),
        (lambda s: {"state_dict": s}, "other things than named tensors"),
    ],
)
def test_what_does_not_fit_is_named(change, text, tiny_whisper, tmp_path):
    folder = edited(published(tiny_whisper, tmp_path)[2], change)
    student = Student.from_whisper(load_whisper(str(tiny_whisper)).model)
    with pytest.raises(PipelineError, match=text) as caught:
        student.load_expert(folder, "ca")
    assert str(caught.value).startswith(f"{folder / 'expert.catalan.bin'}: ")
    assert student.languages == []
    assert student.load_expert(folder, "gl") == "gl"  # the other one is whole


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, -1])
def test_a_cut_file(cut, tiny_whisper, tmp_path):
    _, _, folder = published(tiny_whisper, tmp_path)
    path = folder / "expert.catalan.bin"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(PipelineError, match="expert.catalan.bin: not readable as a torch file"):
        Student.from_whisper(load_whisper(str(tiny_whisper)).model).load_expert(folder, "ca")


def refused(folder: Path, language: str | None = "ca") -> str:
    shared = {"encoder.layers.0.expert.fc1.weight": torch.ones(64, 32)}
    with pytest.raises(PipelineError) as caught:
        read_published(folder, language, shared)
    return str(caught.value)


def test_folders_that_are_not_right(tiny_whisper, tmp_path):
    _, _, folder = published(tiny_whisper, tmp_path)
    assert refused(folder, "uk") == (
        f"{folder / 'expert.ukrainian.bin'}: no such file; in its folder are experts for ca, gl"
    )
    assert "in its folder are experts for no language" in refused(tiny_whisper)
    with pytest.raises(PipelineError, match="holds experts for ca, gl: expected one of them, found None"):
        Student.from_whisper(load_whisper(str(tiny_whisper)).model).load_expert(folder)
    for change, text in (
        ({"model_type": "whisper"}, "'whisper', expected 'distilwhisper'"),
        ({"clsr_gate_dim": 8}, "64"),
    ):
        (folder / "config.json").write_text(json.dumps({"model_type": "distilwhisper", **change}))
        assert text in refused(folder)
    (folder / "config.json").unlink()  # the expert's own shapes say all that is needed
    assert Student.from_whisper(load_whisper(str(tiny_whisper)).model).load_expert(folder, "ca") == "ca"


@pytest.mark.parametrize("places", [None, {"a": 5}, {"a": "../other.bin"}, ["a"]])
def test_an_index_that_leads_elsewhere(places, tiny_whisper, tmp_path):
    _, _, folder = published(tiny_whisper, tmp_path, "pytorch_model.bin.index.json")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(PipelineError, match="no 'weight_map' of file names"):
        published_base(folder)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("./nowhere", "no such folder"),
        ("nowhere", "no such folder"),
        ("naver/multilingual-distilwhisper-3k", "the hub does not give it"),
    ],
)
def test_sources_that_are_not_there(source, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "experts", "import", source, "--lang", "ca", "--out", "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pipeline: {source}: ")
    assert text in line
    assert not (tmp_path / "out").exists()


def test_a_base_that_must_be_checked(tiny_whisper, tmp_path, monkeypatch, capsys):
    _, _, folder = published(tiny_whisper, tmp_path / "published", None)
    arguments = ["--lang", "ca", "--base", str(tiny_whisper), "--out", str(tmp_path / "out")]
    assert run(monkeypatch, "experts", "import", str(folder), *arguments, "--check-base") == 1
    assert "holds no full checkpoint" in capsys.readouterr().err
    assert run(monkeypatch, "experts", "import", str(folder), *arguments) == 0
    assert f"whether its base is {tiny_whisper} was not checked" in capsys.readouterr().err
    assert find_published(str(folder), "ca", False) == (folder, f"{folder}: local folder")


def test_another_base_on_the_command_line(tiny_whisper, tmp_path, monkeypatch, capsys):
    model, _, _ = published(tiny_whisper, tmp_path / "published")
    with torch.no_grad():
        model.model.encoder.layer_norm.bias[0] = 9
    folder = save_published(model, LANGUAGES, tmp_path / "published", "model.safetensors")
    arguments = ["--lang", "ca", "--base", str(tiny_whisper), "--out", str(tmp_path / "out")]
    assert run(monkeypatch, "experts", "import", str(folder), *arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "tensor 'model.encoder.layer_norm.bias' differs by up to 9" in last
    assert str(tiny_whisper) in last
    assert not (tmp_path / "out").exists()
