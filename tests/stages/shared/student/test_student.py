"""The routed student against the base model (bit for bit where no expert is used) and against the paper's formula."""

import copy
import json
from pathlib import Path

import pytest
import torch
from makers import make_tiny_whisper, save_expert
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperForConditionalGeneration

from cache.errors import PipelineError
from stages.shared.student.clsr import FeedForward, Gate, RoutedFeedForward
from stages.shared.student.config import DistilWhisperConfig
from stages.shared.student.experts import METADATA, WEIGHTS
from stages.shared.student.forms import FULL_EXPERT, ExpertForm
from stages.shared.student.loading import load_model
from stages.shared.student.model import DistilWhisperForConditionalGeneration as Student
from stages.shared.student.routing import Router, Routing
from stages.shared.whisper.models import Whisper, load_whisper

FRAMES = 100  # a window of 1 s
LAYERS = ["encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1"]


@pytest.fixture
def whisper(tiny_whisper: Path) -> Whisper:
    return load_whisper(str(tiny_whisper), 1)


def batch() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "input_features": torch.randn(2, 80, FRAMES, generator=random),
        "decoder_input_ids": torch.randint(0, 256, (2, 7), generator=random),
    }


@torch.no_grad()
def logits(model: WhisperForConditionalGeneration) -> torch.Tensor:
    return model(**batch(), use_cache=False).logits


@torch.no_grad()
def disturb(student: Student, language: str, scale: float = 0.3) -> None:
    """Experts and gates that matter: neither copies nor zeros."""
    random = torch.Generator().manual_seed(2)
    for parameter in student.expert_state(language).values():
        parameter += scale * torch.randn(parameter.shape, generator=random)


def with_expert(whisper: Whisper, language: str = "cs") -> Student:
    student = Student.from_whisper(whisper.model, [language])
    disturb(student, language)
    return student.eval()


# The base model's output, bit for bit


def test_without_a_route_nothing_changes(whisper):
    expected = logits(whisper.model)
    student = Student.from_whisper(whisper.model)
    assert torch.equal(logits(student), expected)
    student.add_expert("cs")
    disturb(student, "cs")
    assert torch.equal(logits(student), expected)


@pytest.mark.parametrize("language", ["nl", None])
def test_a_language_without_an_expert_is_the_base(whisper, language):
    expected = logits(whisper.model)
    student = with_expert(whisper)
    with student.route(language) as routing:
        assert torch.equal(logits(student), expected)
    assert list(routing.gates) == LAYERS
    assert not any(gate.any() for calls in routing.gates.values() for gate in calls)
    with student.route("cs"):
        assert not torch.equal(logits(student), expected)


def test_no_language_survives_its_block(whisper):
    expected = logits(whisper.model)
    student = with_expert(whisper)
    with student.route("cs"):
        routed = logits(student)
        with student.route("nl"):
            assert torch.equal(logits(student), expected)
        assert torch.equal(logits(student), routed)
    assert torch.equal(logits(student), expected)
    with pytest.raises(RuntimeError, match="stop"), student.route("cs"):
        raise RuntimeError("stop")
    assert torch.equal(logits(student), expected)


def test_the_base_in_training_mode_is_the_base(whisper):
    """The shared path has no dropout and no noise of its own."""
    expected = logits(whisper.model.train())
    student = with_expert(whisper)
    student.train()
    with student.route("nl"):
        assert torch.equal(logits(student), expected)


def test_a_fresh_expert_computes_what_the_base_does(whisper):
    """A copy of the shared block, and G = 0 goes to the expert."""
    expected = logits(whisper.model)
    student = Student.from_whisper(whisper.model)
    student.add_expert("cs")
    student.eval()
    with student.route("cs") as routing:
        torch.testing.assert_close(logits(student), expected, atol=1e-6, rtol=0)
    assert all(gate.all() for calls in routing.gates.values() for gate in calls)


