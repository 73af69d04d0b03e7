"""Opening of a connection: dial an address, verify that the server is the pinned one, sign the
login."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from protocol.codec.errors import MessageError
from protocol.records.invitation import parse_address
from protocol.records.records import device_login_info, login_body
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Reply
from protocol.wire.messages import session as opening
from sfsc.errors import KeyringDamaged, SfscError
from sfsc.keys.keyring import DeviceKey
from sfsc.session.limits import Timeouts
from sfsc.session.retry import LOST
from sfsc.session.server_errors import expect_reply
from sfsc.trust.server_log import ServerTrust
from sfsc.trust.state import ClientState

if TYPE_CHECKING:
    from sfsc.session.transport import Transport

DAY: Final = 86_400
_SHORTEST, _LONGEST = DAY, 730 * DAY


def build_login(
    transport: Transport, server: bytes, user: str, generation: int, key: SigningKey, known: int
) -> tuple[opening.Login, bytes]:
    """Return a login with the `key` of a `generation` (0: the recovery key), and the bytes that it
    signs for this connection. `known` is the size of the log that the client remembers."""
    body = login_body(
        server=server,
        spki=transport.peer_spki_sha256,
        welcome=transport.welcome_sha256,
        version=opening.PROTOCOL_VERSION,
        user=user,
        generation=generation,
    )
    signature = key.sign(Label.LOGIN, body)
    return opening.Login(opening.PROTOCOL_VERSION, user, generation, known, signature), body


def log_in_with_device(
    transport: Transport, server: bytes, user: str, device: DeviceKey, known: int
) -> Reply:
    """Log in with this device's X-Wing key, by a challenge that only it opens. `known` is the size
    of the log that the client remembers. Raises `Tampered` if the challenge does not open."""
    from sfsc.crypto.wrap import XWING, PrivateKey

    opening_time = transport.timeouts.opening
    hello = opening.DeviceHello(opening.PROTOCOL_VERSION, user, device.device_id)
    reply = transport.call(hello, opening_time)
    challenge = expect_reply(reply, opening.DeviceChallenge)
    info = device_login_info(
        server=server, welcome=transport.welcome_sha256, user=user, device=device.device_id
    )
    secret = PrivateKey(XWING, device.xwing_private).unwrap(challenge.sealed, info)
    version = opening.PROTOCOL_VERSION
    message = opening.DeviceLogin(version, user, device.device_id, known, secret)
    return transport.call(message, opening_time)


def dial(addresses: tuple[str, ...], timeouts: Timeouts | None) -> Transport:
    """Connect to the first address (HOST:PORT) that answers. Raises `NetworkError`."""
    from sfsc.session.transport import Transport  # slow to import; see `limits`

    failure: SfscError | None = None
    for address in addresses:
        try:
            host, port = parse_address(address)
            return Transport.dial(host, port, timeouts)
        except MessageError as exc:
            failure = KeyringDamaged(f"the keyring has a malformed address: {exc}")
        except LOST as exc:
            failure = exc
    raise failure or KeyringDamaged("the keyring has no server address")


def verify_welcome(transport: Transport, trust: ServerTrust, state: ClientState) -> opening.Welcome:
    """Receive and verify the Welcome. Nothing is sent to the server before this returns."""
    welcome = transport.welcome()
    statement = trust.accept_welcome(welcome, transport.peer_spki_sha256)
    state.remember_server_statement(statement.n, welcome.statement, welcome.signature)
    return welcome


def key_lifetime(limits: opening.Limits, now: int) -> tuple[int, int]:
    """Return (due, expires) of a key made `now`, in unix seconds. The server's policy is jittered,
    so that keys do not all fall due on one day, and clamped to between 1 day and 2 years."""
    import secrets  # takes 1 ms to import, which only new keys need

    early = secrets.randbelow(limits.max_age * limits.jitter // 100 + 1)
    due = now + _clamp(limits.max_age - early)
    return due, max(due, now + _clamp(due - now + limits.grace))


def _clamp(seconds: int) -> int:
    return max(_SHORTEST, min(_LONGEST, seconds))
