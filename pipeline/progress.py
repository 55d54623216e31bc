"""Shows the progress of long work on standard error: a bar on a terminal, else a plain line from time to time."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0


class ProgressReport:
    """Shows progress each time it is called with done, total and a note. The first call tells what is done at the start.

    unit: what is counted, such as 'utterances' or 'steps'.
    """

    def __init__(self, title: str, unit: str):
        self.title, self.unit = title, unit
        self.started = self.last_line = time.monotonic()
        self.first: int | None = None
        self.shown: tuple[int, int] | None = None
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self.task = self.bar.add_task(title, total=None, note="")

    def __enter__(self) -> "ProgressReport":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, done: int, total: int, note: str) -> None:
        if self.first is None:
            # the speed counts neither the work of an earlier run, nor the time for loading a model
            self.first = done
            self.started = time.monotonic()
        elapsed = time.monotonic() - self.started
        speed = (done - self.first) / elapsed if elapsed > 0 else 0.0
        note = f"{speed:.1f} {self.unit}/s{', ' + note if note else ''}"
        if self.bar:
            self.bar.update(self.task, completed=done, total=total, note=note)
        elif self.shown != (done, total) and (done == total or time.monotonic() - self.last_line >= LINE_EVERY_S):
            self.shown, self.last_line = (done, total), time.monotonic()
            left = f", {_clock((total - done) / speed)} left" if speed and done < total else ""
            print(f"{self.title}: {done}/{total} {self.unit}, {note}{left}", file=sys.stderr, flush=True)

    def audio(self, done: int, total: int, seconds: float) -> None:
        """Shows the progress of work on recordings. seconds: of audio that is done."""
        self(done, total, f"{seconds / 3600:.2f} h of audio")

    def losses(self, done: int, total: int, losses: dict[str, float]) -> None:
        """Shows the progress of training steps, with their losses."""
        self(
            done,
            total,
            " ".join(f"{name} {losses[name]:.3f}" for name in ("loss", "ce", "kd", "gate_mean") if name in losses),
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
