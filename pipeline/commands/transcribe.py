"""pipeline transcribe"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click

from cache import files, storage
from cache.storage import AnyPath
from pipeline.commands.common import chosen_device, load_any, say, token
from pipeline.errors import each
from pipeline.options import print_json, printable
from pipeline.params import Params
from pipeline.progress import ProgressReport
from stages.shared.student.loading import locate
from stages.shared.whisper.decode import Transcript
from stages.shared.whisper.languages import code_of
from stages.shared.whisper.targets import use_token
from stages.transcribe.formats import rendered
from stages.transcribe.recordings import Recording, find_recordings, transcript_names
from stages.transcribe.settings import FORMATS

Listen = Callable[[Recording], Iterator[Transcript]]


@dataclass(frozen=True)
class Output:
    """What is made of a recording's transcript, and where it goes."""

    format: str
    folder: AnyPath | None  # None: standard output


def transcribe(
    params: Params, paths: list[str], language: str | None, source: str, base: str | None, output: Output
) -> None:
    recordings = find_recordings([storage.path(path) for path in paths], _tell)
    targets = _targets(recordings, output)
    found = locate(source, base)
    if language is None and len(found.languages) == 1:
        language = found.languages[0]
    device = chosen_device(params)
    model, how = load_any(found), params.evaluate
    code = code_of(language) if language else None
    if language and code:
        use_token(model.whisper.model, code, token(params, language))

    def listen(recording: Recording) -> Iterator[Transcript]:
        return model.transcribe(recording.path, code, device, how.dtype, how.cut_loops, _tell)

    if targets:
        _write_all(targets, listen, output.format, source)
    elif output.format == "text":
        _print_texts(recordings, listen)
    else:
        _print_one(recordings[0], listen, output.format, source)


def _tell(line: str) -> None:
    say(printable(line))


def _targets(recordings: list[Recording], output: Output) -> dict[Recording, AnyPath]:
    """Returns the file for each recording's transcript, {} if they are printed."""
    if output.folder is None:
        if len(recordings) > 1 and output.format != "text":
            raise click.UsageError(
                f"{len(recordings)} recordings as {output.format}: give --out, a folder for their files"
            )
        return {}
    if output.folder.exists() and not output.folder.is_dir():
        raise click.BadParameter(f"{output.folder} is a file, expected a folder", param_hint="--out")
    once = list({str(one.path): one for one in recordings}.values())
    names = transcript_names(once, FORMATS[output.format])
    return {one: output.folder / name for one, name in zip(once, names, strict=True)}


def _print_texts(recordings: list[Recording], listen: Listen) -> None:
    """Prints each window's text as soon as it is known."""

    def print_one(recording: Recording) -> None:
        if len(recordings) > 1:
            print(f"{printable(str(recording.path))}:", flush=True)
        for window in listen(recording):
            if window.text:
                print(window.text, flush=True)

    each(recordings, _path, print_one)


def _print_one(recording: Recording, listen: Listen, format: str, source: str) -> None:
    with ProgressReport("transcribe", "recordings") as progress:
        windows = _Watch(progress, 1).windows(listen(recording))
    text = rendered(windows, format, source)
    if format == "json":
        print_json(json.loads(text))
    else:
        print(text, end="", flush=True)


def _write_all(targets: dict[Recording, AnyPath], listen: Listen, format: str, source: str) -> None:
    with ProgressReport("transcribe", "recordings") as progress:
        watch = _Watch(progress, len(targets))

        def write_one(recording: Recording) -> None:
            files.write_text(targets[recording], rendered(watch.windows(listen(recording)), format, source))

        each(list(targets), _path, write_one)


def _path(recording: Recording) -> str:
    return str(recording.path)


@dataclass
class _Watch:
    """Shows the progress of work on several recordings."""

    progress: ProgressReport
    total: int
    done: int = 0
    seconds: float = 0.0  # of the recordings that are done

    def windows(self, decoded: Iterator[Transcript]) -> list[Transcript]:
        """Returns all windows of the next recording."""
        found: list[Transcript] = []
        self.progress.audio(self.done, self.total, self.seconds)
        try:
            for window in decoded:
                found.append(window)
                self.progress.audio(self.done, self.total, self.seconds + window.end)
        finally:
            self.done, self.seconds = self.done + 1, self.seconds + (found[-1].end if found else 0)
            self.progress.audio(self.done, self.total, self.seconds)
        return found
