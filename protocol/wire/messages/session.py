"""Opening a session. The server sends first, so a client sends nothing to an unknown server."""

from __future__ import annotations

from typing import Annotated

from protocol.codec.fields import (
    AtMost,
    Between,
    Bytes16,
    Bytes32,
    Count,
    OneOf,
    Possession,
    Principal,
    Signature,
    Struct,
    Text,
    UserName,
)
from protocol.codec.values import field
from protocol.wire.messages.base import (
    MAX_BUNDLE,
    CheckpointNote,
    Message,
    Receipt,
    RecordBytes,
    Reply,
    Request,
    message,
)

PROTOCOL_VERSION = 2
ProtocolVersion = Annotated[int, Between(1, 255)]


class Limits(Struct):
    """Limits and key policy of a server.

    `window` is the bytes of Data that a client may have unanswered on one connection. From
    `max_age` and `grace` (seconds) and `jitter` (percent) the client sets a statement's `due` and
    `expires`.
    """

    window: Count
    max_age: Count
    grace: Count
    jitter: Annotated[int, Between(0, 100)]


@message(16)
class Welcome(Reply):
    """The server's first frame (request id 0): its statement, signed by its long-lived key."""

    versions: Annotated[tuple[ProtocolVersion, ...], AtMost(16)]
    statement: RecordBytes
    signature: Signature
    challenge: Bytes32
    limits: Limits


class Notice(Struct):
    """State of this user's keys; `due` is in unix seconds.

    `rotated` means that the device has keys of another generation than the account's newest.
    """

    due: Count
    state: Annotated[str, OneOf(("due", "overdue", "forced", "rotated"))]
    reason: Text


@message(18)
class Session(Reply):
    """The session is open.

    `receipt` shows the entry of this login or enrolment, and the log from the client's `known_size`
    on; None if the server can write nothing to its log at present, and for operators. `time` is the
    server's clock in unix seconds.
    """

    checkpoint: CheckpointNote
    receipt: Receipt | None
    notice: Notice | None
    time: Count


@message(17, replies=(Session,))
class Login(Request):
    """Log in. `signature` is over records.login_body by the key of the device `device_id`, which
    the account's newest statement names. `generation` is that of the account keys that the device
    has; the session is restricted if it is not the newest.

    Without `device_id` the account's own key of the newest generation signs, or for generation 0
    its recovery key. Such a session is good only to add a device, or to recover. The operator has
    no device, and generation 1.
    """

    version: ProtocolVersion
    user: Principal
    device_id: Bytes16 | None
    generation: Annotated[int, Between(0, 2**31)]
    known_size: Count
    signature: Signature


@message(19, replies=(Session,))
class Enroll(Request):
    """Enrol a new user by a first statement and an invitation's token, which is not sent.

    `signature` is by the statement's own key, `possession` by its recovery key if it names one.
    `proof` is HMAC-SHA256(SHA-256(token), records.enrol_proof_body). `tag_key` is the secret to
    which the statement's `tag_commit` commits. Sending the same statement again returns the same
    answer.
    """

    version: ProtocolVersion
    user: UserName
    statement: RecordBytes
    bundle: Annotated[bytes, AtMost(MAX_BUNDLE)]
    signature: Signature
    proof: Bytes32 = field(repr=False)
    tag_key: Bytes32 = field(repr=False)
    possession: Possession = b""


@message(20)
class Pong(Reply):
    """The server responds; `time` is its clock in unix seconds."""

    time: Count


@message(21, replies=(Pong,))
class Ping(Request):
    """Check that the server responds."""


OPENING: tuple[type[Message], ...] = (Login, Enroll)
