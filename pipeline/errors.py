"""Turns any error of a command into one line on standard error and an exit status."""

import errno
import io
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import click

from cache.errors import PipelineError, is_out_of_memory
from cache.files import download_folder
from pipeline.options import printable

T = TypeVar("T")
DEBUG = "PIPELINE_DEBUG"
VERSIONS = ("whisper-offline-distillation", "torch", "transformers")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
SIGPIPE_STATUS = 141  # a shell reports it for a command whose output is closed
MOST_NAMED = 20  # failed items that the last line names
LESS_MEMORY = {  # command -> how it needs less memory
    "prepare": "lower prepare.shard_rows",
    "adapt-teacher": "lower teacher.adapt.batch_size and raise teacher.adapt.accumulate in its place, or set "
    "teacher.adapt.gradient_checkpointing: true",
    "teacher-cache": "lower teacher_cache.batch_size (--batch-size)",
    "train-student": "lower train.batch_size (--batch-size) and raise train.accumulate in its place, or set "
    "train.gradient_checkpointing: true",
    "evaluate": "lower evaluate.batch_size",
}


class Terminated(BaseException):
    """SIGTERM, which a job scheduler sends. It is raised in the running code, whose clean-up is then done."""


class Commands(click.Group):
    """A group of commands. Explains their errors to the user."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if _stdout_is_closed():
                raise click.exceptions.Exit(SIGPIPE_STATUS) from None
            # click takes any broken pipe for a closed output, and ends silently
            raise PipelineError(f"a connection was closed by the other side ({error.strerror})") from error
        except Exception as error:
            if is_out_of_memory(error):
                raise PipelineError(_memory_line(error, ctx.invoked_subcommand)) from error
            raise


def run(command: Callable[[], Any]) -> int:
    """Runs `command` and prints its error, if there is one. Returns the exit status."""
    show_every_character()
    with _terminable(), _errors_of_threads():
        try:
            status = command() or 0
            sys.stdout.flush()
            return status
        except (Exception, KeyboardInterrupt, Terminated) as error:
            if isinstance(error, BrokenPipeError) and _stdout_is_closed():
                return SIGPIPE_STATUS
            message, status = explained(error)
            say_error(message)
            if isinstance(error, OSError):
                _stdout_is_closed()
            return status


def each(items: Sequence[T], name: Callable[[T], object], work: Callable[[T], object], go_on: bool = True) -> None:
    """Calls `work` on every item. An error is printed on standard error with the item's name, and the others are still done.

    Raises PipelineError at the end, with the number and the names of the failed items. A single item raises its own error.
    Errors that would also stop the others are raised at once: wrong usage, a full disk, no host memory, an interruption.
    go_on: False where other processes work on the same items in step. Then every error is raised at once.
    """
    failed = []
    for item in items:
        try:
            work(item)
        except Exception as error:
            if len(items) == 1 or not go_on or _stops_all(error):
                raise
            failed.append(str(name(item)))
            message = explained(error)[0]
            say_error(message if message.startswith(failed[-1]) else f"{failed[-1]}: {message}")
    if failed:
        more = f" and {len(failed) - MOST_NAMED} more" if len(failed) > MOST_NAMED else ""
        raise PipelineError(f"{len(failed)} of {len(items)} failed: {', '.join(failed[:MOST_NAMED])}{more}")


def _stops_all(error: Exception) -> bool:
    if isinstance(error, click.ClickException | click.Abort | BrokenPipeError):
        return True
    full = isinstance(error, OSError) and error.errno in FULL_DISK
    return full or (is_out_of_memory(error) and not re.search("cuda|cublas|cudnn|hip|mps", str(error), re.IGNORECASE))


def explained(error: BaseException) -> tuple[str, int]:
    """Returns the line for the user and the exit status. An unexpected error is also written to a log file."""
    if os.environ.get(DEBUG) == "1" and not isinstance(error, click.ClickException):
        print(_trace(error), file=sys.stderr)
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return "interrupted; the same command goes on where it was", 130
    if isinstance(error, Terminated):
        return "terminated; the same command goes on where it was", 143
    if isinstance(error, PipelineError):
        return str(error), 1
    if is_out_of_memory(error):
        context = click.get_current_context(silent=True)
        return _memory_line(error, context.find_root().invoked_subcommand if context else None), 1
    if isinstance(error, OSError) and error.errno is not None:
        hint = ": free some space, then run the same command again" if error.errno in FULL_DISK else ""
        return f"{error.filename or 'file system'}: {error.strerror}{hint}", 1
    return _unforeseen(error), 1


def _memory_line(error: BaseException, command: str | None) -> str:
    advice = LESS_MEMORY.get(command or "", "free some, or use a machine with more")
    return f"out of memory ({_first_line(error)}): {advice}"


def _unforeseen(error: BaseException) -> str:
    account = _account(error)
    path = _write_log(account)
    if path is None:
        print(account, file=sys.stderr)
    where = f"the full account is in {path}" if path else "no log file could be written; the full account is above"
    what = f"{type(error).__name__}: {_first_line(error)}"
    return f"unexpected error ({what}): this is a fault of the program, please report it; {where}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else lines[0][:197] + "..."


def _trace(error: BaseException) -> str:
    """Returns the traceback with all errors that led to this one, also those hidden by `from None`."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__suppress_context__ = cause.__cause__ is not None
        cause = cause.__cause__ or cause.__context__
    return "".join(traceback.format_exception(error))


def _account(error: BaseException) -> str:
    """Returns what a report of the fault needs, without passwords in URLs and without the environment."""
    versions = [f"{name} {_version(name)}" for name in VERSIONS]
    lines = [
        f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        f"{', '.join(versions)}, Python {platform.python_version()}, {platform.platform()}",
        f"command: {shlex.join(sys.argv)}",
        "",
        _trace(error),
    ]
    return re.sub(r"(://[^\s/@:]*):[^\s/@]*@", r"\1:***@", "\n".join(lines))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _write_log(text: str) -> Path | None:
    """Writes a file beside the downloads, or among the temporary files. Returns None if neither is writable."""
    for folder_of in (lambda: download_folder() / "logs", lambda: Path(tempfile.gettempdir())):
        with suppress(OSError, RuntimeError):  # RuntimeError: a user without a home
            folder = folder_of()
            folder.mkdir(parents=True, exist_ok=True)
            prefix = f"pipeline-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}-"
            descriptor, name = tempfile.mkstemp(".log", prefix, folder)
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return Path(name)
    return None


def say_error(message: str) -> None:
    with suppress(OSError):  # standard error is closed
        print(f"pipeline: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)


def show_every_character() -> None:
    """Prints characters that the console's encoding lacks as escapes, such as \\u266a, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # the descriptor of the stream is closed or another one
                stream.reconfigure(errors="backslashreplace")


def _stdout_is_closed() -> bool:
    """Returns whether standard output is closed. Drops the rest of the output then: Python would complain at its end."""
    try:
        sys.stdout.flush()
        return False
    except OSError:
        with suppress(OSError):  # a stream without a descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True


def _terminate(signum: int, frame: object) -> None:
    raise Terminated


@contextmanager
def _terminable() -> Iterator[None]:
    """Turns SIGTERM into an error within the block. By default it ends the process at once."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _errors_of_threads() -> Iterator[None]:
    """Prints an error of a library's thread as one line, too."""
    before = threading.excepthook
    threading.excepthook = lambda caught: say_error(explained(caught.exc_value or SystemExit())[0])
    try:
        yield
    finally:
        threading.excepthook = before
