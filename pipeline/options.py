"""What the command line's modules share."""

import click

restart_option = click.option(
    "--restart", is_flag=True, help="Where the output was made with other settings, remove it and begin again."
)


def examples(text: str) -> str:
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in text.strip().splitlines())


def printable(text: str) -> str:
    """On one line, and for a terminal, which an id or a name from elsewhere must not command."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
