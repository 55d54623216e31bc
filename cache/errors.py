"""The one error type for anything that a user, a file or a configuration can cause."""


class PipelineError(ValueError):
    """Its text is one line: what was found, what was expected, what to do. The command line prints just that."""
