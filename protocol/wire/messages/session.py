"""Opening a session. The server sends first, so a client sends nothing to an unknown server."""

from __future__ import annotations

from typing import Annotated

from protocol.codec.fields import (
    AtMost,
    Between,
    Bytes16,
    Bytes32,
    Count,
    Exactly,
    OneOf,
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
    Proof,
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

    `rotated` means that the login used an older generation than the account has.
    """

    due: Count
    state: Annotated[str, OneOf(("due", "overdue", "forced", "rotated"))]
    reason: Text


@message(18)
class Session(Reply):
    """The session is open.

    `consistency` proves `checkpoint` from the client's `known_size`. `receipt` answers an Enroll
    (else None). `time` is the server's clock in unix seconds.
    """

    checkpoint: CheckpointNote
    consistency: Proof
    receipt: Receipt | None
    notice: Notice | None
    time: Count


@message(17, replies=(Session,))
class Login(Request):
    """Log in. `signature` is over records.login_body by the key of `generation`; 0 is the recovery
    key."""

    version: ProtocolVersion
    user: Principal
    generation: Annotated[int, Between(0, 2**31)]
    known_size: Count
    signature: Signature


@message(19, replies=(Session,))
class Enroll(Request):
    """Enrol a new user by a first statement and an invitation's token, which is not sent.

    `signature` is by the statement's own key. `proof` is HMAC-SHA256(SHA-256(token),
    records.enrol_proof_body). `tag_key` is the secret to which the statement's `tag_commit`
    commits. Sending the same statement again returns the same answer.
    """

    version: ProtocolVersion
    user: UserName
    statement: RecordBytes
    bundle: Annotated[bytes, AtMost(MAX_BUNDLE)]
    signature: Signature
    proof: Bytes32 = field(repr=False)
    tag_key: Bytes32 = field(repr=False)


@message(22)
class DeviceChallenge(Reply):
    """A secret of 32 bytes that only the device can open: HPKE to its X-Wing key, with
    records.device_login_info as info. For an unknown user or device the key is nobody's."""

    sealed: Annotated[bytes, Exactly(1168)]


@message(23, replies=(DeviceChallenge,))
class DeviceHello(Request):
    """Ask for a challenge, to log in with the X-Wing key of a device. Once on a connection."""

    version: ProtocolVersion
    user: UserName
    device_id: Bytes16


@message(24, replies=(Session,))
class DeviceLogin(Request):
    """Log in with the `secret` of the challenge that this connection gave to this device.

    The session is restricted: it gets the account's statements and its bundle, which is sealed to
    the device. So a device whose account keys the server does not know, because it was restored
    from a backup, finds the keys that it does know.
    """

    version: ProtocolVersion
    user: UserName
    device_id: Bytes16
    known_size: Count
    secret: Bytes32


@message(20)
class Pong(Reply):
    """The server responds; `time` is its clock in unix seconds."""

    time: Count


@message(21, replies=(Pong,))
class Ping(Request):
    """Check that the server responds."""


OPENING: tuple[type[Message], ...] = (Login, Enroll, DeviceHello, DeviceLogin)
