"""A model that holds experts: they are added, loaded, saved and dropped by language."""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import WhisperForConditionalGeneration

from cache import storage
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.shared.student.clsr import RoutedFeedForward
from stages.shared.student.config import DistilWhisperConfig
from stages.shared.student.experts import StoredExpert, write_expert
from stages.shared.student.forms import FULL_EXPERT, ExpertForm
from stages.shared.student.metadata import base_metadata
from stages.shared.student.packing import Precision, check_choice, gates_in, layers_in, misfit, rank_of
from stages.shared.student.sources import Base, find_expert, read_any_expert
from stages.shared.whisper.languages import language_code
from stages.shared.whisper.targets import token_of, use_token
from stages.shared.whisper.window import POSITIONS_PER_SECOND


class ExpertHolder(WhisperForConditionalGeneration):
    """A Whisper with its experts by language. `routed` has its feed-forward blocks by layer."""

    config: DistilWhisperConfig
    routed: dict[str, RoutedFeedForward]

    @property
    def languages(self) -> list[str]:
        """Returns the codes of the languages that have an expert."""
        return list(self.config.languages or [])

    @property
    def audio_window_s(self) -> int:
        """Returns the seconds of audio that the encoder takes."""
        return self.config.max_source_positions // POSITIONS_PER_SECOND

    def add_expert(self, language: str, form: ExpertForm = FULL_EXPERT) -> list[nn.Parameter]:
        """Adds an expert, which begins as the shared blocks. Returns its parameters that take gradients.

        Raises PipelineError where there is one already, or where the form's rank is larger than a matrix has.
        """
        if language in self.languages:
            raise PipelineError(f"there is already an expert for '{language}'")
        check_choice(self.shared_state(), "fp16", form.rank)
        for layer in form.layers or self.routed:
            self.routed[layer].add_expert(language, form)
        self._record(language, form)
        return [parameter for parameter in self.expert_state(language).values() if parameter.requires_grad]

    def _record(self, language: str, form: ExpertForm | None) -> None:
        """Writes into the configuration of what form the expert is; None: that there is none."""
        others = {name: rank for name, rank in (self.config.expert_ranks or {}).items() if name != language}
        ungated = [name for name in self.config.ungated or [] if name != language]
        self.config.languages = [*(name for name in self.languages if name != language), *([language] if form else [])]
        self.config.expert_ranks = {**others, **({language: form.rank} if form and form.rank else {})} or None
        layers = {name: own for name, own in (self.config.expert_layers or {}).items() if name != language}
        self.config.expert_layers = {
            **layers,
            **({language: list(form.layers)} if form and form.layers else {}),
        } or None
        self.config.ungated = [*ungated, *([language] if form and form.gates == "none" else [])] or None

    def drop_expert(self, language: str) -> None:
        """Removes an expert. Raises PipelineError where there is none for `language`."""
        code = self._with_expert(language)
        for routed in self.routed.values():
            routed.drop_expert(code)
        self._record(code, None)
        tokens = self.config.language_tokens or {}
        self.config.language_tokens = {other: token for other, token in tokens.items() if other != code} or None

    def load_expert(self, source: str | AnyPath, language: str | None = None) -> str:
        """Adds an expert from a folder, a URL or the hub. Returns its language's code. A LoRA adapter of the feed-forward
        blocks is an expert without gates.

        language: needed where `source` is for several languages (a published checkpoint, an adapter trained for several), or
        names none (an adapter of another program). Raises PipelineError where the expert does not fit this model, or was
        trained with other base weights or another audio window.
        """
        code = language and language_code(language)
        folder = find_expert(str(source), code)
        base = Base(self.config.name_or_path, self.base_parameters(), self.audio_window_s)
        expert = read_any_expert(folder, code, self.shared_state(), base)
        return self.add_stored_expert(expert, str(folder))

    def add_stored_expert(self, expert: StoredExpert, source: str) -> str:
        """Adds an expert that was read from `source`. Returns its language. The caller must have checked its base."""
        use_token(self, expert.language, expert.token)
        self.load_expert_state(expert.language, expert.state, source)
        return expert.language

    def save_expert(
        self, folder: str | AnyPath, language: str, precision: Precision = "fp16", rank: int | None = None
    ) -> None:
        """Writes one expert, with the name and the fingerprint of its base.

        precision, rank: see `packing.pack`; without a rank an expert of low rank is stored by its factors.
        """
        code = self._with_expert(language)
        metadata = base_metadata(self.config.name_or_path, self.base_parameters(), self.audio_window_s)
        metadata["token"] = token_of(self, code)
        place = storage.path(str(folder))
        write_expert(place, code, self.expert_state(code), self.shared_state(), metadata, precision, rank)

    def _with_expert(self, language: str) -> str:
        code = language_code(language)
        if code not in self.languages:
            raise PipelineError(f"there is no expert for '{code}': there are {', '.join(self.languages) or 'none'}")
        return code

    def expert_state(self, language: str) -> dict[str, nn.Parameter]:
        """Returns the parameters of one expert by name, such as `encoder.layers.0.expert.fc1.weight`.

        An expert of low rank has `fc1.weight.left` and `fc1.weight.right` instead.
        """
        state: dict[str, nn.Parameter] = {}
        for place, routed in self.routed.items():
            for kind, modules in (("expert", routed.experts), ("gate", routed.gates)):
                if language in modules:
                    named = modules[language].named_parameters()
                    state |= {f"{place}.{kind}.{name}": parameter for name, parameter in named}
        return state

    def shared_state(self) -> dict[str, nn.Parameter]:
        """Returns the shared blocks' parameters, by the names that `expert_state` has for an expert's."""
        return {
            f"{place}.expert.{name}": parameter
            for place, routed in self.routed.items()
            for name, parameter in routed.shared.named_parameters()
        }

    def base_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the frozen model's parameters, by the names of a plain Whisper."""
        own = (
            (name, p)
            for name, p in self.named_parameters()
            if ".fc1.experts." not in name and ".fc1.gates." not in name
        )
        return {name.replace(".fc1.shared.", "."): parameter for name, parameter in own}

    def load_expert_state(self, language: str, state: Mapping[str, torch.Tensor], source: str) -> None:
        """Adds the expert and copies `state` into it. Raises PipelineError, without the expert, where it does not fit."""
        self.add_expert(language, ExpertForm(rank_of(state), gates_in(state), layers=self._some(layers_in(state))))
        try:
            self.copy_into_expert(language, state, source)
        except PipelineError:
            self.drop_expert(language)
            raise

    def _some(self, layers: tuple[str, ...]) -> tuple[str, ...] | None:
        """Returns None for all layers of the model. Layers that it does not have are left out: their tensors do not fit."""
        return None if set(layers) >= self.routed.keys() else tuple(name for name in layers if name in self.routed)

    def copy_into_expert(self, language: str, state: Mapping[str, torch.Tensor], source: str) -> None:
        """Copies `state`, read from `source`. Raises PipelineError naming the first tensor that does not fit."""
        own = self.expert_state(language)
        if fault := misfit(state, {name: (tuple(parameter.shape), None) for name, parameter in own.items()}):
            raise PipelineError(f"{source}: {fault}: made for another base model, or damaged")
        for name, parameter in own.items():
            parameter.data.copy_(state[name])
