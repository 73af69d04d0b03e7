"""Messages between commands and the agent: one request and one answer a connection, in frames."""

from __future__ import annotations

import socket
from typing import Annotated, Final

from protocol.codec.errors import EncodingError, FrameError, MessageError
from protocol.codec.fields import (
    AtMost,
    Between,
    Count,
    OneOf,
    Struct,
    empty_or_hash,
)
from protocol.codec.values import field
from protocol.wire.frames import FrameReader, encode_frame

MAX_BODY: Final = 256
"""Longest body in bytes, of a request and of an answer."""
MAX_TIMEOUT: Final = 7 * 86_400
"""Longest time-out in seconds."""
GET, KEEP, LOCK, STATUS, STOP = "get", "keep", "lock", "status", "stop"
LOCKED, KEY_LOCKED, UNLOCKED = "locked", "key-locked", "unlocked"

_MaybeHash = Annotated[bytes, AtMost(32), empty_or_hash]


class AgentRequest(Struct):
    """`get` the key of the keyring `lock_id`, `keep` a key for `timeout` seconds after its last
    use, `lock` (forget it), show the `status`, or `stop`.

    `lock_id` is the digest in the header of the keyring's file, which changes with its passphrase.
    It is empty, and so is `key`, in requests that do not need it.
    """

    action: Annotated[str, OneOf((GET, KEEP, LOCK, STATUS, STOP))]
    lock_id: _MaybeHash = b""
    key: _MaybeHash = field(default=b"", repr=False)
    timeout: Annotated[int, Between(0, MAX_TIMEOUT)] = 0

    def __post_init__(self) -> None:
        needed = {GET: (True, False, False), KEEP: (True, True, True)}
        given = bool(self.lock_id), bool(self.key), bool(self.timeout)
        if given != needed.get(self.action, (False, False, False)):
            raise MessageError(f"a request `{self.action}` with other fields than it needs")


class AgentAnswer(Struct):
    """State of the agent after a request. `key` is empty unless a `get` found it.

    The key that the agent holds is of the keyring `lock_id` (empty: it holds none), and is
    forgotten `left` seconds from now unless it is used. `memory` tells whether the agent's memory
    is kept out of swap: all of it (`locked`), the page of the key (`key-locked`), or nothing.
    """

    key: _MaybeHash = field(repr=False)
    lock_id: _MaybeHash
    left: Count
    pid: Count
    memory: Annotated[str, OneOf((LOCKED, KEY_LOCKED, UNLOCKED))]


def frame(message: Struct) -> bytes:
    """Return the frame of a message."""
    return b"".join(encode_frame([message.encode()], MAX_BODY))


def new_reader() -> FrameReader:
    """Return a reader of frames of at most `MAX_BODY` bytes."""
    return FrameReader(MAX_BODY)


def receive_answer(connection: socket.socket) -> AgentAnswer:
    """Read one answer from a blocking socket. Raises `OSError`, and `ValueError` for anything that
    is no answer."""
    reader = new_reader()
    try:
        while (body := reader.next_body()) is None:
            count = connection.recv_into(reader.get_buffer())
            if not count:
                raise ValueError("the connection was closed")
            reader.buffer_updated(count)
        return AgentAnswer.parse(bytes(body))
    except (FrameError, EncodingError, MessageError) as exc:
        raise ValueError(str(exc)) from exc
