"""Exports of a model on whisper-base's real weights, on real Czech speech, in the programs that they are for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from runtimes import (
    Says,
    ctranslate2_says,
    faster_whisper_says,
    onnx_says,
    transformers_says,
    whisper_cpp_says,
)

from cache.shards import ShardReader
from stages.export.fold import fixed_layers
from stages.export.formats import FORMATS
from stages.export.run import Export, export
from stages.prepare.corpora.fish_fillets import FishFilletsSettings
from stages.prepare.run import prepare
from stages.prepare.settings import PrepareSettings
from stages.shared.audio import decode_flac
from stages.shared.student.forms import ExpertForm
from stages.shared.student.loading import load_model, locate
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.device import use_all_cores
from stages.shared.whisper.models import load_whisper

pytestmark = pytest.mark.real

WINDOW_S = 4
CLIPS = 40
SHARE = 0.99  # of the texts that are ours, in float32


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    out = tmp_path_factory.mktemp("utterances") / "cs"
    prepare(FishFilletsSettings(corpus="fish-fillets"), PrepareSettings(), "cs", out, max_seconds=30)
    reader = ShardReader(out / "test", "utterances")
    rows = [row for shard in range(len(reader.shards)) for row in reader.read(shard)]
    short = [row for row in rows if row["seconds"] <= WINDOW_S]
    return [decode_flac(row["audio"]) for row in short[:: len(short) // CLIPS][:CLIPS]]


def make_experts(folder: Path, form: ExpertForm) -> Path:
    """Experts that are a little off the base; gates, if there are any, send some tokens to either block."""
    base = load_whisper("openai/whisper-base", WINDOW_S)
    student = DistilWhisperForConditionalGeneration.from_whisper(base.model, ["cs"], form)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in student.expert_state("cs").items():
            noise = torch.randn(parameter.shape, generator=random)
            parameter += (0.05 if ".gate." in name else 0.02 * float(parameter.std()) + 1e-3) * noise
    student.config.name_or_path = "openai/whisper-base"
    student.save_expert(folder, "cs", "fp32")
    return folder


@pytest.fixture(scope="module")
def ungated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experts(tmp_path_factory.mktemp("ungated"), ExpertForm(8, "none"))


def check(says: Says, source: Path, clips: list[np.ndarray], share: float = SHARE) -> None:
    """Clips on which our text ends in a loop are left out: it is cut here, and goes on elsewhere."""
    use_all_cores()
    found = Transcriber(load_model(str(source)).whisper, "cs", torch.float32)(clips)
    kept = [(clip, one.text) for clip, one in zip(clips, found, strict=True) if not one.looped]
    assert len(kept) >= 0.8 * len(clips)
    theirs = says([clip for clip, _ in kept])
    different = [(one, ours) for one, (_, ours) in zip(theirs, kept, strict=True) if one != ours]
    assert len(different) <= (1 - share) * len(kept), different


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("whisper", transformers_says),
        ("ctranslate2", ctranslate2_says),
        ("ctranslate2", faster_whisper_says),
        ("onnx", onnx_says),
    ],
)
def test_the_text_is_ours(name: str, says: Callable[..., Says], ungated: Path, clips, tmp_path):
    for module in FORMATS[name].needs:
        pytest.importorskip(module)
    export(locate(str(ungated)), tmp_path / name, Export(FORMATS[name], "fp32", ["cs"]))
    check(says(tmp_path / name, "cs", WINDOW_S), ungated, clips)


def test_the_gates_of_real_experts_route_in_onnx(clips, tmp_path):
    for module in FORMATS["onnx"].needs:
        pytest.importorskip(module)
    gated = make_experts(tmp_path / "gated", ExpertForm())
    student = load_model(str(gated)).student
    assert student is not None and fixed_layers(student, "cs") is None
    export(locate(str(gated)), tmp_path / "onnx", Export(FORMATS["onnx"], "fp32", ["cs"]))
    check(onnx_says(tmp_path / "onnx", "cs", WINDOW_S), gated, clips)


def test_whisper_cpp_differs_by_its_arithmetic_alone(ungated, clips, tmp_path):
    """It has float16 weights and activations and a GELU of its own: a word now and then."""
    pytest.importorskip("pywhispercpp")
    export(locate(str(ungated)), tmp_path / "ggml", Export(FORMATS["ggml"], "fp16", ["cs"]))
    check(whisper_cpp_says(tmp_path / "ggml", "cs", WINDOW_S), ungated, clips, share=0.9)
