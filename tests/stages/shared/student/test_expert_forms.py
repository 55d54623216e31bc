"""Experts of low rank against PEFT's LoRA, experts without gates, and gates of whole layers."""

import copy
import json
from pathlib import Path

import pytest
import torch
from makers import make_tiny_whisper
from safetensors.torch import load_file

from cache.errors import PipelineError
from stages.shared.student.clsr import FeedForward, Gate, RoutedFeedForward
from stages.shared.student.config import DistilWhisperConfig
from stages.shared.student.experts import METADATA, WEIGHTS, read_expert, read_expert_metadata, shared_of
from stages.shared.student.forms import FULL_EXPERT, ExpertForm
from stages.shared.student.loading import load_model
from stages.shared.student.lora import add_lora
from stages.shared.student.low_rank import LowRankLinear
from stages.shared.student.model import DistilWhisperForConditionalGeneration as Student
from stages.shared.student.packing import pack
from stages.shared.student.routing import Router, Routing
from stages.shared.whisper.models import Whisper, load_whisper

LIKE_LORA = ExpertForm(rank=3, gates="none")
FORMS = [LIKE_LORA, ExpertForm(rank=3), ExpertForm(gates="layer"), ExpertForm(gates="none"), ExpertForm(3, "layer")]
EACH = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.rank}-{form.gates}")


@pytest.fixture
def whisper(tiny_whisper: Path) -> Whisper:
    return load_whisper(str(tiny_whisper), 1)


def batch(rows: int = 2) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 256, (rows, 7), generator=random)
    return {"input_features": torch.randn(rows, 80, 100, generator=random), "decoder_input_ids": ids}


@torch.no_grad()
def logits(model, rows: int = 2, **options) -> torch.Tensor:
    return model(**batch(rows), use_cache=False, **options).logits


@torch.no_grad()
def disturb(student: Student, language: str = "cs", seed: int = 2) -> Student:
    random = torch.Generator().manual_seed(seed)
    for parameter in student.expert_state(language).values():
        if parameter.requires_grad:
            parameter += 0.3 * torch.randn(parameter.shape, generator=random)
    return student.eval()


def test_an_expert_of_low_rank_is_lora_and_biases(tiny_whisper):
    """From the same factors, with the same dropout: the same loss and gradients as PEFT's LoRA, to the last bit."""
    student = Student.from_whisper(
        load_whisper(str(tiny_whisper), 1).model, ["cs"], LIKE_LORA, expert_dropout=0, lora_dropout=0.4
    )
    disturb(student)
    adapter, theirs = add_lora(load_whisper(str(tiny_whisper), 1), rank=3, alpha=3, dropout=0.4)
    ours, pairs = student.expert_state("cs"), {}
    for name, parameter in theirs.items():
        place = name.removeprefix("model.").replace(".fc", ".expert.fc").replace(".default.weight", "")
        own = place.replace("lora_A", "weight.right").replace("lora_B", "weight.left")
        parameter.data.copy_(ours[own])
        pairs[own] = parameter
    biases = {name for name in ours if name.endswith(".bias")}
    assert pairs.keys() | biases == ours.keys()
    for name in biases:
        ours[name].data.copy_(student.shared_state()[name])
    for model in (student, adapter):
        model.train()
        torch.manual_seed(5)
        with student.route("cs"):
            loss = model(**batch(), use_cache=False).logits.square().mean()
        loss.backward()
    for name, parameter in pairs.items():
        assert parameter.grad.any()
        torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-5, atol=1e-8, msg=name)
    assert all(ours[name].grad.any() for name in biases)


def test_factors_begin_as_loras():
    torch.manual_seed(0)
    layer = LowRankLinear(torch.nn.Linear(400, 30), 8, 0.0)
    assert not layer.weight["left"].any()
    torch.manual_seed(0)
    torch.nn.Linear(400, 30)
    expected = torch.empty(8, 400)
    torch.nn.init.kaiming_uniform_(expected, a=5**0.5)
    assert torch.equal(layer.weight["right"], expected)


@EACH
def test_a_fresh_expert_computes_what_the_base_does(form, whisper):
    expected = logits(whisper.model)
    student = Student.from_whisper(whisper.model, ["cs"], form).eval()
    torch.testing.assert_close(logits(student, language="cs"), expected, atol=1e-6, rtol=0)
    assert torch.equal(logits(disturb(student)), expected)
    assert not torch.allclose(logits(student, language="cs"), expected, atol=1e-3)
    assert torch.equal(logits(student, language="nl"), expected)


