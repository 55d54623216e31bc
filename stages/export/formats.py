"""The formats, one row each. Whatever lists, names or tells formats apart reads this table."""

import importlib.util
from dataclasses import dataclass

from cache.errors import PipelineError, how_to_install

PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class Format:
    name: str  # as the command line has it
    summary: str  # in --help
    library: str  # as the hub's metadata names it
    precisions: tuple[str, ...]  # that the format knows, its default first
    needs: tuple[str, ...] = ()  # modules of the extra `export` that write it
    plain: bool = True  # made of a plain Whisper, for which adapters are merged and experts folded


WHISPER = Format("whisper", "a plain Whisper folder of transformers", "transformers", ("fp32", "fp16"))
CTRANSLATE2 = Format("ctranslate2", "for faster-whisper", "ctranslate2", ("fp32", "fp16"), ("ctranslate2",))
PEFT = Format("peft", "an adapter folder of PEFT", "peft", ("fp32", "fp16"), plain=False)
GGML = Format("ggml", "a file for whisper.cpp", "whisper.cpp", ("fp16",))
ONNX = Format(
    "onnx",
    "two graphs for ONNX Runtime, experts with their gates in them",
    "onnx",
    ("fp32",),
    ("onnx", "onnxscript"),
    False,
)

FORMATS = {one.name: one for one in (WHISPER, CTRANSLATE2, PEFT, GGML, ONNX)}


def described() -> str:
    """One line for --help: each format's name and summary."""
    return "; ".join(f"{one.name}: {one.summary}" for one in FORMATS.values())


def check_installed(chosen: Format) -> None:
    """Raises PipelineError where a module that writes the format is not installed."""
    if missing := [name for name in chosen.needs if importlib.util.find_spec(name) is None]:
        raise PipelineError(
            f"format '{chosen.name}': {', '.join(missing)} is not installed: {how_to_install('export')}"
        )
