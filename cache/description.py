"""Says in words what a folder of shards holds."""

from collections.abc import Iterator
from typing import Any

from cache.records import TEACHER, TRANSCRIPT

# The settings that stand on one line.
MADE_WITH = (
    "targets",
    "transcribed_fraction",
    "timestamps",
    "dtype",
    "prompt",
    "top_p",
    "min_k",
    "top_k",
    "bits",
    "audio_window_s",
    "language",
    "token",
    "split",
    "corpus",
)


def described(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what is told, and its value. found: what `cache.info.statistics` returns."""
    settings = found["settings"]
    yield "kind", f"{found['kind']}, {found['format']}, format version {found['format_version']}"
    if "teacher" in settings:
        for name, weights in _teachers(settings):
            yield "teacher", f"{name}, weights {str(weights)[:12]}"
    yield "made with", ", ".join(f"{name} {settings[name]}" for name in MADE_WITH if settings.get(name) is not None)
    yield "utterances", f"{found['utterances']:,} in {found['shards']} shards, {found['hours']:.2f} h"
    size = f"{found['bytes']:,}"
    if found["kind"] == "utterances":
        yield "bytes", f"{size}, {_number(found['bytes_per_second'], '.0f')} per second of audio"
        yield "seconds", _quantiles(found["seconds"], ".1f")
        yield "speakers", f"{found['speakers']:,}"
        yield "untranscribed", f"{found['untranscribed']:,}"
    else:
        kept, mass = found["kept_per_token"], found["mass_kept"]
        yield "targets", target_counts(found["target_sources"])
        yield "tokens", f"{found['tokens']:,}"
        yield "bytes", f"{size}, {_number(found['bytes_per_token'], '.1f')} per token"
        yield "kept per token", f"mean {_number(kept['mean'], '.1f')}, {_quantiles(kept, '.0f')}"
        yield "mass kept", f"mean {_number(mass['mean'], '.4f')}, {_quantiles(mass, '.4f')}"
        yield "entropy", f"mean {_number(found['entropy_nats'], '.3f')} nats, of the kept tokens and the rest as one"
        yield "targets' log-prob", f"mean {_number(found['mean_log_prob'], '.3f')} nats per token"
        yield "teacher's own WER", _number(found["teacher_wer"], ".1%").replace("%", " %")
    yield "left out", counts(found["left_out"]) or "nothing"
    if found["noticed"]:
        yield "noticed", counts(found["noticed"])


def _teachers(settings: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Returns the name and the weights' fingerprint of the teacher, or of each fold's."""
    names, weights = settings["teacher"], settings.get("teacher_weights")
    if isinstance(names, list) and isinstance(weights, list):
        return list(zip(names, weights, strict=False))
    return [(names, weights)]


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "not known"


def _quantiles(values: dict[str, Any], form: str) -> str:
    return ", ".join(f"{name} {_number(values[name], form)}" for name in ("p5", "median", "p95"))


def counts(values: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in values.items()) if isinstance(values, dict) else str(values)


def target_counts(counts: dict[str, int]) -> str:
    """Says how many utterances have which targets. counts: by the values of `target_source`."""
    return f"{counts[TRANSCRIPT]:,} transcripts, {counts[TEACHER]:,} of the teacher's own words"
