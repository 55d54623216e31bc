"""The methods by which a student is trained, one row each. Whatever lists, names or tells methods apart reads this table."""

from dataclasses import dataclass
from typing import Literal

from cache.errors import PipelineError


@dataclass(frozen=True)
class Method:
    name: str  # as the command line, the parameters, folders and files have it
    title: str  # in reports
    summary: str  # in --help
    trains: Literal["experts", "adapter", "all"]  # what of the model is trained; "all" gives a plain Whisper
    needs_teacher: bool  # whether it is trained on the teacher's shards, too
    learning_rate: float  # where the parameters name none

    @property
    def group(self) -> str:
        """The part of the parameters' `methods` that the method belongs to."""
        return "from_teacher" if self.needs_teacher else "from_transcripts"


FULL = Method("full", "full fine-tuning", "all weights, a plain Whisper folder", "all", False, 1e-5)
FULL_KD = Method("full-kd", "full fine-tuning+KD", "the same, taught from the teacher's shards", "all", True, 1e-5)
LORA = Method("lora", "LoRA", "a PEFT adapter", "adapter", False, 1e-4)
LORA_KD = Method("lora-kd", "LoRA+KD", "the same, taught from the teacher's shards", "adapter", True, 1e-4)
CLSR = Method("clsr", "CLSR-FT", "experts, without a teacher", "experts", False, 1e-4)
CLSR_KD = Method(
    "clsr-kd", "CLSR-FT+KD", "experts, taught from the teacher's shards (the paper's)", "experts", True, 1e-4
)

# In the order of a report's tables.
METHODS = {method.name: method for method in (FULL, FULL_KD, LORA, LORA_KD, CLSR, CLSR_KD)}


def method_named(name: str) -> Method:
    """Raises PipelineError where there is no such method."""
    if name not in METHODS:
        raise PipelineError(f"'{name}' is no method: expected one of {', '.join(METHODS)}")
    return METHODS[name]


def without_teacher(method: Method) -> Method | None:
    """Returns the method that trains the same, but without a teacher. None: `method` itself has no teacher."""
    alike = (other for other in METHODS.values() if other.trains == method.trains and not other.needs_teacher)
    return next(alike, None) if method.needs_teacher else None


def described(methods: dict[str, Method] = METHODS) -> str:
    """One line for --help: each method's name and summary."""
    return "; ".join(f"{name}: {method.summary}" for name, method in methods.items())


def learning_rates() -> str:
    """One line for descriptions: each learning rate with the methods that it is the default of."""
    rates = dict.fromkeys(method.learning_rate for method in METHODS.values())
    names = {rate: [name for name, method in METHODS.items() if method.learning_rate == rate] for rate in rates}
    return ", ".join(f"{rate:g} for {' and '.join(those)}" for rate, those in names.items())
