"""Runs `sfsc` on a terminal of its own, and types the answers to its questions."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness import CommandFailed, command, environment

_SECONDS = 60.0
OWN_TERMINAL = 'exec 3<>"$0" 3>&-; exec "$@"'
"""Script of `sh`, with the name of a terminal and a command: the first terminal that the leader of
a session opens becomes that of the session."""


@dataclass(frozen=True)
class Dialogue:
    """A command that has ended: what its terminal showed, and what went to stdout and stderr."""

    code: int
    screen: str
    stdout: str
    stderr: str


def converse(
    home: Path,
    *arguments: str | Path,
    answers: Sequence[tuple[str, str]] = (),
    stdin: bytes | None = None,
    code: int = 0,
    own_terminal: bool = True,
    variables: Mapping[str, str] | None = None,
) -> Dialogue:
    """Run `sfsc` with stdout and stderr redirected. Type each answer once its question is shown.

    stdin is the terminal, or a pipe with the bytes `stdin`. Without `own_terminal` the terminal is
    only that, and the session has none. Raises `CommandFailed` unless the exit
    code is `code` and every question was asked, in this order.
    """
    ours, theirs = pty.openpty()
    start = ["sh", "-c", OWN_TERMINAL, os.ttyname(theirs)] if own_terminal else []
    process = subprocess.Popen(
        [*start, *command("sfsc"), *map(str, arguments)],
        stdin=theirs if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment({"SFSC_HOME": str(home), "SFSC_AUTO_ROTATE": "0", **(variables or {})}),
        start_new_session=True,
        pass_fds=(theirs,),  # reading `ours` fails when nobody has the other end open
    )
    os.close(theirs)
    if stdin is not None:
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        process.stdin = None
    shown, until = "", time.monotonic() + _SECONDS
    unanswered, seen = list(answers), 0
    with contextlib.suppress(OSError):  # EIO: the command has ended
        while select.select([ours], [], [], max(0.0, until - time.monotonic()))[0]:
            shown += os.read(ours, 4096).decode()
            while unanswered and (at := shown.find(unanswered[0][0], seen)) >= 0:
                seen = at + len(unanswered[0][0])
                os.write(ours, unanswered.pop(0)[1].encode() + b"\n")
    os.close(ours)
    if time.monotonic() >= until:
        process.kill()
    stdout, stderr = process.communicate(timeout=_SECONDS)
    done = Dialogue(process.returncode, shown, stdout.decode(), stderr.decode())
    if done.code != code or unanswered:
        asked = f"; not asked: {unanswered}" if unanswered else ""
        raise CommandFailed(f"sfsc {arguments}: exit {done.code}, expected {code}{asked}\n{done}")
    return done
