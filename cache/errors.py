"""The one error type for anything that a user, a file or a configuration can cause, and what such errors share."""

import errno
import re

_OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|(can't|cannot) allocate memory|bad_alloc|ALLOC_FAILED|could not create a primitive"
    r"|can't start new thread",
    re.IGNORECASE,
)


class PipelineError(ValueError):
    """An error that a user can mend. Its text is one line: what was found, what was expected, what to do."""


def how_to_install(extra: str) -> str:
    """Returns the command that brings an extra, in the project's folder: the package is on no index."""
    return f"pip install -c constraints.txt -e '.[{extra}]'"


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether the host or a device ran out of memory, by type or text: libraries have no common error type."""
    if isinstance(error, PipelineError):
        return False
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | OSError | ImportError) and bool(_OUT_OF_MEMORY.search(str(error)))
