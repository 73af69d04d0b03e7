"""Log of the library: warnings, and the steps of its work for a program that wants them."""

from __future__ import annotations

import sys

from protocol.codec.terminal_text import printable


def log_warning(what: str, cause: str, hint: str) -> None:
    """Log a warning, with control characters escaped. A program without logging, such as `sfsc`,
    prints it on stderr."""
    import logging  # takes milliseconds that other commands need not spend

    logging.getLogger("sfsc").warning("%s", printable(f"warning: {what}: {cause}; {hint}"))


def log_step(text: str) -> None:
    """Log a step of the work at level INFO, with control characters escaped. It names no secret: no
    key, passphrase, content, or name of a file. Does nothing in a program without logging."""
    if (logging := sys.modules.get("logging")) is not None:
        logging.getLogger("sfsc").info("%s", printable(text))


def milliseconds(seconds: float) -> str:
    """Format the time that a step took: ``12 ms``."""
    return f"{seconds * 1000:.0f} ms"
