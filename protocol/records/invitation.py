"""Invitations and account links: one-line texts that name a server and an account on it.

The operator hands a new user an invitation: the server's address and id, and the right to enrol::

    sfs://HOST:PORT/USER?pin=SERVER_ID&token=TOKEN

SERVER_ID is 64 lower-case hex digits. TOKEN is base64url (RFC 4648 section 5, no padding) of 16 to
64 secret bytes. An IPv6 address stands in brackets (RFC 3986 section 3.2.2). Parsers accept exactly
this form, so that a link with additional parts is refused and not half understood.
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
"""Longest invitation in characters."""
TOKEN_SIZE = 32
"""Bytes of a token."""

# Compiled at first use, and then cached by `re`: most starts need none of them.
_ADDRESS = r"(?:\[([0-9A-Fa-f:.]+(?:%[0-9A-Za-z_.-]+)?)\]|([0-9A-Za-z._-]+)):(\d{1,5})"
_LINK = r"sfs://(?P<address>[^/?#@]+)/(?P<user>[^/?#]+)\?pin=(?P<pin>[0-9a-f]{64})&"
_INVITATION = _LINK + r"token=(?P<token>[0-9A-Za-z_-]{22,86})"
_ACCOUNT = _LINK + r"first=(?P<first>[0-9a-f]{64})"


def parse_address(text: str) -> tuple[str, int]:
    """Parse ``HOST:PORT`` or ``[IPV6]:PORT`` to (host, port). Raises `MessageError`."""
    matched = re.fullmatch(_ADDRESS, text) if text.isascii() else None
    if matched is None or len(text) > 300 or int(matched[3]) > 65535:
        raise MessageError(f"not an address HOST:PORT: {text[:80]!r}")
    return matched[1] or matched[2], int(matched[3])


def format_address(host: str, port: int) -> str:
    """Return ``HOST:PORT``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Link(Value):
    """An account on a server; `pin` is the server_id (32 bytes)."""

    host: str
    port: int
    user: str
    pin: bytes

    def __post_init__(self) -> None:
        check_user_name(self.user)
        if parse_address(self.address) != (self.host, self.port) or self.port == 0:
            raise MessageError(f"not an address to connect to: {self.address[:80]!r}")
        if len(self.pin) != 32:
            raise MessageError("the pin is not 32 bytes")

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return format_address(self.host, self.port)

    def _text(self, parameter: str) -> str:
        return f"sfs://{self.address}/{self.user}?pin={self.pin.hex()}&{parameter}"


class Invitation(_Link):
    """The right of a new user to enrol; `token` is the secret (32 bytes, never in a repr)."""

    token: bytes = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.token) != TOKEN_SIZE:
            raise MessageError("the token of this invitation is cut or mistyped")

    @property
    def token_sha256(self) -> bytes:
        """The 32-byte key of Enroll.proof; a server never learns more of the token."""
        return hashlib.sha256(self.token).digest()

    def to_text(self) -> str:
        """Return the one-line text, which contains the secret."""
        token = base64.urlsafe_b64encode(self.token).rstrip(b"=").decode()
        return self._text(f"token={token}")


def parse_invitation(text: str) -> Invitation:
    """Parse an invitation; surrounding white space is ignored.

    Raises `MessageError`, whose text never repeats the input: it may be half a secret.
    """
    matched = _match(_INVITATION, text, "not an invitation sfs://HOST:PORT/USER?pin=…&token=…")
    host, port = parse_address(matched["address"])
    return Invitation(host, port, matched["user"], bytes.fromhex(matched["pin"]), _token(matched))


class AccountLink(_Link):
    """Names an account for its owner on another machine; it holds no secret.

    `first` is the hash of the account's first statement, 32 bytes.
    """

    first: bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.first) != 32:
            raise MessageError("the statement hash of the account link is not 32 bytes")

    def to_text(self) -> str:
        """Return the one-line text that `parse_account_link` takes."""
        return self._text(f"first={self.first.hex()}")


def parse_account_link(text: str) -> AccountLink:
    """Parse ``sfs://HOST:PORT/USER?pin=SERVER_ID&first=FIRST_STATEMENT_HASH``.

    Surrounding white space is ignored. Raises `MessageError`.
    """
    matched = _match(_ACCOUNT, text, "not an account sfs://HOST:PORT/USER?pin=…&first=…")
    host, port = parse_address(matched["address"])
    pin, first = bytes.fromhex(matched["pin"]), bytes.fromhex(matched["first"])
    return AccountLink(host, port, matched["user"], pin, first)


def _match(pattern: str, text: str, otherwise: str) -> re.Match[str]:
    """Match the stripped text, or raise `MessageError(otherwise)`."""
    stripped = text.strip()
    matched = re.fullmatch(pattern, stripped) if len(stripped) <= MAX_INVITATION else None
    if matched is None:
        raise MessageError(otherwise)
    return matched


def _token(matched: re.Match[str]) -> bytes:
    text = matched["token"]
    try:
        token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as exc:
        raise MessageError("the token of this invitation is cut or mistyped") from exc
    if base64.urlsafe_b64encode(token).rstrip(b"=").decode() != text:
        raise MessageError("the token of this invitation is cut or mistyped")
    return token
