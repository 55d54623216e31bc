"""The expert of each row of a batch. It is valid for one call only, or inside one `with model.route(...)`."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from cache.errors import PipelineError
from stages.shared.whisper.languages import LANGUAGES, language_code, without_token

# Shapes: B rows of a batch, T positions
Languages = str | None | Sequence[str | None]  # one for the batch, or one for each row; None: the shared blocks


@dataclass
class Routing:
    """The experts that one call of the model uses, and the gates that its layers record."""

    languages: Languages = None
    decoder: bool = True  # False: the decoder uses the shared blocks, as for translation
    noise: float = 0.0  # alpha: standard deviation of the noise on the gate's logits in training
    gates: dict[str, list[torch.Tensor]] = field(default_factory=dict)  # layer -> a (B, T) for each call of the layer

    def record(self, layer: str, gate_BT: torch.Tensor) -> None:
        """Adds a layer's gates: bool, or floats from 0 to 1 in training."""
        self.gates.setdefault(layer, []).append(gate_BT)

    def rows(self, layer: str, experts: Collection[str], batch: int) -> list[tuple[str, torch.Tensor | None]]:
        """Returns each expert in use, with its rows: (B,) bool, or None for all. Other rows use the shared block.

        batch: number of rows. Beam search has several consecutive rows for each language.
        Raises ValueError where `batch` is not a multiple of the number of languages.
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
    """Holds the routings of one model. Its layers share it. Threads and models do not see each other's routings."""

    def current(self) -> Routing | None:
        """Returns the innermost routing of this thread, None outside of all."""
        return next((routing for router, routing in reversed(_ACTIVE.get()) if router is self), None)

    @contextmanager
    def use(self, routing: Routing) -> Iterator[Routing]:
        """Makes `routing` the current one, within the block and in this thread."""
        before = _ACTIVE.set((*_ACTIVE.get(), (self, routing)))
        try:
            yield routing
        finally:
            _ACTIVE.reset(before)


def codes_of(languages: Languages, known: Collection[str]) -> Languages:
    """Turns names, codes or tokens such as <|ca|> into codes.

    known: the codes that are allowed beside Whisper's own. Raises PipelineError for any other.
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
    """Returns each layer's gates (B, T) of the last call; None where nothing was routed, or the side did not run.

    side: encoder or decoder.
    """
    found = tuple(calls[-1] for layer, calls in routing.gates.items() if layer.startswith(side)) if routing else ()
    return found or None
