"""Exports a model: reads it, folds its experts if it has any, and writes a folder in another program's format."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cache import files, storage
from cache.errors import PipelineError
from cache.files import TEMPORARY, new_folder, refuse_taken
from cache.progress import Progress, silent
from cache.shards import ShardReader
from cache.storage import AnyPath
from stages.export import adapter, card
from stages.export.ctranslate2 import write_ctranslate2
from stages.export.fold import Choice, Decoding, Fold, fixed_layers, fold, fold_exactly
from stages.export.formats import CTRANSLATE2, GGML, PEFT, WHISPER, Format, check_installed
from stages.export.ggml import check_sizes, write_ggml
from stages.export.onnx import write_onnx
from stages.export.plain import write_plain
from stages.shared.card.measured import Measured
from stages.shared.card.stored import tokens_of
from stages.shared.layout import CARD
from stages.shared.student.bundles import part_folders
from stages.shared.student.loading import LoadedModel, ModelSource, load_model
from stages.shared.student.packing import DTYPES, not_finite
from stages.shared.validation import validation_clips
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.window import restore_audio_window

GGML_FILE = "ggml-model.bin"


@dataclass(frozen=True)
class Validation:
    """The utterances by which a fold is chosen, and how they are decoded."""

    utterances: AnyPath
    device: torch.device
    dtype: torch.dtype
    cut_loops: bool


@dataclass(frozen=True)
class Export:
    """What is to be written.

    languages: codes, for the card; []: those of the model. fold: how experts whose gates look at tokens are folded.
    validation: needed for these alone. measured: rates of the model, for the card. licence: of what is written, for the card.
    """

    format: Format
    precision: str
    languages: list[str]
    fold: Choice = "gates"
    validation: Validation | None = None
    measured: Sequence[Measured] = ()
    licence: str | None = None


def check_export(found: ModelSource, out: AnyPath, wanted: Export) -> None:
    """Raises PipelineError, before anything is loaded, for what cannot be exported so."""
    if found.kind == "bundle":
        raise PipelineError(
            f"{found.name}: a bundle for {', '.join(found.languages)}: an export is of one language's folder, such as "
            f"{part_folders(found.folder, found.metadata)[0]}"
        )
    check_installed(wanted.format)
    if wanted.format == PEFT:
        adapter.check_form(found)
    refuse_taken(out)
    if folds(found) and wanted.format.plain:
        utterances = wanted.validation.utterances if wanted.validation else None
        if utterances is None or not (utterances / "manifest.json").exists():
            raise PipelineError(
                f"{utterances}: no validation shards there; on them experts are folded and compared: run "
                f"`pipeline prepare --lang {' '.join(found.languages)}` first"
            )


def folds(found: ModelSource) -> bool:
    """Tells whether a plain Whisper of the model loses something: gates that look at the token are not in it."""
    return found.kind == "experts" and found.metadata["gates"] == "token"


def export(
    found: ModelSource,
    out: AnyPath,
    wanted: Export,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress[str] = silent,
) -> int:
    """Writes the model at `found` to the folder `out`, whole or not at all. Returns the bytes of its files.

    say: called with lines about the fold. progress: with the validation utterances that are decoded for it.
    Raises PipelineError where `check_export` does, where the model does not fit its base, or where its values do not fit the
    precision.
    """
    check_export(found, out, wanted)
    loaded = None if wanted.format == PEFT else load_model(found)
    folded, whisper = _plain(loaded, wanted, progress) if loaded and wanted.format.plain else (None, None)
    for line in card.fold_lines(folded) if folded else ():
        say(line)
    facts = _facts(found, out, wanted, folded, whisper or (loaded.whisper if loaded else None))
    with new_folder(out) as folder:
        if whisper is not None:
            _write(whisper, folder, wanted)
        elif loaded is not None:
            write_onnx(loaded, folder)
        else:
            adapter.write_adapter(found, folder, DTYPES[wanted.precision])
        files.write_text(folder / CARD, card.card(facts))
        return sum(storage.sizes(folder).values())


def _facts(
    found: ModelSource, out: AnyPath, wanted: Export, folded: Fold | None, whisper: Whisper | None
) -> card.Written:
    if whisper is None:
        tokens, window = tokens_of(found), found.metadata["audio_window_s"]
    else:
        tokens, window = getattr(whisper.model.config, "language_tokens", None) or {}, whisper.audio_window_s
    languages = wanted.languages or found.languages
    return card.Written(
        out.name,
        found,
        wanted.format,
        wanted.precision,
        languages,
        tokens,
        window,
        folded,
        wanted.measured,
        wanted.licence,
    )


def _plain(model: LoadedModel, wanted: Export, progress: Progress[str]) -> tuple[Fold | None, Whisper]:
    """Returns the model as a plain Whisper on the CPU, and the fold if it has experts."""
    if model.student is None:
        return None, model.whisper
    (language,) = model.languages
    if layers := fixed_layers(model.student, language):
        folded = fold_exactly(model, language, layers)
    else:
        how = wanted.validation
        assert how is not None
        clips = validation_clips(ShardReader(how.utterances, "utterances"), model.whisper)
        decoding = Decoding(clips, how.device, how.dtype, how.cut_loops)
        folded = fold(model, language, wanted.fold, decoding, progress)
        folded.whisper.model.to("cpu")
    return folded, folded.whisper


def _write(whisper: Whisper, folder: Path, wanted: Export) -> None:
    dtype = DTYPES[wanted.precision]
    if infinite := not_finite({name: tensor.to(dtype) for name, tensor in whisper.model.state_dict().items()}):
        raise PipelineError(
            f"tensor '{infinite}' has values that are not finite in {wanted.precision}: expected a sound model"
            + ("; try --precision fp32" if "fp32" in wanted.format.precisions and wanted.precision != "fp32" else "")
        )
    if wanted.format == WHISPER:
        write_plain(whisper, folder, dtype)
    elif wanted.format == CTRANSLATE2:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=TEMPORARY) as temporary:
            # in full precision: the converter rounds once
            write_plain(whisper, Path(temporary), torch.float32)
            write_ctranslate2(Path(temporary), folder, wanted.precision, whisper.audio_window_s)
    elif wanted.format == GGML:
        check_sizes(whisper)
        restore_audio_window(whisper.model)
        write_ggml(whisper, folder / GGML_FILE)
