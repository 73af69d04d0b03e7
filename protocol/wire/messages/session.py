"""Opening a session: the server speaks first, so a client sends nothing to a stranger."""

from __future__ import annotations

from typing import Annotated, ClassVar

from protocol.codec.fields import (
    AtMost,
    Between,
    Bytes32,
    Count,
    OneOf,
    Principal,
    Signature,
    Struct,
    Text,
    UserName,
)
from protocol.wire.messages.base import (
    MAX_BUNDLE,
    CheckpointNote,
    Message,
    Proof,
    Receipt,
    RecordBytes,
    Reply,
    Request,
    message,
)

PROTOCOL_VERSION = 1
ProtocolVersion = Annotated[int, Between(1, 255)]


class Limits(Struct):
    """What this server grants and demands.

    `window`: bytes of Data a client may have unanswered on one connection. `max_age` and `grace`
    are seconds, `jitter` percent: from them the client sets a statement's `due` and `expires`.
    """

    window: Count
    max_age: Count
    grace: Count
    jitter: Annotated[int, Between(0, 100)]


@message(16)
class Welcome(Reply):
    """The server's first frame (request id 0): what it is, signed by its long-lived key."""

    versions: Annotated[tuple[ProtocolVersion, ...], AtMost(16)]
    statement: RecordBytes
    signature: Signature
    challenge: Bytes32
    limits: Limits


class Notice(Struct):
    """What is to be said of this user's keys: `due`, in unix seconds, and how they stand; `rotated`
    where the login was with an older generation than the account has."""

    due: Count
    state: Annotated[str, OneOf(("due", "overdue", "forced", "rotated"))]
    reason: Text


@message(18)
class Session(Reply):
    """The session is open.

    `consistency` proves `checkpoint` from the client's `known_size`. `receipt` answers an Enroll.
    `time` is the server's clock, unix seconds.
    """

    checkpoint: CheckpointNote
    consistency: Proof
    receipt: Receipt | None
    notice: Notice | None
    time: Count


@message(17)
class Login(Request):
    """`signature` is over records.login_body by the key of `generation` (0: the recovery key)."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Session,)

    version: ProtocolVersion
    user: Principal
    generation: Annotated[int, Between(0, 2**31)]
    known_size: Count
    signature: Signature


@message(19)
class Enroll(Request):
    """First statement of a new user, allowed by an invitation's token, which does not travel.

    `signature` is the statement's by its own key; `proof` = HMAC-SHA256(SHA-256(token),
    records.enrol_proof_body). The same statement again gets the same answer.
    """

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Session,)

    version: ProtocolVersion
    user: UserName
    statement: RecordBytes
    bundle: Annotated[bytes, AtMost(MAX_BUNDLE)]
    signature: Signature
    proof: Bytes32


@message(20)
class Pong(Reply):
    """The server is there; `time` is its clock, unix seconds."""

    time: Count


@message(21)
class Ping(Request):
    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Pong,)


OPENING: tuple[type[Message], ...] = (Login, Enroll)
