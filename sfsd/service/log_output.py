"""Log output of the daemon on stderr: lines of text, or one JSON object a line.

If stderr is the journal of systemd, each line begins with its priority, such as ``<4>`` (see
sd-daemon(3)), and text has no time, since the journal has it. Messages may name what clients sent,
so every line is made printable.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from protocol.codec.terminal_text import printable

_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
"""Least level and priority of syslog(3)."""
_DEBUG: Final = 7


def configure(log_format: str, level: str, *, stream: TextIO | None = None) -> None:
    """Send the log of this process to `stream`, by default stderr.

    `log_format` is ``text`` or ``json``; `level` is ``debug``, ``info``, ``warning`` or ``error``.
    A program that has set up its logging already keeps it.
    """
    if logging.getLogger().hasHandlers():
        return
    stream = stream or sys.stderr
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    formatter.in_journal = is_journal(stream, os.environ)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logging.getLogger().addHandler(handler)
    set_level(level)


def set_level(level: str) -> None:
    """Leave out messages below `level` from now on."""
    logging.getLogger().setLevel(level.upper())


def event(name: str, **fields: object) -> dict[str, Any]:
    """Return the `extra` of a message that says a named event. docs/operating.md lists the names
    and their fields, which are text, numbers or None."""
    return {"event": name, "fields": fields}


def is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Return whether `stream` is connected to the journal: JOURNAL_STREAM, which other processes
    inherit too, names its device and inode."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or without a descriptor
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _priority(level: int) -> int:
    return next((priority for least, priority in _PRIORITIES if level >= least), _DEBUG)


class _Formatter(logging.Formatter):
    """Adds the priority of a message to each of its lines if they go to the journal."""

    in_journal = False

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_priority(record.levelno)}>" if self.in_journal else ""
        return "\n".join(prefix + line for line in self.lines(record))

    def lines(self, record: logging.LogRecord) -> list[str]:
        """Return the lines of a message, each of them printable."""
        raise NotImplementedError

    def _error(self, record: logging.LogRecord) -> str:
        return self.formatException(record.exc_info) if record.exc_info else ""


class TextFormatter(_Formatter):
    """Writes ``2026-11-24 10:30:00.123+01:00 WARNING message``, and each line of a traceback."""

    def lines(self, record: logging.LogRecord) -> list[str]:
        moment = datetime.fromtimestamp(record.created, UTC).astimezone()
        when = "" if self.in_journal else f"{moment.isoformat(' ', 'milliseconds')} "
        text = f"{when}{record.levelname} {record.getMessage()}"
        return [printable(line) for line in (text, *self._error(record).splitlines())]


class JsonFormatter(_Formatter):
    """Writes an object with the members time (UTC), level, module, event, message, fields and
    error, always all of them."""

    def lines(self, record: logging.LogRecord) -> list[str]:
        moment = datetime.fromtimestamp(record.created, UTC)
        shown = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "module": record.name,
            "event": getattr(record, "event", ""),
            "message": record.getMessage(),
            "fields": getattr(record, "fields", {}),
            "error": self._error(record),
        }
        return [json.dumps(shown, separators=(",", ":"))]