def test_the_frozen_weights_are_not_copied(whisper):
    student = Student.from_whisper(whisper.model, ["cs"], LIKE_LORA)
    sizes = {name: parameter.numel() for name, parameter in student.expert_state("cs").items()}
    assert sum(sizes.values()) == 4 * (2 * 3 * (32 + 64) + 32 + 64)
    for routed in student.routed.values():
        assert routed.experts["cs"].fc1._frozen[0] is routed.shared.fc1
    stored = [name for name in student.state_dict() if ".experts." in name]
    assert len(stored) == len(sizes)
    assert student.base_parameters().keys() == dict(whisper.model.named_parameters()).keys()
    twin = copy.deepcopy(student)
    assert twin.routed["encoder.layers.0"].experts["cs"].fc1._frozen[0] is twin.routed["encoder.layers.0"].shared.fc1


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-3), ("fp32", 1e-6), ("int8", 2e-2)])
@EACH
def test_saved_and_loaded(form, precision, tolerance, whisper, tiny_whisper, tmp_path):
    """The factors themselves are stored, and merged where they are loaded: a token costs one block."""
    student = disturb(Student.from_whisper(whisper.model, ["cs"], form))
    student.save_expert(tmp_path / "expert", "cs", precision)
    stored = load_file(tmp_path / "expert" / WEIGHTS)
    if precision == "fp16":
        assert stored.keys() == student.expert_state("cs").keys()
        assert all(torch.equal(stored[name], tensor.half()) for name, tensor in student.expert_state("cs").items())
    facts = json.loads((tmp_path / "expert" / METADATA).read_text())
    assert (facts["rank"], facts["gates"]) == (form.rank, form.gates)
    other = Student.from_whisper(load_whisper(str(tiny_whisper), 1).model).eval()
    other.load_expert(tmp_path / "expert")
    assert type(other.routed["encoder.layers.0"].experts["cs"].fc1) is torch.nn.Linear
    assert facts["parameters"] == sum(parameter.numel() for parameter in other.expert_state("cs").values())
    assert any(".gate." in name for name in other.expert_state("cs")) == (form.gates != "none")
    if form.gates == "none" or form.gates == "layer":
        found, wanted = logits(other, language="cs"), logits(student, language="cs")
        torch.testing.assert_close(found, wanted, atol=20 * tolerance, rtol=20 * tolerance)
    loaded = load_model(str(tmp_path / "expert")).student
    assert torch.equal(logits(loaded, language="cs"), logits(other, language="cs"))


def test_factors_are_stored_beside_rounded_weights(whisper, tiny_whisper, tmp_path):
    """A difference could not be computed from them: training in bf16 rounds the frozen weights."""
    student = disturb(Student.from_whisper(whisper.model, ["cs"], LIKE_LORA))
    shared = {name: tensor.bfloat16() for name, tensor in student.shared_state().items()}
    assert pack(student.expert_state("cs"), shared, "fp16", 3).keys() == student.expert_state("cs").keys()
    with pytest.raises(PipelineError, match="has been rounded"):
        pack({**shared_of(load_whisper(str(tiny_whisper), 1).model)}, shared, "fp16", 3)


def test_another_rank_is_decomposed(whisper, tmp_path):
    """Of factors of rank 3 no rank above 3 loses anything."""
    student = disturb(Student.from_whisper(whisper.model, ["cs"], LIKE_LORA))
    shared, states = student.shared_state(), {}
    for rank in (None, 3, 5):
        student.save_expert(tmp_path / str(rank), "cs", "fp32", rank)
        metadata = read_expert_metadata(tmp_path / str(rank))
        assert metadata["rank"] == (rank or 3)
        states[rank] = read_expert(tmp_path / str(rank), metadata, shared).state
    for rank in (3, 5):
        assert states[rank].keys() == states[None].keys()
        for name, tensor in states[None].items():
            torch.testing.assert_close(states[rank][name], tensor, atol=1e-5, rtol=1e-5)


@EACH
def test_the_whole_model_is_saved_and_loaded(form, whisper, tmp_path):
    student = disturb(Student.from_whisper(whisper.model, ["cs"], form))
    student.add_expert("pl")
    student.save_pretrained(tmp_path)
    loaded = Student.from_pretrained(tmp_path).eval()
    for language in ("cs", "pl", "nl"):
        one, other = (logits(model, language=language) for model in (loaded, student))
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    student.drop_expert("cs")
    assert (student.languages, student.config.expert_ranks, student.config.ungated) == (["pl"], None, None)


# Gates


