"""A model of which a method trains some weights: experts and gates, low-rank adapters, or all of a Whisper."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from cache.storage import AnyPath
from stages.shared.methods import method_named
from stages.shared.student.experts import read_expert, shared_of, write_expert
from stages.shared.student.forms import ExpertForm
from stages.shared.student.lora import add_lora, load_lora_weights, save_lora
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.student.packing import rank_of
from stages.shared.student.routing import Routing
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.saving import save_whisper
from stages.shared.whisper.targets import other_tokens, token_of
from stages.train_student.settings import TrainSettings
from stages.train_student.start import Start, chosen_layers

# Shapes: B rows, T decoder positions, D width of the decoder.
# settings that the experts' layers take
OPTIONS = ("skip_gate", "expert_dropout", "gate_dropout", "gate_training", "lora_dropout")


class Trainee:
    """A model with the parameters that a method trains. `parameters` holds them by name. gated: it trains gates, too.

    languages: one code or several. Experts are trained for each language; adapters and whole models for all together.
    """

    def __init__(self, whisper: Whisper, method: str, languages: str | Sequence[str], settings: TrainSettings):
        chosen = method_named(method)
        self.whisper = whisper
        self.learning_rate = settings.learning_rate or chosen.learning_rate
        self.languages = [languages] if isinstance(languages, str) else list(languages)
        self.adapter: PeftModel | None = None
        self.student: DistilWhisperForConditionalGeneration | None = None
        self.gated = False
        self.parameters: dict[str, nn.Parameter]
        if chosen.trains == "adapter":
            self.adapter, self.parameters = add_lora(
                whisper, settings.lora_rank, settings.lora_alpha, settings.lora_dropout
            )
        elif chosen.trains == "all":
            whisper.model.requires_grad_(True)
            whisper.model.model.encoder.embed_positions.requires_grad_(False)
            self.parameters = {name: p for name, p in whisper.model.named_parameters() if p.requires_grad}
        else:
            options = {name: getattr(settings, name) for name in OPTIONS}
            layers = chosen_layers(settings.expert_layers, shared_of(whisper.model))
            form = ExpertForm(settings.expert_rank, settings.gates, settings.gate_start, layers)
            self.student = DistilWhisperForConditionalGeneration.from_whisper(
                whisper.model, self.languages, form, **options
            )
            self.whisper = replace(whisper, model=self.student)
            self.gated = settings.gates != "none"
            experts = {language: self.student.expert_state(language) for language in self.languages}
            named = {f"{code}.{name}": p for code, state in experts.items() for name, p in state.items()}
            self.parameters = {name: parameter for name, parameter in named.items() if parameter.requires_grad}

        if settings.gradient_checkpointing:
            self.whisper.model.activation_checkpointing_enable({"use_reentrant": False})

    def begin_as(self, start: Start) -> None:
        """Copies an expert or an adapter of another language into the fresh ones.

        Raises PipelineError where it does not fit: an adapter of another rank, say. An expert of low rank begins as the
        stored factors.
        """
        if self.adapter:
            load_lora_weights(self.adapter, start.folder)
            return
        assert self.student is not None
        factors = rank_of(self.student.expert_state(self.languages[0])) is not None
        state = read_expert(start.folder, start.metadata, self.student.shared_state(), factors=factors).state
        for language in self.languages:
            self.student.copy_into_expert(language, state, str(start.weights))

    @property
    def model(self) -> nn.Module:
        return self.whisper.model

    def route(self, noise: float = 0.0, languages: Sequence[str] | None = None) -> AbstractContextManager[Routing]:
        """Routes each row of a batch to its language's expert. languages: one code a row; None: the only language."""
        if self.student is None:
            return nullcontext(Routing())
        chosen = set(languages or self.languages)
        return self.student.route(chosen.pop() if len(chosen) == 1 else languages, noise)

    def hidden(self, features: torch.Tensor, decoder_input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the decoder's output (B, T, D), before the projection onto the vocabulary."""
        outputs = self.whisper.model.model(features, decoder_input_ids=decoder_input_ids, use_cache=False)
        return outputs.last_hidden_state

    def save(self, out: AnyPath, folders: dict[str, AnyPath], config: dict[str, Any]) -> None:
        """Writes each language's expert to its own of `folders`, or what the languages share to `out`.

        Shared are an adapter, or a plain Whisper folder in float16 that any reader of Whisper models takes.
        """
        if self.adapter:
            others = other_tokens(self.whisper.model, self.languages)
            save_lora(self.adapter, out, {"languages": self.languages, "language_tokens": others, **config})
        elif self.student:
            for language, folder in folders.items():
                state, shared = self.student.expert_state(language), self.student.shared_state()
                metadata = {**config, "token": token_of(self.student, language)}
                write_expert(folder, language, state, shared, metadata)
        else:
            save_whisper(self.whisper, out, torch.float16)
