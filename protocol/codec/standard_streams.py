"""Standard streams that are closed, full, or have a narrow encoding: none ends in a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import TextIO


def open_closed_streams() -> None:
    """Open the null device in place of each standard stream that the caller closed (``>&-``).
    Otherwise the next file or socket would get its descriptor, and the stream's output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def accept_any_text() -> None:
    """Show characters that the encoding of stdout lacks, as for a pipe on Windows, as escapes, and
    pass on bytes of stdin that are not text."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # a calling program may have replaced it
            stream.reconfigure(errors=errors)


def finish_stdout() -> None:
    """Flush stdout, or discard what it cannot write: Python would flush it again at exit, print the
    error and change the exit code."""
    _flush_or_discard(sys.stdout)


def print_error(text: str) -> None:
    """Print `text` and a line break on stderr. If that fails, nobody can be told, and the exit code
    is still right."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
    _flush_or_discard(sys.stderr)


def was_raised_by(exc: BaseException, function: Callable[..., object]) -> bool:
    """Return whether `exc` left a call of `function`, such as `click.echo`."""
    code = getattr(function, "__code__", None)
    return any(frame.f_code is code for frame, _ in traceback.walk_tb(exc.__traceback__))


def _flush_or_discard(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
