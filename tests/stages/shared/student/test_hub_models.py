"""Models on the hub: experts, adapters and Whispers are given by owner/name wherever a model is. The hub is a stand-in."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from export_makers import make_experts, make_lora
from hub import Hub, serving, use
from makers import make_tiny_whisper, make_utterance, make_utterance_shards, run, run_captured

from cache.errors import PipelineError
from stages.shared.audio import SAMPLE_RATE, decode_flac
from stages.shared.student.loading import load_model, locate
from stages.shared.whisper import models


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base; experts and an adapter that name it by its id; and a bundle of the experts alone."""
    root = tmp_path_factory.mktemp("hub")
    base = make_tiny_whisper(root / "someone/base")
    make_experts(base, root / "someone/experts")
    make_lora(base, root / "someone/adapter")
    for name, file in (("experts", "experts.json"), ("adapter", "lora.json")):
        path = root / "someone" / name / file
        path.write_text(json.dumps({**json.loads(path.read_text()), "base": "someone/base"}))
    with pytest.MonkeyPatch.context() as patch:
        places = [str(root / "someone" / name) for name in ("experts", "bundle", "base")]
        assert run(patch, "experts", "bundle", places[0], "--out", places[1], "--base", places[2]) == 0
    return root


@pytest.fixture
def hub(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serves them. The working folder is empty, and nothing has been downloaded yet."""
    shutil.copytree(repositories, tmp_path / "hub")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("pipeline.commands.common.use_all_cores", lambda: torch.set_num_threads(1))
    models._from_hub.cache_clear()
    with serving(tmp_path / "hub") as hub:
        use(monkeypatch, hub, tmp_path / "home")
        yield hub
    models._from_hub.cache_clear()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


@pytest.mark.parametrize("kind", ["experts", "adapter", "bundle"])
def test_it_is_the_model_of_the_folder(kind, hub, tmp_path):
    source = f"someone/{kind}"
    found = locate(source)
    assert (found.name, found.kind, found.languages) == (source, kind, ["cs"])
    assert found.folder.is_relative_to(tmp_path / "home")
    assert found.lines[-1] == "someone/base: from the hub"
    theirs = weights(load_model(source).whisper.model)
    ours = weights(load_model(str(hub.root / source), base=str(hub.root / "someone/base")).whisper.model)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())


def test_the_hub_is_asked_once_for_each_model(hub):
    for _ in range(2):
        load_model("someone/experts")
        load_model("someone/adapter")
        load_model("someone/bundle")
        load_model("someone/base")
    assert [hub.asked_for(f"someone/{name}") for name in ("experts", "adapter", "bundle", "base")] == [1, 1, 1, 1]


def test_a_bundle_is_made_of_repositories(hub, monkeypatch):
    assert run(monkeypatch, "experts", "bundle", "someone/experts", "--out", "out") == 0
    for name in ("bundle.json", "cs/experts.json", "cs/experts.safetensors"):
        assert Path("out", name).read_bytes() == (hub.root / "someone/bundle" / name).read_bytes()


@pytest.mark.parametrize("kind", ["experts", "adapter", "base"])
def test_commands_take_it(kind, hub, tmp_path, monkeypatch, capsys):
    def pipeline(*arguments: object) -> str:
        status, out, err = run_captured(monkeypatch, capsys, *arguments)
        assert status == 0, err
        return out

    Path("params.yaml").write_text("audio_window_s: 1\nevaluate: {dtype: fp32}\n")
    soundfile.write("a.wav", decode_flac(make_utterance(0)["audio"]), SAMPLE_RATE)
    make_utterance_shards(tmp_path / "work/data/utterances/cs/test", [2], "test")
    make_utterance_shards(tmp_path / "work/data/utterances/cs/validation", [2], "validation")
    folder, base = hub.root / "someone" / kind, () if kind == "base" else ("--base", hub.root / "someone/base")
    by_id, by_folder = (
        pipeline("transcribe", "a.wav", "--lang", "cs", "--model", model, *more)
        for model, more in ((f"someone/{kind}", ()), (folder, base))
    )
    assert by_id == by_folder and by_id.strip()
    pipeline("evaluate", "--lang", "cs", "--model", f"someone/{kind}", "--name", "theirs")
    assert json.loads(Path("metrics/cs/theirs.json").read_text())["model"] == f"someone/{kind}"
    pipeline("export", f"someone/{kind}", "--lang", "cs", "--to", "whisper", "--out", "out")
    assert f"`someone/{kind}`" in Path("out/README.md").read_text()


def test_what_the_hub_does_not_give_is_one_clear_line(hub, monkeypatch, capsys):
    hub.private.add("someone/experts")
    for name in ("someone/experts", "someone/nothing"):
        status, _, err = run_captured(monkeypatch, capsys, "transcribe", "a.wav", "--lang", "cs", "--model", name)
        (line,) = [line for line in err.splitlines() if "a.wav" not in line]
        assert status == 1
        assert line == (
            f"pipeline: {name}: not a local folder, and the hub has no such repository, or does not open it to you: check "
            "the name; for a private or gated one log in with `hf auth login`, or set HF_TOKEN"
        )
    hub.repository("someone/empty")
    (hub.root / "someone/empty/notes.md").write_text("no model")
    with pytest.raises(PipelineError, match=r"^someone/empty: no config.json in it: expected a Whisper model"):
        locate("someone/empty")
    with pytest.raises(PipelineError, match=r"^nothing/here/either: no such folder, and not a hub id"):
        locate("nothing/here/either")


def test_a_base_that_is_not_given_is_told_with_the_way_out(hub):
    hub.private.add("someone/base")
    with pytest.raises(
        PipelineError, match="its base cannot be found: someone/base: .*give its folder or hub id with --base"
    ):
        locate("someone/experts")


def test_without_the_hub_the_embedded_base_comes_after_one_attempt(hub, monkeypatch):
    hub.down = True
    monkeypatch.setattr(models, "embedded_whisper_base", lambda: hub.root / "someone/base")
    shutil.copytree(hub.root / "someone/experts", "experts")
    path = Path("experts/experts.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "base": "openai/whisper-base"}))
    assert locate("experts").whisper.line.endswith("the hub cannot be reached; using the embedded whisper-base")
    attempts = hub.asked_for("openai/whisper-base")
    for _ in range(2):
        assert locate("openai/whisper-base").kind == "whisper"
    load_model("experts")
    assert hub.asked_for("openai/whisper-base") == attempts
