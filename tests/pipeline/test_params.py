"""Which setting counts: the defaults, the file, the file's changes for a method, `--set`, and flags, in this order."""

import pytest
import torch
from sources import ROOT

from pipeline.cli import cli
from stages.shared.whisper.device import compute_dtype, fast_products, round_weights
from stages.shared.whisper.models import load_whisper
from stages.train_student.processes import Processes
from stages.train_student.settings import TrainSettings

PUBLISHED = ROOT / "presets/published.yaml"


def trained_with(monkeypatch: pytest.MonkeyPatch, method: str, *arguments: str, flags: tuple[str, ...] = ()):
    """The settings that a method's training would be given."""
    seen: list[TrainSettings] = []
    monkeypatch.setattr("pipeline.commands.train.joined", lambda params: Processes())
    monkeypatch.setattr("pipeline.commands.train.run_training", lambda *given: seen.append(given[5]))
    cli.main(
        [*arguments, "train-student", "--lang", "ca", "--method", method, *flags],
        prog_name="pipeline",
        standalone_mode=False,
    )
    return seen[0]


@pytest.mark.parametrize(
    ("method", "arguments", "flags", "expected"),
    [
        ("lora", [], [], {"betas": (0.9, 0.999)}),
        ("lora", ["train.betas=[0.5,0.6]"], [], {"betas": (0.5, 0.6)}),
        ("clsr", ["train.ce_weight=0.7"], [], {"ce_weight": 0.7}),
        ("clsr", ["train.epochs=2"], [], {"ce_weight": 1.0, "epochs": 2}),
        ("clsr", ["train={ce_weight: 0.7, epochs: 1}"], [], {"ce_weight": 0.7, "epochs": 1}),
        ("lora", ["methods.from_transcripts.lora.betas=[0.1,0.2]"], [], {"betas": (0.1, 0.2)}),
        (
            "lora",
            ["methods.from_transcripts.lora.betas=[0.1,0.2]", "train.betas=[0.5,0.6]"],
            [],
            {"betas": (0.1, 0.2)},
        ),
        ("lora", ["train.betas=[0.5,0.6]", "train.seed=3"], ["--seed", "4"], {"betas": (0.5, 0.6), "seed": 4}),
        ("lora", ["methods.from_transcripts.lora.seed=3"], ["--seed", "4"], {"seed": 4}),
    ],
)
def test_what_is_set_counts_more_than_the_file(method, arguments, flags, expected, monkeypatch):
    given = [part for text in arguments for part in ("--set", text)]
    settings = trained_with(monkeypatch, method, "--params", str(PUBLISHED), *given, flags=tuple(flags))
    assert {name: getattr(settings, name) for name in expected} == expected


# Precision


@pytest.mark.parametrize(
    ("native", "training", "expected"),
    [
        (True, False, torch.bfloat16),
        (True, True, torch.bfloat16),
        (False, False, torch.float16),
        (False, True, torch.float32),
    ],
)
def test_bfloat16_is_taken_where_the_card_has_it(native, training, expected, monkeypatch):
    """A card of before 2020 (V100, T4) emulates it, and says that it is supported."""
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert compute_dtype("auto", torch.device("cuda"), training) == expected
    assert compute_dtype("fp16", torch.device("cuda")) == torch.float16


def test_training_in_float16_is_refused():
    with pytest.raises(ValueError, match="dtype"):
        TrainSettings(dtype="fp16")


def test_float16_rounds_weights_and_leaves_precisions_as_they_were(tiny_whisper):
    """And decodes, also on a CPU."""
    from stages.shared.whisper.decode import Transcriber

    whisper = load_whisper(str(tiny_whisper), 1)
    expected = [text.tokens for text in Transcriber(whisper, "cs", torch.float32)([torch.zeros(8000).numpy()])]
    round_weights(whisper.model.requires_grad_(False), torch.float16)
    assert whisper.model.model.encoder.layers[0].fc1.weight.dtype == torch.float16
    backends = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    with fast_products(torch.float16):
        assert [backend.fp32_precision for backend in backends] == [before[0], "tf32"]
        found = [text.tokens for text in Transcriber(whisper, "cs", torch.float16)([torch.zeros(8000).numpy()])]
    assert [backend.fp32_precision for backend in backends] == before
    assert len(found) == len(expected) == 1 and found[0][:3] == expected[0][:3]
