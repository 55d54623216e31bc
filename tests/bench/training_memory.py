"""What training experts holds in memory beyond the frozen model, and its peak against full fine-tuning.

    python tests/bench/training_memory.py --size small --window 30

A Whisper of that size with random weights, float32, one batch of 8 clips of noise with 24 target tokens each; every
method in a process of its own, two steps. state: gradients and the optimizer's two moments, against 12 bytes for each
trained parameter. peak: of the process (Linux alone), less what it held with the model loaded.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch
from common import cpu_name
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperForConditionalGeneration

from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.whisper.window import FRAMES_PER_SECOND, cut_audio_window

SIZES = {"base": (512, 6, 8), "small": (768, 12, 12)}  # width, layers of either side, heads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--window", type=int, default=30, help="seconds")
    parser.add_argument("--method", help="used by the script's own processes")
    args = parser.parse_args()
    if args.method:
        _run(args.size, args.window, args.method)
        return
    print(f"{cpu_name()}, torch {torch.__version__}, whisper-{args.size}, window {args.window} s", flush=True)
    print("| method | trained parameters | state, MB | bytes per trained parameter | peak beyond the model, MB |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for method in ("clsr", "clsr, checkpointing", "full"):
        subprocess.run([sys.executable, *sys.argv, "--method", method], check=True)


def _run(size: str, window: int, method: str) -> None:
    torch.manual_seed(0)
    model = _model(size, window)
    if method.startswith("clsr"):
        model = DistilWhisperForConditionalGeneration.from_whisper(model, ["cs"])
    else:
        model.requires_grad_(True)
    if "checkpointing" in method:
        model.activation_checkpointing_enable()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    count, before = sum(parameter.numel() for parameter in trained), _memory("VmRSS")
    optimizer = torch.optim.AdamW(trained, 1e-5, fused=True)
    for _ in range(2):
        _step(model.train(), window)
        optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.numel() > 1]
    state = sum(tensor.nbytes for tensor in [*moments, *(p.grad for p in trained if p.grad is not None)])
    peak = (_memory("VmHWM") - before) / 1000
    print(f"| {method} | {count / 1e6:.1f} M | {state / 1e6:.0f} | {state / count:.2f} | {peak:.0f} |", flush=True)


def _step(model: torch.nn.Module, window: int) -> None:
    model.zero_grad(set_to_none=True)
    features, ids = torch.randn(8, 80, FRAMES_PER_SECOND * window), torch.randint(0, 50000, (8, 24))
    language = {"language": "cs"} if isinstance(model, DistilWhisperForConditionalGeneration) else {}
    logits = model(features, decoder_input_ids=ids, use_cache=False, **language).logits
    F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()


def _model(size: str, window: int) -> WhisperForConditionalGeneration:
    width, layers, heads = SIZES[size]
    each = {f"{side}_{what}": n for side in ("encoder", "decoder")
            for what, n in (("layers", layers), ("attention_heads", heads), ("ffn_dim", 4 * width))}  # fmt: skip
    model = WhisperForConditionalGeneration(WhisperConfig(d_model=width, **each))
    cut_audio_window(model, window)
    return model


def _memory(name: str) -> int:
    """In kB."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    main()