def test_without_gates_every_token_takes_the_expert(whisper):
    """In training as well: no noise, no skipped layer, the expert's dropout alone."""
    student = Student.from_whisper(
        whisper.model, ["cs", "pl"], ExpertForm(gates="none"), skip_gate=1.0, expert_dropout=0.0
    )
    disturb(student)
    with student.route("cs") as hard:
        expected = logits(student)
    student.train()
    before = torch.get_rng_state()
    with student.route("cs", noise=5.0) as routing:
        assert torch.equal(logits(student), expected)
    assert torch.equal(torch.get_rng_state(), before)
    gates = [gate for one in (hard, routing) for calls in one.gates.values() for gate in calls]
    assert len(gates) == 8
    assert all(gate.all() and gate.dim() == 2 for gate in gates)
    for routed in student.routed.values():
        routed.expert_dropout.p = 0.5
    with student.route("cs"):
        assert not torch.equal(logits(student), expected)


@pytest.mark.parametrize("training", [False, True])
def test_experts_with_and_without_gates_serve_one_batch(training, whisper):
    student = Student.from_whisper(
        whisper.model, ["cs"], ExpertForm(gates="none"), skip_gate=1.0 if training else 0.2, expert_dropout=0.0
    )
    student.add_expert("pl")
    for number, code in enumerate(("cs", "pl")):
        disturb(student, code, number)
    alone = {code: logits(student, 4, language=code) for code in ("cs", "pl", "nl")}
    student.train(training)
    asked = ["cs", "pl", "nl", "cs"]
    mixed = logits(student, 4, language=asked)
    for row, code in enumerate(asked):
        # a training step that skips the gated expert does not skip the one without gates
        wanted = alone["nl" if training and code == "pl" else code][row]
        torch.testing.assert_close(mixed[row], wanted, atol=1e-5, rtol=1e-5)


def test_a_gate_of_a_layer_decides_for_all_its_tokens(whisper):
    student = Student.from_whisper(whisper.model, ["cs"], ExpertForm(gates="layer"), skip_gate=0.0, expert_dropout=0.0)
    trained = {name for name, parameter in student.expert_state("cs").items() if parameter.requires_grad}
    assert {name.split(".gate.")[1] for name in trained if ".gate." in name} == {"outer.weight"}
    sums = {"encoder.layers.0": 0.5, "encoder.layers.1": -0.25, "decoder.layers.0": -0.5, "decoder.layers.1": 0.0}
    for name, total in sums.items():
        student.routed[name].gates["cs"].outer.weight.data.fill_(total / 64)
    student.train()
    with student.route("cs") as routing:
        student(**batch(), use_cache=False).logits.square().mean().backward()
    for name, (gate_BT,) in routing.gates.items():
        torch.testing.assert_close(gate_BT, torch.tensor(sums[name]).sigmoid().expand(gate_BT.shape))
        assert student.routed[name].gates["cs"].outer.weight.grad is not None
    student.eval()
    with student.route("cs") as routing:
        logits(student)
    for name, (gate_BT,) in routing.gates.items():
        assert gate_BT.all() if sums[name] >= 0 else not gate_BT.any()


def test_a_rank_that_no_matrix_has_is_refused(whisper):
    student = Student.from_whisper(whisper.model)
    with pytest.raises(PipelineError, match="rank is 33, expected 1 to 32"):
        student.add_expert("cs", ExpertForm(rank=33))
    assert student.languages == []


@pytest.mark.parametrize(
    ("gates", "text"),
    [("none", r"gate\..*is not expected"), ("some", "gates is 'some', expected one of token, layer, none")],
)
def test_gates_that_are_not_what_the_metadata_says(gates, text, tiny_whisper, tmp_path):
    whisper = load_whisper(str(make_tiny_whisper(tmp_path / "base")), 1)
    Student.from_whisper(whisper.model, ["cs"]).save_expert(tmp_path / "expert", "cs")
    facts = json.loads((tmp_path / "expert" / METADATA).read_text())
    (tmp_path / "expert" / METADATA).write_text(json.dumps({**facts, "gates": gates}))
    with pytest.raises(PipelineError, match=text):
        Student.from_whisper(whisper.model).load_expert(tmp_path / "expert")


# Gates that begin open, and gates that are trained as they run


