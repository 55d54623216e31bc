"""`pipeline experts info` and `compress` as a user meets them; `import` is in test_published.py."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from makers import make_tiny_whisper, run, save_expert
from safetensors.torch import load_file

from cache import files
from stages.shared.student import experts as experts_module
from stages.shared.student import loading
from stages.shared.student.experts import METADATA, WEIGHTS, read_expert, read_expert_metadata, shared_of
from stages.shared.student.loading import load_model
from stages.shared.student.model import DistilWhisperForConditionalGeneration as Student
from stages.shared.student.packing import kept, pack, unpack
from stages.shared.whisper.models import load_whisper


@pytest.fixture
def experts(tiny_whisper: Path, tmp_path: Path) -> Path:
    """Of Czech, in float16, whose difference has two large components and many small ones."""
    whisper = load_whisper(str(tiny_whisper), 1)
    metadata = {"base": str(tiny_whisper), "base_weights": whisper.fingerprint, "audio_window_s": 1, "method": "clsr"}
    student = Student.from_whisper(whisper.model)
    student.add_expert("cs")
    random = torch.Generator().manual_seed(2)
    for parameter in student.expert_state("cs").values():
        parameter.data += 0.002 * torch.randn(parameter.shape, generator=random)
        if parameter.dim() == 2:
            rows, columns = parameter.shape
            parameter.data += 0.02 * torch.randn(rows, 2, generator=random) @ torch.randn(2, columns, generator=random)
    save_expert(student, "cs", tmp_path / "experts", {**metadata, "validation_wer": 0.25, "step": 7})
    return tmp_path / "experts"


def facts_of(folder: Path) -> dict:
    return json.loads((folder / METADATA).read_text())


@pytest.mark.parametrize(("precision", "rank"), [("int8", None), ("fp16", 2), ("int8", 2)])
def test_compress(precision, rank, experts, tiny_whisper, tmp_path, monkeypatch, capsys):
    out = tmp_path / "small"
    flags = ["--precision", precision, *(["--rank", str(rank)] if rank else [])]
    assert run(monkeypatch, "experts", "compress", str(experts), "--out", str(out), *flags) == 0
    shared = shared_of(load_whisper(str(tiny_whisper), 1).model)
    state = read_expert(experts, read_expert_metadata(experts), shared).state
    expected = unpack(pack(state, shared, precision, rank), shared, precision, rank, "here")
    found = read_expert(out, read_expert_metadata(out), shared).state
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    said = capsys.readouterr()
    assert said.out == ""
    share = kept(state, expected, shared)
    assert share > (0.9 if rank else 0.99)
    assert f"{100 * share:.2f} % of what training changed in the FFNs is kept" in said.err
    assert f"experts compress {experts}: {len(state)}/{len(state)} tensors" in said.err
    before, after = facts_of(experts), facts_of(out)
    assert after.pop("compressed_from") == {"precision": "fp16", "rank": None}
    whole = load_whisper(str(tiny_whisper)).model.num_parameters() - 1500 * 32  # its fixed positions
    assert after == {**before, "precision": precision, "rank": rank, "base_parameters": whole}
    assert load_model(str(out)).student is not None


def test_what_was_compressed_twice_says_what_it_came_from(experts, tmp_path, monkeypatch):
    for source, out, rank in ((experts, "first", "9"), (tmp_path / "first", "second", "2")):
        assert run(monkeypatch, "experts", "compress", str(source), "--out", str(tmp_path / out), "--rank", rank) == 0
    assert facts_of(tmp_path / "second")["compressed_from"] == {"precision": "fp16", "rank": None}
    assert facts_of(tmp_path / "second")["rank"] == 2


def test_info(experts, tiny_whisper, tmp_path, monkeypatch, capsys):
    small = tmp_path / "small"
    flags = ["--out", str(small), "--precision", "int8", "--rank", "2"]
    assert run(monkeypatch, "experts", "compress", str(experts), *flags) == 0
    capsys.readouterr()
    assert run(monkeypatch, "experts", "info", str(experts), str(small)) == 0
    parameters = sum(tensor.numel() for tensor in load_file(experts / WEIGHTS).values())
    fingerprint = load_whisper(str(tiny_whisper)).fingerprint[:12]
    size, of_small = ((folder / WEIGHTS).stat().st_size for folder in (experts, small))
    assert of_small < size
    share = 100 * of_small / (2 * (load_whisper(str(tiny_whisper)).model.num_parameters() - 1500 * 32))
    assert capsys.readouterr().out.splitlines() == [
        str(experts),
        "  language             cs",
        f"  base                 {tiny_whisper}, weights {fingerprint}",
        "  audio window         1 s",
        f"  parameters           {parameters:,}",
        "  layers               all",
        "  gates                for each token",
        "  stored as            fp16, full rank",
        f"  bytes                {size:,}, share of the base's size not known",
        "  validation WER       25.0 %",
        str(small),
        "  language             cs",
        f"  base                 {tiny_whisper}, weights {fingerprint}",
        "  audio window         1 s",
        f"  parameters           {parameters:,}",
        "  layers               all",
        "  gates                for each token",
        "  stored as            int8, rank 2",
        f"  bytes                {of_small:,}, {share:.1f} % of the base in fp16",
        "  validation WER       25.0 %, before it was compressed",
    ]
    assert run(monkeypatch, "experts", "info", str(small), "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {
        "folder": str(small),
        **facts_of(small),
        "bytes": of_small,
        "share_of_base": pytest.approx(share / 100),
    }


def test_mistakes_are_one_line(experts, tiny_whisper, tmp_path, monkeypatch, capsys):
    def line(status: int, *arguments: object) -> str:
        capsys.readouterr()
        assert run(monkeypatch, "experts", *map(str, arguments)) == status
        said = capsys.readouterr()
        assert said.out == ""
        *before, last = said.err.splitlines()
        assert all(each.endswith(": local folder") for each in before)
        assert last.startswith("pipeline: ")
        return last

    out = tmp_path / "out"
    assert "experts.json: no such file" in line(1, "info", tmp_path)
    assert "already holds an expert" in line(1, "compress", experts, "--out", experts)
    assert "rank is 900, expected 1 to 32" in line(1, "compress", experts, "--out", out, "--rank", 900)
    assert "--rank" in line(2, "compress", experts, "--out", out, "--rank", 0)
    assert "int8" in line(2, "compress", experts, "--out", out, "--precision", "int4")
    assert "--out" in line(2, "compress", experts)
    assert "did you mean catalan" in line(2, "import", experts, "--lang", "catlan", "--out", out)
    assert "--lang" in line(2, "import", experts, "--out", out)
    other = make_tiny_whisper(tmp_path / "other", seed=1)
    (experts / METADATA).write_text(json.dumps({**facts_of(experts), "base": str(other)}))
    assert "expected the same base model" in line(1, "compress", experts, "--out", out)
    (experts / WEIGHTS).unlink()
    assert f"{experts / WEIGHTS}: no such file" in line(1, "info", experts)
    assert not out.exists()


@pytest.mark.parametrize("command", ["import", "info", "compress"])
def test_help_shows_examples_that_are_understood(command, monkeypatch, capsys):
    from pipeline.cli_experts import experts_group

    assert run(monkeypatch, "experts", command, "--help") == 0
    shown = capsys.readouterr().out.partition("Example:\n")[2].strip().splitlines()
    assert shown
    for line in shown:
        words = line.split()
        assert words[:3] == ["pipeline", "experts", command]
        experts_group.commands[command].make_context(command, words[3:])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"base": 5}, "base is 5, expected text"),
        ({"base_weights": None}, "base_weights is None, expected text"),
        ({"audio_window_s": "4"}, "audio_window_s is '4', expected a whole number"),
        ({"audio_window_s": True}, "audio_window_s is True, expected a whole number"),
        ({"language": ["cs"]}, "language is ['cs'], expected text"),
        ({"format_version": {}}, "format_version is {}, expected 2"),
    ],
)
def test_facts_that_are_not_sound_are_named(change, text, experts, tmp_path, monkeypatch, capsys):
    (experts / METADATA).write_text(json.dumps({**facts_of(experts), **change}))
    for arguments in (["info", experts], ["compress", experts, "--out", tmp_path / "out"]):
        assert run(monkeypatch, "experts", *map(str, arguments)) == 1
        assert capsys.readouterr().err.splitlines() == [f"pipeline: {experts / METADATA}: {text}"]


def test_each_file_is_read_once(experts, monkeypatch, tmp_path):
    """From `pipeline transcribe --model EXPERT` to the text: the expert's files, and the base's weights."""
    soundfile.write(tmp_path / "talk.wav", 0.1 * np.sin(np.arange(16_000) / 20), 16_000)
    opened: Counter[str] = Counter()
    readers = ((files, "read_json"), (experts_module, "read_weights"), (loading, "find_base"), (loading, "load_base"))
    for module, name in readers:
        read = getattr(module, name)

        def counted(first, *others, read=read, name=name, **named):
            path = getattr(first, "name", "") if name.startswith("read_") else name
            opened[path] += 1
            return read(first, *others, **named)

        monkeypatch.setattr(module, name, counted)
    assert run(monkeypatch, "transcribe", str(tmp_path / "talk.wav"), "--model", str(experts)) == 0
    assert opened == {METADATA: 1, WEIGHTS: 1, "find_base": 1, "load_base": 1}
