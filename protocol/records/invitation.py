"""What an operator hands to a new user: where the server is, who it is, and the right to enrol::

    sfs://HOST:PORT/USER?pin=SERVER_ID&token=TOKEN

SERVER_ID is 64 lower-case hex digits, TOKEN base64url (RFC 4648 section 5, no padding) of 16 to 64
secret bytes. An IPv6 address stands in brackets (RFC 3986 section 3.2.2). A parser takes exactly
this shape, so that a link with something more in it is refused rather than half understood.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from protocol.codec.errors import MessageError
from protocol.codec.names import check_user_name
from protocol.codec.values import Value, field

MAX_INVITATION = 1024
"""Characters of the longest invitation."""
TOKEN_SIZE = 32
"""Bytes of the tokens we make."""

# Compiled when first used, which `re` remembers: a start that meets none of them has no use for it.
_ADDRESS = r"(?:\[([0-9A-Fa-f:.]+(?:%[0-9A-Za-z_.-]+)?)\]|([0-9A-Za-z._-]+)):(\d{1,5})"
_INVITATION = (
    r"sfs://(?P<address>[^/?#@]+)/(?P<user>[^/?#]+)"
    r"\?pin=(?P<pin>[0-9a-f]{64})&token=(?P<token>[0-9A-Za-z_-]{22,86})"
)
_ACCOUNT = (
    r"sfs://(?P<address>[^/?#@]+)/(?P<user>[^/?#]+)"
    r"\?pin=(?P<pin>[0-9a-f]{64})&first=(?P<first>[0-9a-f]{64})"
)


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of ``HOST:PORT`` or ``[IPV6]:PORT``. Raises `MessageError`."""
    matched = re.fullmatch(_ADDRESS, text) if text.isascii() else None
    if matched is None or len(text) > 300 or int(matched[3]) > 65535:
        raise MessageError(f"not an address HOST:PORT: {text[:80]!r}")
    return matched[1] or matched[2], int(matched[3])


def format_address(host: str, port: int) -> str:
    """``HOST:PORT``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Invitation(Value):
    """`pin` is the server_id (32 bytes), `token` the secret (16 to 64 bytes; never in a repr)."""

    host: str
    port: int
    user: str
    pin: bytes
    token: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_user_name(self.user)
        address = format_address(self.host, self.port)
        if parse_address(address) != (self.host, self.port) or self.port == 0:
            raise MessageError(f"nobody can connect to {address[:80]!r}")
        if len(self.pin) != 32 or not 16 <= len(self.token) <= 64:
            raise MessageError("an invitation whose pin or token has a wrong length")

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return format_address(self.host, self.port)

    @property
    def token_sha256(self) -> bytes:
        """The key of Enroll.proof, and all of the token that a server ever learns; 32 bytes."""
        return hashlib.sha256(self.token).digest()

    def to_text(self) -> str:
        """The one line to hand on. It holds the secret."""
        token = base64.urlsafe_b64encode(self.token).rstrip(b"=").decode()
        return f"sfs://{self.address}/{self.user}?pin={self.pin.hex()}&token={token}"


def parse_invitation(text: str) -> Invitation:
    """The invitation that `text` is; white space around it is ignored.

    Raises `MessageError`, whose text never repeats what was given: that may be half a secret.
    """
    stripped = text.strip()
    matched = re.fullmatch(_INVITATION, stripped) if len(stripped) <= MAX_INVITATION else None
    if matched is None:
        raise MessageError("not an invitation sfs://HOST:PORT/USER?pin=…&token=…")
    host, port = parse_address(matched["address"])
    return Invitation(host, port, matched["user"], bytes.fromhex(matched["pin"]), _token(matched))


class AccountLink(Value):
    """Which account, for its owner on another machine; no secret. `pin` is the server_id, `first`
    the hash of the account's first statement, 32 bytes each."""

    host: str
    port: int
    user: str
    pin: bytes
    first: bytes

    def __post_init__(self) -> None:
        check_user_name(self.user)
        address = format_address(self.host, self.port)
        if parse_address(address) != (self.host, self.port) or self.port == 0:
            raise MessageError(f"nobody can connect to {address[:80]!r}")
        if len(self.pin) != 32 or len(self.first) != 32:
            raise MessageError("an account link whose pin or first has a wrong length")

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return format_address(self.host, self.port)

    def to_text(self) -> str:
        """One line, as `parse_account_link` takes it."""
        about = f"pin={self.pin.hex()}&first={self.first.hex()}"
        return f"sfs://{self.address}/{self.user}?{about}"


def parse_account_link(text: str) -> AccountLink:
    """The account that ``sfs://HOST:PORT/USER?pin=SERVER_ID&first=FIRST_STATEMENT_HASH`` names;
    white space around it is ignored. Raises `MessageError`."""
    stripped = text.strip()
    matched = re.fullmatch(_ACCOUNT, stripped) if len(stripped) <= MAX_INVITATION else None
    if matched is None:
        raise MessageError("not an account sfs://HOST:PORT/USER?pin=…&first=…")
    host, port = parse_address(matched["address"])
    pin, first = bytes.fromhex(matched["pin"]), bytes.fromhex(matched["first"])
    return AccountLink(host, port, matched["user"], pin, first)


def _token(matched: re.Match[str]) -> bytes:
    text = matched["token"]
    try:
        token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as exc:
        raise MessageError("the token of this invitation is cut or mistyped") from exc
    if base64.urlsafe_b64encode(token).rstrip(b"=").decode() != text:
        raise MessageError("the token of this invitation is cut or mistyped")
    return token
