"""Decoding with experts against decoding with a plain Whisper of the same size, greedy, the same clips and tokens.

    python tests/bench/inference.py --experts models/cs/clsr-kd --utterances data/utterances/cs/test

How long a clip takes depends on what is said in it: so both say the same number of tokens. plain: the base. routed: with
the experts. shared: the routed model with a language that has no expert.
"""

import numpy as np
import torch
from common import alternate, arguments, begin, ratio

from stages.shared.audio import decode_flac
from stages.shared.student.loading import load_model
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.student.routing import Routing
from stages.shared.whisper.device import compute_dtype, round_weights
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import Whisper

LANGUAGE, OTHER = "cs", "nl"
BATCH = 8
CPU = torch.device("cpu")


def main() -> None:
    options = dict(clips=(64, "test clips"), tokens=(24, "for each clip"), rounds=(7, "alternations"))
    args = arguments(__doc__, experts=("models/cs/clsr-kd", "a folder of experts"), **options)
    plain, shards = begin(args)
    routed = load_model(args.experts, args.window).whisper
    for whisper in (plain, routed):
        round_weights(whisper.model.requires_grad_(False), compute_dtype("auto", CPU))
    log_mel = LogMel(plain.model.config.num_mel_bins, args.window)
    clips = [decode_flac(row["audio"]) for shard in shards for row in shard][: args.clips]
    batches = [log_mel(clips[start : start + BATCH]) for start in range(0, len(clips), BATCH)]
    runs = {
        "plain": lambda: _decode(plain, batches, LANGUAGE, args.tokens),
        "routed": lambda: _decode(routed, batches, LANGUAGE, args.tokens),
        "shared": lambda: _decode(routed, batches, OTHER, args.tokens),
    }
    for run in runs.values():
        run()  # warms up
    seconds = alternate(runs, args.rounds)
    print(f"{len(clips)} clips; tokens that went through the expert: {_share(routed, batches, args.tokens)}")
    print(ratio(seconds, "routed", "plain"))
    print(ratio(seconds, "shared", "plain"))


@torch.inference_mode()
def _decode(whisper: Whisper, batches: list[torch.Tensor], language: str, tokens: int) -> None:
    dtype = compute_dtype("auto", CPU)
    for features in batches:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            options = dict(language=language, task="transcribe", min_new_tokens=tokens, max_new_tokens=tokens)
            whisper.model.generate(features, **options)


def _share(whisper: Whisper, batches: list[torch.Tensor], tokens: int) -> str:
    model = whisper.model
    assert isinstance(model, DistilWhisperForConditionalGeneration)
    with model.route(LANGUAGE) as routing:
        _decode(whisper, batches[:1], LANGUAGE, tokens)
    return ", ".join(f"{side} {100 * _mean(routing, side):.0f} %" for side in ("encoder", "decoder"))


def _mean(routing: Routing, side: str) -> float:
    gates = [
        gate.float().flatten() for layer, calls in routing.gates.items() for gate in calls if layer.startswith(side)
    ]
    return float(np.mean(torch.cat(gates).numpy()))


if __name__ == "__main__":
    main()
