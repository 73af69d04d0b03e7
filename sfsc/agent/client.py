"""Requests of commands to the agent, and its start."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import Final

from protocol.codec.errors import QuantityError
from protocol.codec.quantities import parse_duration
from protocol.codec.values import Value
from sfsc.agent.messages import (
    GET,
    KEEP,
    LOCK,
    MAX_TIMEOUT,
    STATUS,
    STOP,
    AgentAnswer,
    AgentRequest,
    frame,
    receive_answer,
)
from sfsc.agent.place import (
    check_folder,
    check_length,
    is_in_runtime_folder,
    new_socket,
    peer_is_this_user,
    require_support,
    socket_path,
)
from sfsc.errors import AgentUnavailable, LocalError, UsageError

AGENT: Final = "SFSC_AGENT"
AGENT_TIMEOUT: Final = "SFSC_AGENT_TIMEOUT"
DEFAULT_TIMEOUT: Final = 15 * 60
"""Seconds after its last use for which the agent holds a key."""
_SECONDS: Final = 10.0
"""Time for a request in seconds. A new agent needs a tenth of a second to start."""


class AgentStatus(Value):
    """State of the agent of a home. `unlocked`: it holds the key of the present keyring's file, for
    `seconds_left` after now; `holds_key`: that of some file. `memory` is as in `AgentAnswer`; `pid`
    and `memory` are None if no agent runs."""

    running: bool
    unlocked: bool
    holds_key: bool
    seconds_left: int
    pid: int | None
    memory: str | None
    socket: str


def parse_timeout(text: str) -> int:
    """Return the seconds of a time-out such as ``90s``, ``15m`` or ``8h``. Raises `UsageError`,
    also for none and for more than 7 days."""
    try:
        seconds = parse_duration(text)
    except QuantityError as exc:
        raise UsageError(exc.cause, exc.hint) from exc
    if not 0 < seconds <= MAX_TIMEOUT:
        raise UsageError(f"not a time-out: {text}", "use 1s to 7d")
    return seconds


def default_timeout() -> int:
    """Return the seconds of SFSC_AGENT_TIMEOUT, else `DEFAULT_TIMEOUT`. Raises `UsageError`."""
    stated = os.environ.get(AGENT_TIMEOUT)
    return DEFAULT_TIMEOUT if stated is None else parse_timeout(stated)


def agent_is_used() -> bool:
    """Return whether commands ask an agent that runs: SFSC_AGENT is not 0."""
    return os.environ.get(AGENT) != "0"


def agent_starts_itself() -> bool:
    """Return whether commands start an agent: SFSC_AGENT is 1."""
    return os.environ.get(AGENT) == "1"


def find_key(home: Path, lock_id: bytes) -> bytes | None:
    """Return the key that the agent of `home` holds for the keyring's file with the header digest
    `lock_id` (32 bytes), None if it has none or does not run. Raises `AgentUnavailable`."""
    answer = _ask(home, AgentRequest(GET, lock_id))
    return (answer.key or None) if answer is not None else None


def keep_key(home: Path, lock_id: bytes, key: bytes, timeout: int) -> bool:
    """Give the agent of `home` a key (32 bytes) for `timeout` seconds after its last use. Return
    whether one runs. Raises `AgentUnavailable`."""
    return _ask(home, AgentRequest(KEEP, lock_id, key, timeout)) is not None


def lock(home: Path) -> bool:
    """Have the agent of `home` forget its key; return whether one runs. Raises
    `AgentUnavailable`."""
    return _ask(home, AgentRequest(LOCK)) is not None


def stop(home: Path) -> bool:
    """End the agent of `home`; return whether one ran. Raises `AgentUnavailable`."""
    return _ask(home, AgentRequest(STOP)) is not None


def status(home: Path, lock_id: bytes | None) -> AgentStatus:
    """Return the state of the agent of `home`, whose keyring's file has the header digest `lock_id`
    (None: it has no passphrase, or does not exist). Raises `AgentUnavailable`."""
    place = str(socket_path(home))
    answer = _ask(home, AgentRequest(STATUS))
    if answer is None:
        return AgentStatus(False, False, False, 0, None, None, place)
    holds = bool(answer.lock_id)
    unlocked = holds and answer.lock_id == lock_id
    left = answer.left if unlocked else 0
    return AgentStatus(True, unlocked, holds, left, answer.pid, answer.memory, place)


def _ask(home: Path, request: AgentRequest) -> AgentAnswer | None:
    """Send a request to the agent of `home` and return the answer; None if no agent runs. Nothing
    is sent to a process of another user, or through a folder that others may write."""
    path = socket_path(home)
    if not os.path.lexists(path):
        return None
    check_folder(path)
    with new_socket() as connection:
        connection.settimeout(_SECONDS)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None  # it has ended
        except OSError as exc:
            raise _unavailable(str(exc.strerror or exc)) from exc
        if not peer_is_this_user(connection):
            raise _unavailable("it is a process of another user")
        try:
            connection.sendall(frame(request))
            return receive_answer(connection)
        except (OSError, ValueError) as exc:
            raise _unavailable(str(exc)) from exc


def _unavailable(why: str) -> AgentUnavailable:
    return AgentUnavailable(f"the agent does not answer: {why}")


def start(home: Path) -> bool:
    """Start the agent of `home` unless one runs; return whether it was started. It holds no key
    yet. Raises `AgentUnavailable` or `LocalError`."""
    from filelock import FileLock, Timeout

    require_support()
    path = socket_path(home)
    check_length(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(path)
        with FileLock(path.with_suffix(".lock"), timeout=_SECONDS):
            if _ask(home, AgentRequest(STATUS)) is not None:
                return False
            path.unlink(missing_ok=True)
            with new_socket() as listener:
                listener.bind(str(path))
                path.chmod(0o600)
                listener.listen()
                _run(listener, path)
    except Timeout as exc:
        raise LocalError("another sfsc process is starting the agent") from exc
    except OSError as exc:
        raise LocalError(f"cannot start the agent at {path}: {exc.strerror}") from exc
    if _ask(home, AgentRequest(STATUS)) is None:
        raise AgentUnavailable("the agent has ended at once", "run `python -m sfsc.agent.process`")
    return True


def _run(listener: socket.socket, path: Path) -> None:
    import subprocess  # takes milliseconds, and most commands find an agent that runs

    from sfsc.agent.process import command_line

    with contextlib.ExitStack() as stack:
        session = -1 if is_in_runtime_folder(path) else _session_descriptor()
        if session >= 0:
            stack.callback(os.close, session)
        kept = [fd for fd in (listener.fileno(), session) if fd >= 0]
        # Its environment holds no passphrase, and its folder no file system in use.
        variables = {name: text for name, text in os.environ.items() if name[:5] != "SFSC_"}
        process = subprocess.Popen(
            command_line(listener.fileno(), path, session),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=variables,
            pass_fds=kept,
            start_new_session=True,
        )
        process.returncode = 0  # it outlives this process: not waited for, and no warning


def _session_descriptor() -> int:
    """Return a descriptor that is readable once the leader of this process's session has ended: a
    login shell, or the shell of a terminal. -1 if it is this process, or if the system has no such
    descriptors."""
    if sys.platform == "linux":
        leader = os.getsid(0)
        if leader not in (0, os.getpid()):
            with contextlib.suppress(OSError):
                return os.pidfd_open(leader)
    return -1
