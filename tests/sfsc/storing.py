"""Helpers to put and get over one session, and to change one reply."""

from __future__ import annotations

import io
from collections.abc import Callable

from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.base import PIECE
from sfsc.session.session import Session
from sfsc.session.waiting import Blocking
from sfsc.transfer.download import Downloads
from sfsc.transfer.source import Source
from sfsc.transfer.upload import Uploads
from tests.changes import Kind, is_kind
from tests.sfsc.simulator import DropConnection, Tamper

BIG = 3 * PIECE + 77


class Meanwhile(Blocking):
    """Does something else instead of a pause."""

    def __init__(self, other: Callable[[float], object]) -> None:
        self._other = other

    def pause(self, seconds: float) -> None:
        self._other(seconds)


def fetched(session: Session, name: str, version: int | None = None) -> bytes:
    target = io.BytesIO()
    Downloads(session).get(name, target, version=version)
    return target.getvalue()


def put(session: Session, content: bytes, name: str = "file", **how: int) -> int:
    return Uploads(session).put(io.BytesIO(content), name, **how).version


def once(kind: Kind, tamper: Tamper, nth: int = 0) -> Tamper:
    """Return a hook that changes only reply number `nth` to `kind`."""
    count = 0

    def hook(request: Request, reply: Reply) -> Reply:
        nonlocal count
        if is_kind(request, kind):
            count += 1
            if count == nth + 1:
                return tamper(request, reply)
        return reply

    return hook


def drop(_request: Request, _reply: Reply) -> Reply:
    raise DropConnection


def stopping(_request: Request, _reply: Reply) -> Reply:
    return Error("shutting-down", "the server is stopping")


def meanwhile(other: Session) -> Callable[[float], None]:
    """Return a pause before the next connection, in which another device puts the same file
    once."""
    waiting = [b"theirs"]

    def pause(_seconds: float) -> None:
        if waiting:
            put(other, waiting.pop())

    return pause


def items(count: int, size: int = 10) -> list[tuple[Source, str | None]]:
    return [(io.BytesIO(b"%d" % i * size), f"many/{i:03}") for i in range(count)]
