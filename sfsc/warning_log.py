"""Warnings: what the user should know although the command goes on."""

from __future__ import annotations

from protocol.codec.terminal_text import printable


def log_warning(what: str, cause: str, hint: str) -> None:
    """Log a warning, with control characters escaped. A program without logging, such as `sfsc`,
    prints it on stderr."""
    import logging  # takes milliseconds that other commands need not spend

    logging.getLogger("sfsc").warning("%s", printable(f"warning: {what}: {cause}; {hint}"))
