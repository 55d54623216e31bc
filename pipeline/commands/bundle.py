"""pipeline experts bundle"""

from collections.abc import Sequence

from cache.errors import PipelineError
from cache.files import refuse_taken
from cache.locks import sole_writer
from cache.storage import AnyPath
from pipeline.commands.common import say
from stages.shared.card.stored import write_card
from stages.shared.student import experts
from stages.shared.student.bundles import Part, part_folders, write_bundle
from stages.shared.student.loading import ModelSource, described_in, locate
from stages.shared.student.metadata import base_metadata, load_base
from stages.shared.student.published import published_languages
from stages.shared.student.sources import Base, read_any_expert
from stages.shared.whisper.models import Whisper, find_folder


def bundle(sources: Sequence[str], out: AnyPath, base_source: str | None) -> None:
    """Writes the experts and adapters at `sources` (folders, URLs or hub ids) to the new folder `out`, with one base.

    base_source: of the base; None takes the one that the first of them names. Raises PipelineError, with nothing written,
    where one is neither, where two are for one language, or where not all have the same base and the same window.
    """
    refuse_taken(out)
    found = [_expert_or_adapter(source, base_source) for source in sources]
    _check_languages(found)
    _check_windows(found)
    first = found[0]
    whisper = load_base(first.whisper, first.metadata, described_in(first))
    parts = _checked_parts(found, whisper)
    parameters, name = dict(whisper.model.named_parameters()), first.metadata["base"]
    named = {**base_metadata(name, parameters, whisper.audio_window_s, whisper.fingerprint), "base": name}
    with sole_writer(out):
        refuse_taken(out)
        write_bundle(out, parts, named)
        write_card(out, base_source)
    languages = ", ".join(code for part in parts for code in part.tokens)
    say(f"{out}: a bundle for {languages}; base {name}, window {whisper.audio_window_s} s")


def _expert_or_adapter(source: str, base_source: str | None) -> ModelSource:
    folder, _ = find_folder(source)
    if not experts.is_experts_folder(folder) and published_languages(folder):
        raise PipelineError(f"{source}: published experts: bring them in first with `pipeline experts import`")
    found = locate(source, base_source)
    if found.kind == "bundle":
        raise PipelineError(
            f"{source}: a bundle itself: give the folders in it, such as {part_folders(found.folder, found.metadata)[0]}"
        )
    if found.kind == "whisper":
        raise PipelineError(
            f"{source}: a whole Whisper, expected experts or an adapter: it cannot share a base; use it by itself, or train "
            "by another method than full"
        )
    return found


def _check_languages(found: Sequence[ModelSource]) -> None:
    taken: dict[str, ModelSource] = {}
    for one in found:
        for code in one.languages:
            if other := taken.get(code):
                raise PipelineError(
                    f"{one.name}: it is for {code}, as {other.name} is: expected one folder for each language"
                )
            taken[code] = one


def _check_windows(found: Sequence[ModelSource]) -> None:
    first = found[0]
    wanted = first.metadata["audio_window_s"]
    for one in found:
        if (window := one.metadata["audio_window_s"]) != wanted:
            raise PipelineError(
                f"{one.name}: trained with audio_window_s {window}, but {first.name} with {wanted}: a bundle has one window"
            )


def _checked_parts(found: Sequence[ModelSource], whisper: Whisper) -> list[Part]:
    """Reads every expert for the base, which raises PipelineError where the two do not fit."""
    base = Base(whisper.model_id, dict(whisper.model.named_parameters()), whisper.audio_window_s, whisper.fingerprint)
    shared = experts.shared_of(whisper.model)
    parts = []
    for one in found:
        try:
            tokens = {code: read_any_expert(one.folder, code, shared, base).token for code in one.languages}
        except PipelineError as error:
            raise PipelineError(f"{error}; the bundle's base is that of {found[0].name}, {whisper.model_id}") from None
        parts.append(Part(one.folder, tokens))
    return parts
