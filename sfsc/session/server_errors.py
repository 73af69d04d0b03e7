"""Map of the server's error codes to exceptions, built from the `server_codes` of each class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeVar

from protocol.wire.messages import Error, Reply
from protocol.wire.messages.base import DamagedVersion
from protocol.wire.messages.log import LogProven
from sfsc.errors import BadReceipt, ConflictError, Damaged, ProtocolFailure, SfscError, ShareRefused
from sfsc.trust.server_log import REPORT

_Reply = TypeVar("_Reply", bound=Reply)


def _subclasses(kind: type[SfscError]) -> Iterator[type[SfscError]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _subclasses(subclass)


_BY_CODE: Final[dict[str, tuple[type[SfscError], str | None]]] = {
    code: (kind, hint)
    for kind in _subclasses(SfscError)
    for code, hint in vars(kind).get("server_codes", {}).items()
}
"""Error code -> (exception class, hint)."""


def to_exception(error: Error) -> SfscError:
    """Return the exception for an `Error`. An unexpected code gives `ProtocolFailure`: one of the
    two sides has a bug."""
    kind, hint = _BY_CODE.get(error.code, (ProtocolFailure, None))
    cause = error.text or error.code
    if issubclass(kind, Damaged):
        if error.damaged is not None:
            return damaged_version(error.damaged)
        return kind(cause, "the operator finds out more with `sfsd fsck`")
    if issubclass(kind, ConflictError):
        head = error.head
        shown = None if head is None else (head.head or head.content).record
        return kind(cause, hint, head=shown)
    if issubclass(kind, ShareRefused):
        return kind(cause, hint, readers=error.readers)
    return kind(cause, hint)


def damaged_version(place: DamagedVersion) -> Damaged:
    """Return the exception for a version that the server calls damaged."""
    cause = f"version {place.version} of the file is damaged on the server"
    hint = (
        "ask the operator to restore it; otherwise its owner gives it up by "
        f"`sfsc rm --purge --damaged {place.file_id}`, and can store the file again"
    )
    return Damaged(cause, hint, file_id=place.file_id, version=place.version)


def expect_reply(reply: Reply, kind: type[_Reply]) -> _Reply:
    """Return `reply`, which must be a `kind`. Raises the exception of an `Error`."""
    if isinstance(reply, Error):
        raise to_exception(reply)
    if not isinstance(reply, kind):  # unreachable: `Connection` checks the type of each reply
        raise ProtocolFailure(f"the server sent an unexpected {type(reply).__name__}")
    return reply


def expect_proof(reply: Reply) -> tuple[bytes, ...]:
    """Return the proof in a reply of the log. Raises `BadReceipt` if the server declines, otherwise
    as `expect_reply`."""
    if isinstance(reply, Error) and reply.code == "bad-request":
        raise BadReceipt("the server does not prove that its log is append-only", REPORT)
    return expect_reply(reply, LogProven).proof
