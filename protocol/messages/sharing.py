"""Other people: their identity chains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from protocol.fields import AtMost, Count, Signature, Struct, UserName
from protocol.messages.base import Checkpoint, Proof, RecordBytes, Reply, Request, message


@dataclass(frozen=True, slots=True)
class SignedStatement(Struct):
    """A statement's exact bytes, its signatures (own key first), and the proof of its log entry."""

    statement: RecordBytes
    signatures: Annotated[tuple[Signature, ...], AtMost(2)]
    index: Count
    line: Annotated[bytes, AtMost(64 * 1024)]
    inclusion: Proof


@message(81)
@dataclass(frozen=True, slots=True)
class Identity(Reply):
    """A user's statements in order from `first` on, each proven in `checkpoint`."""

    statements: Annotated[tuple[SignedStatement, ...], AtMost(8)]
    checkpoint: Checkpoint
    consistency: Proof
    next: Count


@message(80)
@dataclass(frozen=True, slots=True)
class Lookup(Request):
    """The identity chain of `user` from statement number `first` (≥ 1) on."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Identity,)

    user: UserName
    first: Count
