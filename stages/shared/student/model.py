"""Whisper with experts. Only the feed-forward blocks of transformers' model are replaced."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import WhisperForConditionalGeneration
from transformers.cache_utils import Cache

from cache.errors import PipelineError
from stages.shared.student.clsr import FeedForward, RoutedFeedForward, shared_name
from stages.shared.student.config import DistilWhisperConfig, DistilWhisperOutput
from stages.shared.student.forms import FULL_EXPERT, ExpertForm, Gates
from stages.shared.student.holder import ExpertHolder
from stages.shared.student.routing import Languages, Router, Routing, codes_of, gates_of
from stages.shared.whisper.languages import language_code
from stages.shared.whisper.targets import prompt_language
from stages.shared.whisper.window import FRAMES_PER_SECOND, POSITIONS_PER_SECOND

FRAMES_PER_POSITION = FRAMES_PER_SECOND // POSITIONS_PER_SECOND


class DistilWhisperForConditionalGeneration(ExpertHolder):
    """A Whisper whose feed-forward blocks choose for each token between the shared block and a language's expert.

    `forward` and `generate` take a language (a code or a name) for the whole batch or for each row. Without a language, or
    without an expert for it, all tokens use the shared blocks, and the output is bit for bit the base model's.
    """

    config_class = DistilWhisperConfig

    def __init__(self, config: DistilWhisperConfig):
        super().__init__(config)
        if config.activation_dropout:
            raise PipelineError(
                f"activation_dropout is {config.activation_dropout}, expected 0 as in every released Whisper"
            )
        self.router = Router()
        self.routed = {}
        for side, part in (("encoder", self.model.encoder), ("decoder", self.model.decoder)):
            for number, layer in enumerate(part.layers):
                self._replace(f"{side}.layers.{number}", layer)
        ranks, ungated, layers = config.expert_ranks or {}, config.ungated or [], config.expert_layers or {}
        languages, config.languages = config.languages or [], []
        for language in languages:
            gates: Gates = "none" if language in ungated else "token"
            own = tuple(layers[language]) if language in layers else None
            self.add_expert(language, ExpertForm(ranks.get(language), gates, layers=own))

    def _replace(self, name: str, layer: Any) -> None:
        """Puts a routed block in the place of fc1: a Whisper layer computes `fc2(dropout(activation_fn(fc1(x))))`."""
        shared = FeedForward(layer.fc1, layer.fc2, layer.activation_fn)
        routed = RoutedFeedForward(name, shared, self.router, self.config)
        layer.fc1, layer.activation_fn, layer.fc2 = routed, nn.Identity(), nn.Identity()
        self.routed[name] = routed

    @classmethod
    def from_whisper(
        cls,
        model: WhisperForConditionalGeneration,
        languages: Sequence[str] = (),
        form: ExpertForm = FULL_EXPERT,
        **options: float | str,
    ) -> "DistilWhisperForConditionalGeneration":
        """Returns `model` with a new expert for each of `languages`. The frozen weights are the tensors of `model` itself.

        options: skip_gate, expert_dropout, gate_dropout, gate_dim, gate_training, lora_dropout (see DistilWhisperConfig).
        """
        given = {**model.config.to_dict(), **options}
        given = {name: value for name, value in given.items() if name not in ("model_type", "architectures")}
        config = DistilWhisperConfig(**given, attn_implementation=model.config._attn_implementation)
        config.name_or_path = model.name_or_path
        with torch.device("meta"):
            routed = cls(config)
        state = {shared_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
        empty = {
            name: torch.empty(0) for name in routed.state_dict() if name.endswith(".fc1.weight") and name not in state
        }
        routed.load_state_dict({**state, **empty}, assign=True)
        routed.tie_weights()
        routed.generation_config = model.generation_config
        routed.requires_grad_(False).train(model.training)
        for language in languages:
            routed.add_expert(language_code(language), form)
        return routed

    def route(self, languages: Languages, noise: float = 0.0) -> AbstractContextManager[Routing]:
        """Makes calls of the model without a language use these experts, within the block. The result has their gates.

        noise: see `Routing`. Other threads do not see the languages.
        """
        return self.router.use(Routing(self._codes(languages), noise=noise))

    def _codes(self, languages: Languages) -> Languages:
        return codes_of(languages, {*self.languages, *(self.config.language_tokens or {})})

    @contextmanager
    def _called(self, languages: Languages, task: str | None) -> Iterator[Routing | None]:
        """Sets the routing of one call: by its own language, or that of the block around it. Yields None without either."""
        around = self.router.current()
        if languages is None and around is None:
            yield None
            return
        asked = self._codes(languages) if languages is not None else around.languages  # type: ignore[union-attr]
        own = Routing(asked, decoder=task != "translate" and (around is None or around.decoder))
        own.noise = around.noise if around else 0.0
        with self.router.use(own):
            yield own
        for layer, gates in own.gates.items() if around else ():
            around.gates.setdefault(layer, []).extend(gates)  # type: ignore[union-attr]

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: tuple[torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        decoder_position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        language: Languages = None,
        task: str | None = None,
        **kwargs: Any,
    ) -> DistilWhisperOutput | tuple:
        """Computes what Whisper's forward does. language: for the batch or for each row; None: the shared blocks.

        task: 'translate' keeps the decoder on the shared blocks, as published. Raises PipelineError for unknown languages.
        """
        with self._called(language, task) as routing:
            output = super().forward(
                input_features,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                encoder_outputs=encoder_outputs,
                past_key_values=past_key_values,
                decoder_inputs_embeds=decoder_inputs_embeds,
                decoder_position_ids=decoder_position_ids,
                labels=labels,
                use_cache=use_cache,
                **kwargs,
            )
        gates = {side: gates_of(routing, side) for side in ("encoder", "decoder")}
        if isinstance(output, tuple):
            return (*output, *(own for own in gates.values() if own is not None))
        return DistilWhisperOutput(**output, encoder_gates=gates["encoder"], decoder_gates=gates["decoder"])

    def generate(self, input_features: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Does what Whisper's generate does. `language` also chooses the experts, one for the batch or one for each row.

        A language trained under another's token is prompted with that token. With task 'translate' the decoder uses the
        shared blocks. Several languages need audio of one window at most. Raises PipelineError for unknown languages.
        """
        config = kwargs.get("generation_config") or self.generation_config
        language, task = (kwargs.get(name) or getattr(config, name, None) for name in ("language", "task"))
        codes = self._codes(language)
        if codes is not None:
            each = [codes] if isinstance(codes, str) else codes
            spoken = [code and prompt_language(self, code) for code in each]
            kwargs["language"] = spoken[0] if isinstance(codes, str) else spoken
        if isinstance(codes, list) and len(set(codes)) > 1:
            self._check_one_window(input_features, kwargs)
        with self._called(codes, task):
            return super().generate(input_features, *args, **kwargs)

    def _check_one_window(self, input_features: torch.Tensor | None, kwargs: dict[str, Any]) -> None:
        """Raises PipelineError where Whisper's generation would drop the rows that have ended: it does not tell which."""
        window = self.config.max_source_positions * FRAMES_PER_POSITION
        long = input_features is not None and input_features.shape[-1] > window
        if long or isinstance(kwargs.get("temperature"), list | tuple):
            raise PipelineError(
                "several languages in one call of generate: expected audio of at most one window and one temperature; "
                "call it once for each language"
            )

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Gives torch's activation checkpointing the routing, for layers that are computed again in the backward pass."""
        routing = self.router.current()
        if routing is None:
            return nullcontext(), nullcontext()
        again = Routing(routing.languages, routing.decoder, routing.noise)
        return nullcontext(), self.router.use(again)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Does what transformers does, but never reentrant: a reentrant layer would lose its routing."""
        given = {
            **(activation_checkpointing_kwargs or {}),
            "use_reentrant": False,
            "context_fn": self.checkpoint_contexts,
        }
        super().activation_checkpointing_enable(given, **kwargs)
