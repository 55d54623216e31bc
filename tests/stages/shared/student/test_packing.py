"""How experts are stored: what comes back against planted differences and numpy's own decomposition."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import save_expert
from safetensors.torch import load_file, save_file

from cache.errors import PipelineError
from stages.shared.student.experts import (
    METADATA,
    WEIGHTS,
    read_expert,
    read_expert_metadata,
    shared_of,
    write_expert,
)
from stages.shared.student.model import DistilWhisperForConditionalGeneration as Student
from stages.shared.student.packing import kept, pack, unpack
from stages.shared.whisper.models import Whisper, load_whisper

PLACES = ("encoder.layers.0", "decoder.layers.1")
WIDTH, INNER = 32, 48
SETTINGS = [("fp16", None), ("fp32", None), ("int8", None), ("fp16", 5), ("fp32", 5), ("int8", 5)]
BASE = {"base": "some/base", "base_weights": "0" * 64, "audio_window_s": 1}


def tensors(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Of two layers; the FFNs' names and shapes."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"fc1.weight": (INNER, WIDTH), "fc1.bias": (INNER,), "fc2.weight": (WIDTH, INNER), "fc2.bias": (WIDTH,)}
    names = {f"{place}.expert.{part}": shape for place in PLACES for part, shape in shapes.items()}
    return {name: scale * torch.randn(shape, generator=random) for name, shape in names.items()}


def gates(seed: int = 7) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = {"inner.weight": (64, WIDTH), "inner.bias": (64,), "outer.weight": (1, 64)}
    return {f"{p}.gate.{part}": torch.randn(shape, generator=random) for p in PLACES for part, shape in shapes.items()}


SHARED = tensors(0)
MATRICES = [name for name, tensor in SHARED.items() if tensor.dim() == 2]
STATE = {name: SHARED[name] + change for name, change in tensors(1, 0.01).items()} | gates()


def changed_by(differences: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return STATE | {name: SHARED[name] + difference for name, difference in differences.items()}


def there_and_back(state: dict, precision: str, rank: int | None) -> dict[str, torch.Tensor]:
    return unpack(pack(state, SHARED, precision, rank), SHARED, precision, rank, "here")


def test_values_come_back_in_their_precision():
    for precision, dtype in (("fp16", torch.float16), ("fp32", torch.float32)):
        back = there_and_back(STATE, precision, None)
        assert back.keys() == STATE.keys()
        assert all(torch.equal(back[name], tensor.to(dtype).float()) for name, tensor in STATE.items())


def load_without_base_check(student: Student, folder: Path) -> str:
    """BASE is no model's."""
    expert = read_expert(folder, read_expert_metadata(folder), student.shared_state())
    return student.add_stored_expert(expert, str(folder))


@pytest.mark.parametrize(("precision", "rank"), SETTINGS)
def test_biases_and_gates_are_values_whatever_becomes_of_the_matrices(precision, rank):
    stored = pack(STATE, SHARED, precision, rank)
    for name in STATE.keys() - set(MATRICES):
        assert torch.equal(stored[name], STATE[name] if precision == "fp32" else STATE[name].half())


@pytest.mark.parametrize(("precision", "rank"), SETTINGS)
def test_what_was_not_changed_comes_back_as_it_was(precision, rank):
    """A fresh expert is the shared block, bit for bit where it is stored as a difference."""
    back = there_and_back(changed_by({name: torch.zeros_like(SHARED[name]) for name in MATRICES}), precision, rank)
    rounded = precision == "fp16" and rank is None
    assert all(torch.equal(back[n], SHARED[n].half().float() if rounded else SHARED[n]) for n in MATRICES)


