"""Opening of a connection: dial an address, verify that the server is the pinned one, sign the
login."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from protocol.codec.errors import MessageError
from protocol.codec.values import Value
from protocol.log.auditlog import LogEntry
from protocol.records.invitation import parse_address
from protocol.records.records import Statement, key_id, login_body
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import session as opening
from sfsc.errors import KeyringDamaged, SfscError
from sfsc.keys.keyring import DeviceKey, Keyring
from sfsc.library_log import log_step, milliseconds
from sfsc.session.limits import Timeouts
from sfsc.session.retry import LOST
from sfsc.trust.server_log import ServerTrust
from sfsc.trust.state import ClientState

if TYPE_CHECKING:
    from sfsc.session.evidence import Answers
    from sfsc.session.transport import Transport
    from sfsc.session.waiting import Waiting

DAY: Final = 86_400
_SHORTEST, _LONGEST = DAY, 730 * DAY


class LoginKey(Value):
    """A key that logs in: that of the device `device_id`, or if that is None the account's own key
    of `generation` (0: its recovery key), which is good only to join or to recover."""

    device_id: bytes | None
    generation: int
    key: SigningKey

    @classmethod
    def from_device(cls, device: DeviceKey, generation: int) -> LoginKey:
        """Return the key of a device that has the account's keys of `generation`."""
        return cls(device.device_id, generation, SigningKey.from_seed(device.sign_seed))


def login_keys(keyring: Keyring, account_key: LoginKey) -> list[LoginKey]:
    """Return the keys to log in with, each for the case that those before are refused.
    `account_key` is the account's own newest key.

    A device that the newest statement names logs in by itself. Any other first joins by the
    account's key. The account may have changed since: a statement of ours was accepted and its
    answer lost, or somebody with the account's key has replaced this device. A device that was
    dropped by a rotation has none of the keys.
    """
    device = LoginKey.from_device(keyring.device, account_key.generation)
    listed = Statement.parse(keyring.statements[-1]).find_device(keyring.device.device_id)
    joined = listed is not None and listed.sign_pub == device.key.public
    found = [device, account_key] if joined else [account_key, device]
    if keyring.next_device is not None:
        found.append(LoginKey.from_device(keyring.next_device, account_key.generation))
    return found


class SentLogin(Value):
    """A login as it was sent: `body` is what it signed, for its connection alone. The log entry has
    both, the signature under `signer` (hex key id)."""

    message: opening.Login
    body: bytes
    signer: str

    def is_logged_by(self, entry: LogEntry) -> bool:
        """Return whether `entry` is that of this login, not of one on another connection."""
        signed = entry.rec == self.body and entry.sigs == {self.signer: self.message.signature}
        return entry.op == "login" and entry.actor == self.message.user and signed


def build_login(
    transport: Transport, server: bytes, user: str, login: LoginKey, known: int
) -> SentLogin:
    """Return a login for this connection. `known` is the size of the log that the client
    remembers."""
    body = login_body(
        server=server,
        spki=transport.peer_spki_sha256,
        welcome=transport.welcome_sha256,
        version=opening.PROTOCOL_VERSION,
        user=user,
        device_id=login.device_id,
        generation=login.generation,
    )
    message = opening.Login(
        opening.PROTOCOL_VERSION,
        user,
        login.device_id,
        login.generation,
        known,
        login.key.sign(Label.LOGIN, body),
    )
    return SentLogin(message, body, key_id("ed25519", login.key.public).hex())


def dial(
    addresses: tuple[str, ...],
    timeouts: Timeouts | None,
    answers: Answers | None = None,
    waiting: Waiting | None = None,
) -> Transport:
    """Connect to the first address (HOST:PORT) that answers. What the server says is added to
    `answers`. Raises `NetworkError`."""
    from sfsc.session.transport import Transport  # slow to import; see `limits`

    failure: SfscError | None = None
    for address in addresses:
        try:
            host, port = parse_address(address)
            log_step(f"connecting to {address}")
            began = time.monotonic()
            transport = Transport.dial(host, port, timeouts, answers, waiting)
            log_step(f"connected to {address} in {milliseconds(time.monotonic() - began)}")
            return transport
        except MessageError as exc:
            failure = KeyringDamaged(f"the keyring has a malformed address: {exc}")
        except LOST as exc:
            log_step(exc.cause)
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