def test_an_expert_is_a_copy_not_the_shared_block_itself(whisper):
    expected = logits(whisper.model)
    before = {name: parameter.clone() for name, parameter in whisper.model.named_parameters()}
    student = Student.from_whisper(whisper.model)
    for parameter in student.add_expert("cs"):
        parameter.data.zero_()
    assert torch.equal(logits(student), expected)
    after = [tensor for name, tensor in student.named_parameters() if "experts" not in name and "gates" not in name]
    assert all(torch.equal(old, new) for old, new in zip(before.values(), after, strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in whisper.model.named_parameters())


def test_experts_of_two_languages_do_not_mix(whisper, tiny_whisper):
    student = with_expert(whisper)
    with student.route("cs"):
        czech = logits(student)
    student.add_expert("pl")
    disturb(student, "pl", 0.5)
    with student.route("pl"):
        assert not torch.equal(logits(student), czech)
    with student.route("cs"):
        assert torch.equal(logits(student), czech)
    with pytest.raises(PipelineError, match="already an expert for 'cs'"):
        student.add_expert("cs")


# The layer against the paper's formula


def layer(skip_gate: float = 0.0, dim: int = 8, inner: int = 16, form: ExpertForm = FULL_EXPERT) -> RoutedFeedForward:
    torch.manual_seed(0)
    shared = FeedForward(torch.nn.Linear(dim, inner), torch.nn.Linear(inner, dim), F.gelu)
    options = DistilWhisperConfig(skip_gate=skip_gate, expert_dropout=0.0)
    routed = RoutedFeedForward("encoder.layers.0", shared, Router(), options)
    routed.add_expert("cs", form)
    routed.gates["cs"].dropout.p = 0.0
    with torch.no_grad():
        for parameter in [*routed.experts.parameters(), *routed.gates.parameters()]:
            parameter += 0.5 * torch.randn(parameter.shape)
    return routed


def block(module: FeedForward, x: torch.Tensor) -> torch.Tensor:
    inner = F.gelu(x @ module.fc1.weight.T + module.fc1.bias)
    return inner @ module.fc2.weight.T + module.fc2.bias


def gate_logits(gate: Gate, x: torch.Tensor) -> torch.Tensor:
    """G = w2 . relu(W1 x + b1)"""
    return torch.relu(x @ gate.inner.weight.T + gate.inner.bias) @ gate.outer.weight[0]


def through(routed: RoutedFeedForward, x: torch.Tensor, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's output and its gate, on the route of its expert."""
    with routed.router.use(Routing("cs", noise=noise)) as routing:
        return routed(x), routing.gates["encoder.layers.0"][0]


def test_training_is_the_soft_noisy_mixture():
    routed, x, noise = layer().train(), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3)), 1.7
    torch.manual_seed(11)
    found, recorded = through(routed, x, noise)
    torch.manual_seed(11)
    drawn = torch.randn(2, 5)
    gate = torch.sigmoid(gate_logits(routed.gates["cs"], x) + noise * drawn)
    expected = gate[..., None] * block(routed.experts["cs"], x) + (1 - gate[..., None]) * block(routed.shared, x)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(recorded, gate)


def test_inference_is_one_block_or_the_other():
    routed, x = layer().eval(), torch.randn(2, 50, 8)
    chosen = gate_logits(routed.gates["cs"], x) >= 0
    assert 0.1 < chosen.float().mean() < 0.9
    expected = torch.where(chosen[..., None], block(routed.experts["cs"], x), block(routed.shared, x))
    found, recorded = through(routed, x, noise=3.0)  # noise is for training alone
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(recorded, chosen)


def test_skip_gate_gives_the_shared_block_at_its_rate():
    routed, x = layer(skip_gate=0.25).train(), torch.randn(1, 2, 8)
    shared = block(routed.shared, x)
    with torch.no_grad():
        skipped = sum(torch.allclose(through(routed, x)[0], shared, atol=1e-6) for _ in range(200))
    assert 25 < skipped < 75  # 50 expected, four standard deviations
    routed.eval()
    with torch.no_grad():
        routed.gates["cs"].outer.weight.fill_(0)
    assert not any(torch.allclose(through(routed, x)[0], shared, atol=1e-6) for _ in range(40))


def test_expert_dropout_is_on_the_experts_output_and_scaled():
    routed, x = layer().train(), torch.randn(1, 4, 8).expand(300, 4, 8)
    routed.expert_dropout.p = 0.3
    routed.gates["cs"].outer.weight.data.zero_()
    routed.gates["cs"].inner.bias.data.zero_()
    halves = 0.5 * block(routed.shared, x)
    kept = through(routed, x)[0] - halves
    expert = 0.5 * block(routed.experts["cs"], x)
    is_zero, is_scaled = kept.abs() < 1e-6, (kept - expert / 0.7).abs() < 1e-4
    assert (is_zero | is_scaled).all()
    assert is_zero.float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_a_gate_starts_as_the_paper_says():
    torch.manual_seed(0)
    gate = Gate(512, 64, 0.1)
    assert gate.inner.weight.shape == (64, 512)
    assert gate.inner.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert gate.inner.weight.mean().item() == pytest.approx(0, abs=2e-4)
    assert not gate.inner.bias.any()
    assert not gate.outer.weight.any()
    assert gate.outer.bias is None
    assert gate.dropout.p == 0.1