def test_int8_rounds_each_row_by_its_own_scale():
    """Rows of very different size, each a whole multiple of a 127th of its largest: nothing but float rounding is lost."""
    random = torch.Generator().manual_seed(3)
    planted = {}
    for name in MATRICES:
        codes = torch.randint(-126, 127, SHARED[name].shape, generator=random)
        codes[:, 5] = 127
        planted[name] = codes * torch.logspace(-7, -2, len(codes))[:, None]
    stored = pack(changed_by(planted), SHARED, "int8")
    for name, difference in planted.items():
        back = stored[f"{name}.delta"] * stored[f"{name}.delta.scale"][:, None]
        torch.testing.assert_close(back, difference, rtol=0, atol=3e-7)  # 1 ulp of the weight it is a difference of
    assert {stored[f"{name}.delta"].dtype for name in MATRICES} == {torch.int8}


def test_int8_is_off_by_half_a_step_at_most():
    stored, back = pack(STATE, SHARED, "int8"), there_and_back(STATE, "int8", None)
    for name in MATRICES:
        step = (STATE[name] - SHARED[name]).abs().amax(1, keepdim=True) / 127
        assert ((back[name] - STATE[name]).abs() <= step / 2 + 1e-6).all()
        assert stored[f"{name}.delta"].abs().max() == 127


def test_low_rank_is_the_best_there_is():
    """Eckart and Young: what is lost is the rest of the singular values, by numpy's decomposition in float64."""
    back = there_and_back(STATE, "fp32", 5)
    lost = changed = 0.0
    for name in MATRICES:
        values = np.linalg.svd((STATE[name] - SHARED[name]).double().numpy(), compute_uv=False)
        error = torch.linalg.matrix_norm(back[name].double() - STATE[name].double()).item()
        assert error == pytest.approx(np.sqrt((values[5:] ** 2).sum()), rel=1e-4)
        lost, changed = lost + (values[5:] ** 2).sum(), changed + (values**2).sum()
    biases = sum((STATE[n] - SHARED[n]).square().sum().item() for n in SHARED if n not in MATRICES)
    assert kept(STATE, back, SHARED) == pytest.approx(1 - lost / (changed + biases), abs=1e-5)
    assert 0.1 < kept(STATE, back, SHARED) < 0.9


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_low_rank_of_what_was_never_changed_is_nothing(precision):
    unchanged = {**STATE, **{name: SHARED[name].clone() for name in MATRICES}}
    back = there_and_back(unchanged, precision, 3)
    assert all(torch.equal(back[name], SHARED[name]) for name in MATRICES)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-3), ("int8", 3e-2)])
def test_each_component_keeps_its_own_size(precision, tolerance):
    """Singular values from 1 to 0.001: the least is as exact as the greatest, also in 8 bits."""
    random = torch.Generator().manual_seed(4)
    size = torch.logspace(0, -3, 4)
    for name in MATRICES:
        rows, columns = SHARED[name].shape
        u = torch.linalg.qr(torch.randn(rows, 4, generator=random)).Q
        v = torch.linalg.qr(torch.randn(columns, 4, generator=random)).Q
        stored = pack({name: u * size @ v.T}, {name: torch.zeros(rows, columns)}, precision, 4)
        left, right = (
            stored[f"{name}.{part}"].float() * (stored[f"{name}.{part}.scale"][:, None] if precision == "int8" else 1)
            for part in ("left", "right")
        )
        found = torch.diagonal(u.T @ (left @ right) @ v)
        # 8 bits of the greatest leak into the least, but no more than each factor's own rounding
        torch.testing.assert_close(found[:3] / size[:3], torch.ones(3), rtol=0, atol=tolerance)
        norms = torch.linalg.vector_norm(right, dim=1)
        torch.testing.assert_close(norms / size, torch.ones(4), rtol=0, atol=tolerance)


