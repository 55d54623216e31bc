"""Folds an expert into one feed-forward block for each layer, as a plain Whisper has.

A routed layer sends each token to the expert's block or to the shared one. A fold keeps one of the two in each layer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from cache.progress import Progress, silent
from stages.shared import scoring
from stages.shared.audio import SAMPLE_RATE
from stages.shared.gate_use import GateUse
from stages.shared.scoring import Row
from stages.shared.student.clsr import RoutedFeedForward
from stages.shared.student.config import DistilWhisperConfig
from stages.shared.student.loading import LoadedModel
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.student.packing import gates_in, layers_in, merged
from stages.shared.validation import VALIDATION_BATCH, Clip
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.models import Whisper

Choice = Literal["gates", "wer", "all"]
Layers = Mapping[str, bool]  # layer, such as `decoder.layers.0` -> it keeps the expert's block
HALF = 0.5


@dataclass(frozen=True)
class Comparison:
    """The same validation utterances, by the routed model and by the folded one."""

    routed: dict[str, Any]  # what `scoring.totals` returns
    folded: dict[str, Any]
    difference: tuple[float, float, float]  # of the word error rates, folded less routed, with its 95 % interval


@dataclass(frozen=True)
class Fold:
    whisper: Whisper  # plain
    layers: Layers
    choice: Choice | None  # None: the fold is exact
    shares: Mapping[str, float]  # layer -> share of the validation tokens that took the expert; {}: not counted
    comparison: Comparison | None  # None: nothing to compare, the fold is exact


@dataclass(frozen=True)
class Decoding:
    """How the validation utterances are decoded."""

    clips: list[Clip]
    device: torch.device
    dtype: torch.dtype
    cut_loops: bool

    def rows(
        self, whisper: Whisper, language: str, tick: Callable[[int], None], use: GateUse | None = None
    ) -> list[Row]:
        """Returns the scores of each clip. tick: called with the number of clips of each batch. use: counts the gates."""
        whisper.model.to(self.device)
        transcribe, rows = Transcriber(whisper, language, self.dtype, self.cut_loops), []
        for start in range(0, len(self.clips), VALIDATION_BATCH):
            batch = self.clips[start : start + VALIDATION_BATCH]
            found, gates = transcribe.with_gates([clip for clip, _ in batch])
            decoded = [(clip, one) for (clip, _), one in zip(batch, found, strict=True) if not one.silent]
            if use:
                use.add(
                    gates, [len(clip) / SAMPLE_RATE for clip, _ in decoded], [len(one.tokens) for _, one in decoded]
                )
            for number, ((_, text), one) in enumerate(zip(batch, found, strict=True), start):
                rows.append({"id": number, **scoring.score(text, one.text, language)})
            tick(len(batch))
        return rows


def fixed_layers(student: DistilWhisperForConditionalGeneration, language: str) -> Layers | None:
    """Returns the block of each layer where it is the same for every token: without gates, or with gates of a layer.

    None: the gates look at the token.
    """
    state = student.expert_state(language)
    if gates_in(state) == "token":
        return None
    own = layers_in(state)
    return {name: name in own and _is_open(routed, language) for name, routed in student.routed.items()}


@torch.inference_mode()
def _is_open(routed: RoutedFeedForward, language: str) -> bool:
    if language not in routed.gates:
        return True
    gate: Any = routed.gates[language]
    return bool(gate(torch.zeros(1, gate.inner.in_features)) >= 0)


def fold_exactly(model: LoadedModel, language: str, layers: Layers) -> Fold:
    return Fold(_Folder(model, language).plain(layers), layers, None, {}, None)


def fold(
    model: LoadedModel, language: str, choice: Choice, decoding: Decoding, progress: Progress[str] = silent
) -> Fold:
    """Chooses the block of each layer, and compares the fold with the routed model.

    choice: "gates" keeps the block that most validation tokens took. "wer" begins there and goes once over the layers: it
    keeps the other block of a layer where that lowers the validation word error rate. "all" keeps every expert's block.
    The model is moved to the device. Raises PipelineError where no validation transcript has a word.
    """
    folder = _Folder(model, language)
    own = layers_in(folder.expert)
    passes = 2 + (len(own) if choice == "wer" else 0)
    tick = _ticker(passes * len(decoding.clips), progress)
    use = GateUse()
    routed = decoding.rows(model.whisper, language, tick, use)
    shares = {name: use.shares().get(name, 0.0) for name in folder.student.routed}
    layers = {name: name in own and (choice == "all" or share >= HALF) for name, share in shares.items()}
    rows = decoding.rows(folder.plain(layers), language, tick)
    for name in own if choice == "wer" else ():
        tried = {**layers, name: not layers[name]}
        found = decoding.rows(folder.plain(tried), language, tick)
        if _errors(found) < _errors(rows):
            layers, rows = tried, found
    comparison = Comparison(scoring.totals(routed), scoring.totals(rows), scoring.paired_interval(rows, routed))
    return Fold(folder.plain(layers), layers, choice, shares, comparison)


def _errors(rows: list[Row]) -> int:
    return sum(row["word_errors"] for row in rows)


def _ticker(total: int, progress: Progress[str]) -> Callable[[int], None]:
    done = 0
    progress(0, total, "")

    def tick(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total, "")

    return tick


class _Folder:
    """Makes plain Whispers of a model with experts. They share its tensors."""

    def __init__(self, model: LoadedModel, language: str):
        assert model.student is not None
        self.whisper, self.student = model.whisper, model.student
        state = {name: parameter.detach() for name, parameter in self.student.expert_state(language).items()}
        blocks = merged(state, self.student.shared_state())
        self.expert = {name: tensor for name, tensor in blocks.items() if ".gate." not in name}

    def plain(self, layers: Layers) -> Whisper:
        """Returns a Whisper with the expert's block in these layers, and the shared one in the others."""
        with torch.device("meta"):
            plain = WhisperForConditionalGeneration(_plain_config(self.student.config))
        chosen = {name: tensor for name, tensor in self.expert.items() if layers[".".join(name.split(".")[:3])]}
        state = {name: parameter.detach() for name, parameter in self.student.base_parameters().items()}
        state |= {
            f"model.{name.replace('.expert.', '.')}": tensor.to(self.student.device) for name, tensor in chosen.items()
        }
        state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
        plain.load_state_dict(state, assign=True)
        plain.tie_weights()
        plain.generation_config = self.student.generation_config
        return replace(self.whisper, model=plain.requires_grad_(False).eval())


def _plain_config(config: DistilWhisperConfig) -> WhisperConfig:
    """Leaves out what the experts have added, but for the tokens that stand for languages: prompts need them."""
    added = DistilWhisperConfig().to_dict().keys() - WhisperConfig().to_dict().keys() - {"language_tokens"}
    given = {name: value for name, value in config.to_dict().items() if name not in added}
    given = {name: value for name, value in given.items() if name not in ("model_type", "architectures")}
    return WhisperConfig(**given, attn_implementation=config._attn_implementation)
