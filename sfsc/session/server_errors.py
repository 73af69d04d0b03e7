"""Map of the server's error codes to exceptions: `server_codes` of each class says which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeVar

from protocol.wire.messages import Error, Reply
from protocol.wire.messages.log import LogProven
from sfsc.errors import BadReceipt, ConflictError, ProtocolFailure, SfscError
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
"""Exception class and hint for each error code, as the classes state them."""


def refusal(error: Error) -> SfscError:
    """The exception that an `Error` stands for. A code that we should never meet is a failure of
    the protocol: one of the two sides is wrong about it."""
    kind, hint = _BY_CODE.get(error.code, (ProtocolFailure, None))
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
        raise BadReceipt("the server does not prove that its log is one", REPORT)
    return answered(reply, LogProven).proof