def test_the_layout_is_the_documented_one():
    first, gate = "encoder.layers.0.expert.fc1.weight", "encoder.layers.0.gate.inner.weight"
    found = {
        setting: {
            n: (list(t.shape), t.dtype) for n, t in pack(STATE, SHARED, *setting).items() if first in n or n == gate
        }
        for setting in SETTINGS
    }
    half, full = {gate: ([64, WIDTH], torch.float16)}, {gate: ([64, WIDTH], torch.float32)}
    assert found == {
        ("fp16", None): half | {first: ([INNER, WIDTH], torch.float16)},
        ("fp32", None): full | {first: ([INNER, WIDTH], torch.float32)},
        ("int8", None): half
        | {f"{first}.delta": ([INNER, WIDTH], torch.int8), f"{first}.delta.scale": ([INNER], torch.float32)},
        ("fp16", 5): half
        | {f"{first}.left": ([INNER, 5], torch.float16), f"{first}.right": ([5, WIDTH], torch.float16)},
        ("fp32", 5): full
        | {f"{first}.left": ([INNER, 5], torch.float32), f"{first}.right": ([5, WIDTH], torch.float32)},
        ("int8", 5): half
        | {f"{first}.left": ([INNER, 5], torch.int8), f"{first}.left.scale": ([INNER], torch.float32)}
        | {f"{first}.right": ([5, WIDTH], torch.int8), f"{first}.right.scale": ([5], torch.float32)},
    }


# What is refused


@pytest.mark.parametrize(("precision", "rank"), [("int8", None), ("fp16", 4)])
def test_a_difference_from_rounded_weights_is_refused(precision, rank):
    rounded = {name: tensor.bfloat16() for name, tensor in SHARED.items()}
    with pytest.raises(PipelineError, match=r"fc\d.weight' has been rounded to torch.bfloat16: expected float32"):
        pack(STATE, rounded, precision, rank)
    assert torch.equal(pack(STATE, rounded)[MATRICES[0]], STATE[MATRICES[0]].half())  # values depend on nothing else


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_values_that_cannot_be_stored_are_refused_before_anything_is_written(value, tmp_path):
    broken = STATE | {"decoder.layers.1.gate.inner.bias": torch.full((64,), value)}
    with pytest.raises(
        PipelineError, match="'decoder.layers.1.gate.inner.bias' has values that are not finite in fp16"
    ):
        write_expert(tmp_path, "cs", broken, SHARED, BASE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("precision", "rank", "text"),
    [
        ("int4", None, "precision is 'int4', expected one of fp16, fp32, int8"),
        (["fp16"], None, r"precision is \['fp16'\]"),
        ("fp16", 0, "rank is 0, expected 1 to 32"),
        ("fp16", 33, "rank is 33, expected 1 to 32"),
        ("fp16", True, "rank is True"),
        ("fp16", "5", "rank is '5'"),
        ("fp16", 5, "fc1.weight' is not expected"),
        ("fp16", None, "fc1.weight' is missing"),
        ("int8", 4, r"fc1.weight.left' has shape \[48, 5\], expected \[48, 4\]"),
        ("fp32", 5, "fc1.bias' is of type float16, expected float32"),
    ],
)
def test_a_configuration_that_says_something_else(precision, rank, text, tmp_path):
    stored = ("int8", 5) if precision == "int8" or text.endswith("missing") else ("fp16", None)
    write_expert(tmp_path, "cs", STATE, SHARED, BASE, *stored)
    config = json.loads((tmp_path / METADATA).read_text())
    (tmp_path / METADATA).write_text(json.dumps({**config, "precision": precision, "rank": rank}))
    with pytest.raises(PipelineError, match=text) as caught:
        read_expert(tmp_path, read_expert_metadata(tmp_path), SHARED)
    assert str(caught.value).startswith(str(tmp_path))


