"""Replace the addresses of the pinned server in a keyring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.records.invitation import parse_address
from sfsc.errors import NetworkError, UsageError
from sfsc.keys.home import Home, Passphrase, home_folder, unlock_home
from sfsc.library_log import log_warning
from sfsc.session.handshake import dial, verify_welcome
from sfsc.session.limits import Timeouts
from sfsc.session.retry import LOST
from sfsc.trust.server_log import ServerTrust
from sfsc.trust.state import open_client_state

MAX_ADDRESSES: Final = 16


def set_addresses(
    addresses: Sequence[str],
    *,
    home: Home = None,
    passphrase: Passphrase = None,
    timeouts: Timeouts | None = None,
) -> tuple[str, ...]:
    """Have the keyring in `home` connect to the first of `addresses` (HOST:PORT, 1 to 16) that
    answers. Return them, each once.

    Each is tried first, and must be the pinned server. One that does not answer is only warned of,
    if another one does. Otherwise nothing is changed: raises `UsageError` for a malformed address,
    `WrongServer` and other `IntegrityError`, and `NetworkError` if none answers.
    """
    wanted = tuple(dict.fromkeys(addresses))
    if not 1 <= len(wanted) <= MAX_ADDRESSES:
        raise UsageError(f"1 to {MAX_ADDRESSES} addresses are needed", "give them as HOST:PORT")
    for address in wanted:
        _check_address(address)
    where = home_folder(home)
    file = unlock_home(where, passphrase)
    pin = file.contents.server_id
    silent = dict[str, NetworkError]()
    with open_client_state(where, file) as state:
        trust = ServerTrust.from_stored(pin, state.server_statements())
        for address in wanted:
            try:
                transport = dial((address,), timeouts)
            except LOST as exc:
                silent[address] = exc
                continue
            try:
                verify_welcome(transport, trust, state)
            finally:
                transport.close()
    if len(silent) == len(wanted):
        raise next(iter(silent.values()))
    for address, failure in silent.items():
        log_warning(f"{address} does not answer", failure.cause, "check its host and port")
    file.update(lambda keyring: changed(keyring, addresses=wanted))
    return wanted


def _check_address(address: str) -> None:
    try:
        _, port = parse_address(address)
    except MessageError as exc:
        raise UsageError(str(exc), "give HOST:PORT, such as nas.example:7373") from exc
    if port == 0:
        raise UsageError(f"not a port to connect to: {address}", "give HOST:PORT")
