"""Which expert each row of a batch goes through: an argument of a call, which ends with it."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from cache.errors import PipelineError
from stages.shared.whisper.languages import LANGUAGES, language_code, without_token

Languages = str | None | Sequence[str | None]  # one for the batch, or one for each row; None: the shared path


@dataclass
class Routing:
    """What one call of the model asks of its routed layers, and what they tell of it."""

    languages: Languages = None
    decoder: bool = True  # False: the decoder takes the shared path, as it does to translate
    noise: float = 0.0  # alpha: standard deviation of the noise on the gate's logits while training
    gates: dict[str, list[torch.Tensor]] = field(default_factory=dict)  # by layer, a (B, T) for each of its calls

    def record(self, layer: str, gate_BT: torch.Tensor) -> None:
        self.gates.setdefault(layer, []).append(gate_BT)

    def rows(self, layer: str, experts: Collection[str], batch: int) -> list[tuple[str, torch.Tensor | None]]:
        """(expert, rows of the batch that ask for it), rows (B,) bool or None for all of them. The others are shared.

        Beam search has several consecutive rows for each that was asked for.
        """
        if layer.startswith("decoder") and not self.decoder:
            return []
        asked = [self.languages] if self.languages is None or isinstance(self.languages, str) else self.languages
        wanted = [language for language in dict.fromkeys(asked) if language is not None and language in experts]
        if len(set(asked)) == 1:
            return [(language, None) for language in wanted]
        copies, rest = divmod(batch, len(asked))
        if rest:
            raise ValueError(f"{len(asked)} languages for a batch of {batch} rows: expected one for each row")
        named = [language for language in asked for _ in range(copies)]
        return [(expert, torch.tensor([language == expert for language in named])) for expert in wanted]


_ACTIVE: ContextVar[tuple[tuple["Router", Routing], ...]] = ContextVar("active routings", default=())


class Router:
    """One for each model, held by its layers; threads and models do not see each other's routings."""

    def current(self) -> Routing | None:
        return next((routing for router, routing in reversed(_ACTIVE.get()) if router is self), None)

    @contextmanager
    def use(self, routing: Routing) -> Iterator[Routing]:
        before = _ACTIVE.set((*_ACTIVE.get(), (self, routing)))
        try:
            yield routing
        finally:
            _ACTIVE.reset(before)


def codes_of(languages: Languages, known: Collection[str]) -> Languages:
    """Names or codes -> codes; <|ca|>, as generate takes it, is a code, too.

    known: the codes beyond Whisper's own that mean something here. Raises PipelineError for any other.
    """
    if languages is None:
        return None
    if not isinstance(languages, str):
        return [None if language is None else str(codes_of(language, known)) for language in languages]
    code = language_code(languages.removeprefix("<|").removesuffix("|>"))
    if code not in LANGUAGES and code not in known:
        raise PipelineError(f"{without_token(code)}, and there is no expert for it: load one that was trained for it")
    return code


def gates_of(routing: Routing | None, side: str) -> tuple[torch.Tensor, ...] | None:
    """Each layer's gates in one call; None where nothing was routed, or the side did not run."""
    found = tuple(calls[-1] for layer, calls in routing.gates.items() if layer.startswith(side)) if routing else ()
    return found or None
