"""What the tests of exports are made of: adapters and experts on a tiny Whisper, and what a model says."""

from pathlib import Path

import torch

from cache.shards import ShardReader
from stages.shared.audio import decode_flac
from stages.shared.student.forms import FULL_EXPERT, ExpertForm
from stages.shared.student.lora import add_lora, save_lora
from stages.shared.student.metadata import base_metadata
from stages.shared.student.model import DistilWhisperForConditionalGeneration as Student
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.models import Whisper, load_whisper

LAYERS = ("encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1")
OPEN, SHUT = 1.0, -1.0


def make_lora(base: Path, folder: Path, languages: tuple[str, ...] = ("cs",), **facts) -> Path:
    whisper = load_whisper(str(base))
    named = base_metadata(str(base), dict(whisper.model.named_parameters()), 1)
    adapter, parameters = add_lora(whisper, rank=3, alpha=6, dropout=0.0)
    random = torch.Generator().manual_seed(3)
    for parameter in parameters.values():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    save_lora(adapter, folder, {"languages": list(languages), "language_tokens": {}, **named, **facts})
    return folder


@torch.no_grad()
def make_experts(
    base: Path, folder: Path, form: ExpertForm = FULL_EXPERT, gates: dict[str, float] | None = None, noise: float = 0.1
) -> Student:
    """Writes an expert for Czech that differs from the base. gates: layer -> OPEN or SHUT, for every token alike.

    Such gates still have weights for the token, too small to change a decision.
    """
    student = Student.from_whisper(load_whisper(str(base)).model, ["cs"], form).eval()
    random = torch.Generator().manual_seed(4)
    for name, parameter in student.expert_state("cs").items():
        if ".expert." in name:
            parameter += noise * torch.randn(parameter.shape, generator=random)
    for layer, routed in student.routed.items():
        if gates and "cs" in routed.gates:
            routed.gates["cs"].inner.bias.fill_(1)
            routed.gates["cs"].outer.weight.fill_(gates[layer])
    student.config.name_or_path = str(base)
    student.save_expert(folder, "cs", "fp32")
    return student


def text_of(whisper: Whisper, clips: list) -> list[str]:
    return [one.text for one in Transcriber(whisper, "cs", torch.float32)(clips)]


def rows_of(folder: Path) -> list[dict]:
    reader = ShardReader(folder, "utterances")
    return [row for shard in range(len(reader.shards)) for row in reader.read(shard)]


def clips_of(folder: Path) -> list:
    return [decode_flac(row["audio"]) for row in rows_of(folder)]