NAME = "encoder.layers.0.expert.fc1.weight"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop(f"{NAME}.right"), f"'{NAME}.right' is missing"),
        (lambda t: t.pop(f"{NAME}.left.scale"), f"'{NAME}.left.scale' is missing"),
        (lambda t: t.update({f"{NAME}.delta": torch.ones(2)}), f"'{NAME}.delta' is not expected"),
        (lambda t: t.update({"zzz": torch.ones(2)}), "'zzz' is not expected"),
        (
            lambda t: t.update({f"{NAME}.right": t[f"{NAME}.right"].T.contiguous()}),
            r"has shape \[32, 5\], expected \[5, 32\]",
        ),
        (lambda t: t.update({f"{NAME}.left": t[f"{NAME}.left"].float()}), "is of type float32, expected int8"),
        (lambda t: t[f"{NAME}.left.scale"].fill_(torch.nan), f"'{NAME}' has values that are not finite"),
        (lambda t: t[f"{NAME}.left.scale"].fill_(3e38), f"'{NAME}' has values that are not finite"),
        (
            lambda t: t["decoder.layers.1.gate.outer.weight"].fill_(torch.inf),
            "'decoder.layers.1.gate.outer.weight' has",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, text, tmp_path):
    write_expert(tmp_path, "cs", STATE, SHARED, BASE, "int8", 5)
    stored = load_file(tmp_path / WEIGHTS)
    change(stored)
    save_file(stored, tmp_path / WEIGHTS)
    with pytest.raises(PipelineError, match=text) as caught:
        read_expert(tmp_path, read_expert_metadata(tmp_path), SHARED)
    assert str(caught.value).startswith(f"{tmp_path}: ")


# In a model


@pytest.fixture
def whisper(tiny_whisper: Path) -> Whisper:
    return load_whisper(str(tiny_whisper), 1)


def student_of(whisper: Whisper) -> Student:
    student = Student.from_whisper(whisper.model)
    student.add_expert("cs")
    random = torch.Generator().manual_seed(2)
    for parameter in student.expert_state("cs").values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
    return student


@pytest.mark.parametrize(("precision", "rank"), SETTINGS)
def test_a_student_is_saved_and_loaded(precision, rank, whisper, tiny_whisper, tmp_path):
    plain = shared_of(whisper.model)
    student = student_of(whisper)
    save_expert(student, "cs", tmp_path, BASE, precision, rank)
    other = Student.from_whisper(load_whisper(str(tiny_whisper), 1).model)
    assert load_without_base_check(other, tmp_path) == "cs"
    wanted = unpack(pack(student.expert_state("cs"), plain, precision, rank), plain, precision, rank, "here")
    found = other.expert_state("cs")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    config = json.loads((tmp_path / METADATA).read_text())
    assert (config["precision"], config["rank"], config["format_version"]) == (precision, rank, 2)
    assert config["parameters"] == sum(tensor.numel() for tensor in found.values())
    with pytest.raises(PipelineError, match="holds experts for cs: expected one of them, found pl"):
        other.load_expert(tmp_path, "polish")


def test_what_is_refused_is_not_in_the_model(whisper, tmp_path):
    student = student_of(whisper)
    save_expert(student, "cs", tmp_path, BASE, "int8", 3)
    student.drop_expert("cs")
    stored = load_file(tmp_path / WEIGHTS)
    stored["decoder.layers.1.expert.fc2.weight.right.scale"][0] = torch.nan
    save_file(stored, tmp_path / WEIGHTS)
    with pytest.raises(PipelineError, match="'decoder.layers.1.expert.fc2.weight' has values that are not finite"):
        load_without_base_check(student, tmp_path)
    assert student.languages == []


def test_version_1_is_read(whisper, tiny_whisper, tmp_path):
    """Written by hand as version 1 had it: float16 values, and no word on precision."""
    state = {name: tensor.half().contiguous() for name, tensor in student_of(whisper).expert_state("cs").items()}
    save_file(state, tmp_path / WEIGHTS)
    (tmp_path / METADATA).write_text(json.dumps({"format_version": 1, "language": "cs", "parameters": 1, **BASE}))
    student = Student.from_whisper(load_whisper(str(tiny_whisper), 1).model)
    assert load_without_base_check(student, tmp_path) == "cs"
    assert all(torch.equal(parameter, state[name].float()) for name, parameter in student.expert_state("cs").items())


def test_a_folder_that_holds_no_expert(whisper, tmp_path):
    with pytest.raises(PipelineError, match="experts.json: no such file"):
        Student.from_whisper(whisper.model).load_expert(tmp_path)
