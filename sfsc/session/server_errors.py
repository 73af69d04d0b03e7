"""What a server's `Error` stands for here: one exception for each code."""

from __future__ import annotations

from typing import Final, TypeVar

from protocol.wire.messages import Error, Reply
from protocol.wire.messages.log import LogProven
from sfsc.errors import (
    BadReceipt,
    ConflictError,
    Denied,
    IntegrityError,
    NotFound,
    ProtocolFailure,
    QuotaExceeded,
    SfscError,
    StaleGeneration,
    TokenRefused,
    Unreachable,
)
from sfsc.trust.server_log import TOLD

_Reply = TypeVar("_Reply", bound=Reply)

# What is deleted is trash, and counts as what is there.
_ROOM: Final = (
    "make room by `rm --purge` or `history --prune`, or ask the operator: `sfsd user quota`; an"
    " upload that was broken off is dropped within the hour"
)
_REFUSALS: Final[dict[str, tuple[type[SfscError], str | None]]] = {
    "not-allowed": (Denied, None),
    "refused": (Denied, "the operator can tell why: `sfsd user show`"),
    "denied": (Denied, None),
    "token": (TokenRefused, "ask the operator for a new invitation: `sfsd user add`"),
    "not-found": (NotFound, None),
    "quota": (QuotaExceeded, _ROOM),
    "damaged": (IntegrityError, "the operator finds out more with `sfsd fsck`"),
    "conflict": (ConflictError, "look what is there now, and run the command again"),
    "changed": (ConflictError, "run the command again"),
    "stale-recipient": (ConflictError, "run the command again"),
    "stale-generation": (StaleGeneration, "this account's keys were rotated elsewhere"),
    "rotation-required": (Denied, "rotate the keys first"),
    "upload-lost": (Unreachable, "run the command again"),
    "busy": (Unreachable, "run the command again in a moment"),
    "unavailable": (Unreachable, "the operator must look at the server: `sfsd status`"),
    "shutting-down": (Unreachable, "run the command again in a moment"),
}


def refusal(error: Error) -> SfscError:
    """The exception that an `Error` stands for. A code that we should never meet is a failure of
    the protocol: one of the two sides is wrong about it."""
    kind, hint = _REFUSALS.get(error.code, (ProtocolFailure, None))
    cause = error.text or error.code
    if issubclass(kind, ConflictError):
        head = error.head
        shown = None if head is None else (head.head or head.content).record
        return kind(cause, hint, head=shown)
    return kind(cause, hint)


def answered(reply: Reply, kind: type[_Reply]) -> _Reply:
    """`reply`, which must be a `kind`. Raises what an `Error` stands for."""
    if isinstance(reply, Error):
        raise refusal(reply)
    if not isinstance(reply, kind):  # the connection's table of replies lets none through
        raise ProtocolFailure(f"the server answers with {type(reply).__name__}")
    return reply


def proof_in(reply: Reply) -> tuple[bytes, ...]:
    """The proof that the log gives. Raises `BadReceipt` where it declines, as `answered` else."""
    if isinstance(reply, Error) and reply.code == "bad-request":
        raise BadReceipt("the server does not prove that its log is one", TOLD)
    return answered(reply, LogProven).proof