@pytest.mark.parametrize("bias", [-100.0, None, 100.0])
def test_each_token_goes_through_one_block_only(whisper, bias):
    """Rows that reach the expert and rows that reach the shared block, counted in the blocks, make up B * T."""
    student = with_expert(whisper)
    rows: dict[str, list[int]] = {}
    for name, routed in student.routed.items():
        if bias is not None:  # all tokens one way
            routed.gates["cs"].outer.weight.data.fill_(bias)
            routed.gates["cs"].inner.bias.data.fill_(10.0)
        for place, module in ((name, routed.experts["cs"].fc1), (name, routed.shared.fc1)):
            seen = rows.setdefault(place, [])
            module.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0].shape[:-1].numel()))
    with student.route("cs") as routing:
        logits(student)
    for name in LAYERS:
        assert sum(rows[name]) == 2 * (50 if name.startswith("encoder") else 7)
    shares = torch.cat([gate.flatten() for calls in routing.gates.values() for gate in calls]).float()
    assert shares.mean().item() == (
        pytest.approx(float(bias > 0)) if bias is not None else pytest.approx(0.5, abs=0.45)
    )


def test_gates_are_recorded_by_layer(whisper):
    student = with_expert(whisper)
    for _ in range(2):  # nothing is carried over from a block to the next
        with student.route("cs") as routing:
            logits(student)
        assert list(routing.gates) == LAYERS
        shapes = {name: [tuple(gate.shape) for gate in calls] for name, calls in routing.gates.items()}
        assert shapes == {name: [(2, 50 if name.startswith("encoder") else 7)] for name in LAYERS}


# What is trained


def test_only_experts_and_gates_take_gradients(whisper):
    student = Student.from_whisper(whisper.model, skip_gate=0.0)
    parameters = student.add_expert("cs")
    assert {id(p) for p in student.parameters() if p.requires_grad} == {id(p) for p in parameters}
    student.train()
    with student.route("cs", 1.0):
        student(**batch(), use_cache=False).logits.square().mean().backward()
    for name, parameter in student.expert_state("cs").items():
        assert parameter.grad is not None
        # w2 = 0 lets nothing through to W1 at the first step
        assert parameter.grad.any() or "gate.inner" in name, name
    assert all(p.grad is None for n, p in student.named_parameters() if ".experts." not in n and ".gates." not in n)


def test_whisper_base_gains_25_6_million_parameters():
    """12 experts of 2 * 512 * 2048 + 2560, and 12 gates of 64 * 512 + 64 + 64."""
    sizes = dict(d_model=512, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=2048, decoder_ffn_dim=2048)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(
            WhisperConfig(**sizes, encoder_attention_heads=8, decoder_attention_heads=8)
        )
    parameters = Student.from_whisper(model).add_expert("cs")
    assert (
        sum(parameter.numel() for parameter in parameters)
        == 12 * (2 * 512 * 2048 + 2560 + 64 * 512 + 128)
        == 25_591_296
    )


def test_activation_dropout_is_refused(whisper):
    whisper.model.config.activation_dropout = 0.1
    with pytest.raises(PipelineError, match=r"activation_dropout is 0\.1, expected 0"):
        Student.from_whisper(whisper.model)


# On disk


def saved(whisper: Whisper, folder: Path) -> Student:
    student = with_expert(whisper)
    metadata = {"base": whisper.model_id, "base_weights": whisper.fingerprint, "audio_window_s": whisper.audio_window_s}
    save_expert(student, "cs", folder, metadata)
    return student


