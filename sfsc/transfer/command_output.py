"""Output of a command as the source of an upload, which fails unless the command succeeds."""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Sequence
from typing import Final, cast

from sfsc.closing import Closing
from sfsc.errors import CommandFailed, LocalError

_GRACE: Final = 5.0
"""Seconds that a command has to end after SIGTERM."""
_READ_AHEAD: Final = 1 << 20


class CommandOutput(Closing):
    """Starts a command and reads its stdout; stdin and stderr are those of this process.

    The end of the output counts only if the command then ends with exit code 0: else `readinto`
    raises `CommandFailed` there, so nothing of it can be committed. Closing it before its end stops
    the command.
    """

    def __init__(self, command: str | Sequence[str]) -> None:
        """A text is run by the system's shell, a list of words directly. Raises `LocalError`."""
        try:
            self._process = subprocess.Popen(
                command, shell=isinstance(command, str), stdout=subprocess.PIPE, bufsize=_READ_AHEAD
            )
        except (OSError, ValueError) as exc:
            what = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise LocalError(f"the command cannot be started: {what}") from exc
        self._output = cast(io.BufferedReader, self._process.stdout)

    def readinto(self, buffer: memoryview, /) -> int:
        """Read like a file. Raises `CommandFailed` at the end if the command has failed."""
        count = self._output.readinto(buffer)
        if not count and len(buffer):
            _check(self._process.wait())
        return count

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """Stop the command if it still runs. Idempotent."""
        self._output.close()
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
                return
            self._process.kill()
            self._process.wait()


def _check(code: int) -> None:
    """Raise `CommandFailed` unless a command succeeded. `code` is negative for a signal."""
    if code < 0:
        cause = f"the command was ended by signal {-code} (exit code {128 - code})"
        raise CommandFailed(cause, code=128 - code)
    if code:
        raise CommandFailed(f"the command failed with exit code {code}", code=code)