@pytest.mark.parametrize("start", [0.95, 0.2])
@pytest.mark.parametrize("of_layer", [True, False])
def test_a_gate_begins_where_it_is_told(start, of_layer):
    """Exactly for a gate of a layer; for one of tokens as far as W1 x is small. Both learn from their first step."""
    torch.manual_seed(0)
    gate = Gate(512, 64, 0.1, of_layer, start).eval()
    x = torch.randn(40, 512)
    values = torch.sigmoid(gate(x))
    torch.testing.assert_close(values, torch.full_like(values, start), atol=1e-6 if of_layer else 0.02, rtol=0)
    gate(x).sum().backward()
    assert gate.outer.weight.grad.abs().min() > 0
    assert (gate.inner.weight.grad is None) == of_layer


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_hard_training_computes_what_inference_does(noise):
    """The value is that of one block or the other; the gradient of the gates is the sigmoid's."""
    found = {}
    for training in ("soft", "hard"):
        torch.manual_seed(0)
        shared = FeedForward(torch.nn.Linear(8, 16), torch.nn.Linear(16, 8), torch.nn.functional.gelu)
        options = DistilWhisperConfig(skip_gate=0.0, expert_dropout=0.0, gate_dropout=0.0, gate_training=training)
        routed = RoutedFeedForward("encoder.layers.0", shared, Router(), options)
        routed.add_expert("cs", FULL_EXPERT)
        with torch.no_grad():
            for parameter in [*routed.experts.parameters(), *routed.gates.parameters()]:
                parameter += 0.5 * torch.randn(parameter.shape)
        x = torch.randn(2, 25, 8)
        with routed.router.use(Routing("cs", noise=noise)) as routing:
            y = routed.train()(x)
            (gate_BT,) = routing.gates["encoder.layers.0"]
            y.square().sum().backward()
        found[training] = routed, x, y, gate_BT
    (_, x, _, soft_BT), (hard, same, y, hard_BT) = found["soft"], found["hard"]
    assert torch.equal(x, same)
    chosen = soft_BT >= 0.5
    assert torch.equal(hard_BT.detach(), chosen.float())
    assert 0.05 < chosen.float().mean() < 0.95
    expected = torch.where(chosen[..., None], hard.experts["cs"](x), hard.shared(x))
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-5)
    if not noise:
        with hard.router.use(Routing("cs")):
            torch.testing.assert_close(hard.eval()(x), y, atol=1e-6, rtol=1e-5)
    # dL/dG = dL/dy (expert - shared) g (1 - g), with the g that was drawn
    slope = soft_BT * (1 - soft_BT) * (2 * y * (hard.experts["cs"](x) - hard.shared(x))).sum(-1)
    gate = hard.gates["cs"]
    inner = torch.relu(gate.inner(x))
    torch.testing.assert_close(gate.outer.weight.grad[0], (slope[..., None] * inner).sum((0, 1)), atol=1e-4, rtol=1e-4)


# Experts in some layers


@pytest.mark.parametrize("gates", ["token", "none"])
def test_layers_without_an_expert_are_the_base_s_and_store_nothing(gates, whisper, tiny_whisper, tmp_path):
    layers = ("encoder.layers.1", "decoder.layers.0")
    student = disturb(Student.from_whisper(whisper.model, ["cs"], ExpertForm(3, gates, layers=layers)))
    with student.route("cs") as routing:
        logits(student)
    assert {name for name, (gate,) in routing.gates.items() if gate.any()} <= set(layers)
    assert list(routing.gates) == list(student.routed)
    student.save_expert(tmp_path / "expert", "cs", "fp32")
    stored = load_file(tmp_path / "expert" / WEIGHTS)
    assert {".".join(name.split(".")[:3]) for name in stored} == set(layers)
    facts = json.loads((tmp_path / "expert" / METADATA).read_text())
    assert facts["layers"] == list(layers)
    other = Student.from_whisper(load_whisper(str(tiny_whisper), 1).model).eval()
    other.load_expert(tmp_path / "expert")
    assert facts["parameters"] == sum(parameter.numel() for parameter in other.expert_state("cs").values())
    assert [name for name, routed in other.routed.items() if "cs" in routed.experts] == list(layers)
    student.save_pretrained(tmp_path / "whole")
    again = Student.from_pretrained(tmp_path / "whole").eval()
    for model in (other, again):
        torch.testing.assert_close(logits(model, language="cs"), logits(student, language="cs"), atol=1e-5, rtol=1e-5)
    other.drop_expert("cs")
    assert (other.languages, other.config.expert_layers) == ([], None)
    for change, text in (
        (["encoder.layers.9"], "encoder.layers.9, a layer that this model does not have"),
        (["encoder.layers.1"], "'decoder.layers.0.* is not expected"),
        (None, "is missing"),
        ("encoder", "layers is 'encoder', expected names of layers"),
    ):
        (tmp_path / "expert" / METADATA).write_text(json.dumps({**facts, "layers": change}))
        with pytest.raises(PipelineError, match=text):
            other.load_expert(tmp_path / "expert")