def test_experts_come_back(whisper, tiny_whisper, tmp_path):
    student = saved(whisper, tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    wanted = {f"{name}.{part}" for name in LAYERS for part in ("expert.fc1.weight", "expert.fc1.bias")}
    wanted |= {f"{name}.{part}" for name in LAYERS for part in ("expert.fc2.weight", "expert.fc2.bias")}
    wanted |= {f"{name}.gate.{part}" for name in LAYERS for part in ("inner.weight", "inner.bias", "outer.weight")}
    assert stored.keys() == wanted
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert sorted(path.name for path in tmp_path.iterdir()) == [METADATA, WEIGHTS]
    for name, parameter in student.expert_state("cs").items():
        assert torch.equal(stored[name], parameter.half())
        parameter.data = parameter.data.half().float()
    loaded = load_model(str(tmp_path), 1)
    assert loaded.student is not None
    assert loaded.student.languages == ["cs"]
    with student.route("cs"), loaded.student.route("cs"):
        assert torch.equal(logits(loaded.whisper.model), logits(student))
    config = json.loads((tmp_path / METADATA).read_text())
    assert config["parameters"] == sum(tensor.numel() for tensor in stored.values())


def test_experts_of_another_base_are_refused(whisper, tmp_path):
    saved(whisper, tmp_path / "experts")
    other = make_tiny_whisper(tmp_path / "other", seed=1)
    config = json.loads((tmp_path / "experts" / METADATA).read_text())
    (tmp_path / "experts" / METADATA).write_text(json.dumps({**config, "base": str(other)}))
    with pytest.raises(PipelineError) as caught:
        load_model(str(tmp_path / "experts"))
    for part in (
        str(tmp_path / "experts"),
        str(other),
        whisper.fingerprint[:12],
        load_whisper(str(other)).fingerprint[:12],
    ):
        assert part in str(caught.value)


def test_experts_of_another_window_are_refused(whisper, tmp_path):
    saved(whisper, tmp_path)
    with pytest.raises(PipelineError, match="trained with audio_window_s 1, asked for 2"):
        load_model(str(tmp_path), 2)
    assert load_model(str(tmp_path)).whisper.audio_window_s == 1


def edited(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop("decoder.layers.1.gate.inner.bias"), "'decoder.layers.1.gate.inner.bias' is missing"),
        (lambda t: t.update({"proj_out.weight": torch.ones(1)}), "'proj_out.weight' is not expected"),
        (
            lambda t: t.update({"encoder.layers.0.expert.fc1.bias": torch.ones(3)}),
            r"'encoder.layers.0.expert.fc1.bias' has shape \[3\], expected \[64\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, text, whisper, tiny_whisper, tmp_path):
    saved(whisper, tmp_path)
    edited(tmp_path, change)
    fresh = load_whisper(str(tiny_whisper), 1)
    expected, student = logits(fresh.model), Student.from_whisper(fresh.model)
    with pytest.raises(PipelineError, match=text) as caught:
        student.load_expert(tmp_path)
    assert str(tmp_path) in str(caught.value)
    # what was refused is not in the model
    with student.route("cs"):
        assert torch.equal(logits(student), expected)
    assert student.languages == []


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        (WEIGHTS, b"\x80\x04}.", "not readable as safetensors"),
        (WEIGHTS, b"", "not readable as safetensors"),
        (METADATA, b"{", "not valid JSON"),
        (METADATA, b'{"format_version": 3}', "format_version is 3, expected 2"),
        (METADATA, b'{"format_version": 2}', METADATA),
        (METADATA, b"[]", METADATA),
    ],
)
def test_damaged_files_are_refused(name, data, text, whisper, tmp_path):
    saved(whisper, tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PipelineError, match=text):
        load_model(str(tmp_path))


# transformers


def generated(model: WhisperForConditionalGeneration, language: str) -> torch.Tensor:
    return model.generate(batch()["input_features"], language=language, task="transcribe", max_new_tokens=9)


def test_generate_goes_through_the_route(whisper):
    base = {language: generated(whisper.model, language) for language in ("cs", "nl")}
    student = with_expert(whisper)
    disturb(student, "cs", 2.0)
    with student.route("nl"):
        assert torch.equal(generated(student, "nl"), base["nl"])
    with student.route("cs") as routing:
        routed = generated(student, "cs")
    assert not torch.equal(routed, base["cs"])
    assert [gate.shape[1] for gate in routing.gates["decoder.layers.0"]][:2] == [4, 1]  # prompt, then token by token
    assert torch.equal(generated(student, "cs"), routed)  # its own argument is enough
    assert torch.equal(generated(student, "nl"), base["nl"])


def test_generate_agrees_with_a_forward_pass_without_cache(whisper):
    """Greedy decoding by hand, each step from the start: what the gates see through the cache is what they see without it."""
    student = with_expert(whisper)
    with student.route("cs"):
        tokens = generated(student, "cs")[:1]
        prompt = whisper.tokenizer.convert_tokens_to_ids(
            ["<|startoftranscript|>", "<|cs|>", "<|transcribe|>", "<|notimestamps|>"]
        )
        ids = torch.tensor([prompt])
        for _ in range(tokens.shape[1]):
            with torch.no_grad():
                output = student(batch()["input_features"][:1], decoder_input_ids=ids, use_cache=False)
            step = output.logits[:, -1]
            step[:, student.generation_config.no_timestamps_token_id] = -torch.inf
            ids = torch.cat([ids, step.argmax(-1, keepdim=True)], 1)
    assert ids[0, 4:].tolist() == tokens[0].tolist()


@pytest.mark.parametrize("training", [True, False])
def test_bf16_autocast(whisper, training):
    student = with_expert(whisper)
    student.train(training)
    for routed in student.routed.values():
        routed.skip_gate, routed.expert_dropout.p, routed.gates["cs"].dropout.p = 0.0, 0.0, 0.0
    with student.route("cs"):
        expected = logits(student)
        with torch.autocast("cpu", torch.bfloat16):
            found = logits(student)
    assert found.dtype == torch.bfloat16
    assert F.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > (0.99 if training else 0.9)


def test_the_base_is_not_changed_in_place_by_a_copy(whisper):
    """A deep copy of a student's model routes by itself."""
    student = with_expert(whisper)
    twin = copy.deepcopy(student)
    expected = logits(twin)
    with student.route("cs"):
        assert torch.equal(logits(twin), expected)
