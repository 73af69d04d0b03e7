"""Take an account back, with its recovery code, from an attacker who had its keys.

The attacker can extend the chain with a new generation and seal its bundle for the attacker's key
alone. The recovery key, which the attacker does not have, signs a statement that undoes this. The
earlier keys come from the last bundle that the code opens, which the server keeps for this purpose.
The statement and its keys are saved before it is sent. Once accepted, the rest is a rotation, which
any command can finish.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Final

from protocol.codec.values import Value, changed
from protocol.records.chain import split_voided
from protocol.records.records import RECOVERY, Statement, record_hash
from protocol.records.signatures import SigningKey
from protocol.wire.messages import Error
from protocol.wire.messages.rotation import GetBundle, RotateBegin, SealedBundle
from sfsc.account.devices import Devices
from sfsc.account.key_status import new_device, public_device
from sfsc.account.rotate import Rotation, RotationResult
from sfsc.crypto.primitives import state_key
from sfsc.errors import (
    BadRecord,
    ConflictError,
    Denied,
    IntegrityError,
    KeyringError,
    NotFound,
    Rollback,
    Tampered,
    UsageError,
)
from sfsc.files.contacts import Contacts
from sfsc.keys.bundle import Bundle, open_bundle
from sfsc.keys.keyring import GenerationKeys, Keyring, KeyringFile
from sfsc.keys.recovery_code import RecoveryCode
from sfsc.session.handshake import DAY
from sfsc.session.limits import Timeouts
from sfsc.session.pipeline import Skip
from sfsc.session.server_errors import to_exception
from sfsc.session.session import Session
from sfsc.trust.state import ClientState

MAX_CONFLICTS: Final = 64
"""Attempts before giving up because an attacker keeps extending the chain; the server limits that
too."""

KEPT_SECONDS: Final = 28 * DAY
"""Minimum time for which a server keeps the bundle of a statement that has a successor: 30 days,
less the allowed clock error of a statement."""
KEPT_MOST: Final = 256


class StatementSummary(Value):
    """One statement of an account's chain, for a person to judge. `created` is in unix seconds by
    the signer's clock; `undone` tells whether it is void or would be."""

    n: int
    reason: str
    generation: int
    devices: int
    created: int
    undone: bool


class OpenedBundle(Value):
    """The last bundle that opens, and the number of its statement."""

    n: int
    bundle: Bundle


def check_recovery_key(chain: tuple[bytes, ...], code: RecoveryCode) -> None:
    """Raise `BadRecord` unless the newest statement names both public keys of `code`. The server
    accepted its signing key, which says nothing of the key that bundles are sealed to."""
    if Statement.parse(chain[-1]).recovery != code.public_keys:
        raise BadRecord("the account's statements name another recovery key than this code's")


def find_last_bundle(
    chain: tuple[bytes, ...],
    fetch: Callable[[int], bytes],
    code: RecoveryCode,
    first: int | None = None,
    now: float | None = None,
) -> OpenedBundle:
    """Return the last bundle before statement `first` (None: of all) that `code` opens. `fetch`
    requests the bundle of a statement; `now` is in unix seconds.

    Raises `KeyringError` if the server stores none. Raises `Rollback` if it withholds one that it
    must store: the bundle found would be older than it should be, and valid statements would be
    undone. A user who names `first` has checked the chain, so that check is skipped.
    """
    parsed = [Statement.parse(body) for body in chain]
    earlier = max((one.n for one in parsed if one.reason == RECOVERY), default=1)
    last = len(chain) if first is None else first - 1
    if not earlier <= last <= len(chain):
        raise UsageError(
            f"only statements {earlier + 1} to {len(chain)} of this account can be undone",
            "see `sfsc rotate --recovery --plan`",
        )
    time_now = time.time() if now is None else now
    for n in range(last, earlier - 1, -1):
        try:
            sealed = fetch(n)
        except (NotFound, IntegrityError) as exc:
            if first is None and _must_be_stored(parsed, n, time_now):
                raise Rollback(f"the server withholds the bundle of statement {n}") from exc
            continue
        if hashlib.sha256(sealed).digest() != parsed[n - 1].bundle_sha256:
            raise Tampered("the server returned another bundle than its statement names")
        with contextlib.suppress(KeyringError, IntegrityError):  # sealed for other keys
            return OpenedBundle(n, open_bundle(sealed, parsed[n - 1], (code.wrap_key,)))
    raise KeyringError(
        "this recovery code opens no bundle on the server",
        "run `sfsc rotate --recovery` on a device that has the account's keys",
    )


def _must_be_stored(parsed: list[Statement], n: int, now: float) -> bool:
    """Return whether a server must still have the bundle of statement `n`: that of the newest
    statement, and those superseded recently, unless the chain is so long that some had to go."""
    if n == len(parsed):
        return True
    # No statement is older than its predecessors, whatever date an attacker wrote.
    succeeded = max(one.created for one in parsed[: n + 1])
    return len(parsed) < KEPT_MOST and now - succeeded < KEPT_SECONDS


def summarize_chain(chain: tuple[bytes, ...], first: int | None) -> list[StatementSummary]:
    """Return the chain for a person who decides from which statement on to undo it."""
    parsed = [Statement.parse(body) for body in chain]
    _, undone = split_voided(parsed)
    gone = {one.n for one in undone}
    return [
        StatementSummary(
            one.n,
            one.reason,
            one.generation,
            len(one.devices),
            one.created,
            one.n in gone or (first is not None and one.n >= first),
        )
        for one in parsed
    ]


def take_back_account(
    file: KeyringFile,
    state: ClientState,
    code: RecoveryCode,
    *,
    first: int | None = None,
    timeouts: Timeouts | None = None,
    on_destroyed: Skip | None = None,
) -> RotationResult:
    """Undo statements from `first` on (None: from the first that the code's bundles do not cover),
    repair the files and finish the rotation. `on_destroyed` is as in `Rotation.rotate`. Raises
    `Denied` if the code is not the account's."""
    with open_recovery_session(file, state, code, timeouts) as (session, devices):
        AccountRecovery(session, file, devices, code).begin(first)
        session.renewer = devices.catch_up
        contacts = Contacts(session, file)
        session.readers = lambda: contacts
        return Rotation(session, file, devices, contacts).rotate(skip=on_destroyed)


def refused_code() -> Denied:
    """Return the error for a code that is typed as it was printed, and that the server refuses."""
    return Denied(
        "the server does not accept this recovery code, which is typed as printed",
        "is it the newest one of this account? else ask the operator: `sfsd user show`",
    )


@contextlib.contextmanager
def open_recovery_session(
    file: KeyringFile, state: ClientState, code: RecoveryCode, timeouts: Timeouts | None = None
) -> Iterator[tuple[Session, Devices]]:
    """Open a session with the account's recovery key. Raises `Denied` if the code is another
    account's."""
    session = Session(file.contents, state, timeouts, recovery=code.signing_key)
    try:
        with session.thread_guard:
            try:
                session.connect()
            except Denied as exc:
                raise refused_code() from exc
            yield session, Devices(session, file)
    finally:
        session.close()


class AccountRecovery:
    """Takes one account back. The session was opened with its recovery key."""

    def __init__(
        self,
        session: Session,
        file: KeyringFile,
        devices: Devices,
        code: RecoveryCode,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives unix seconds."""
        self._session = session
        self._file = file
        self._devices = devices
        self._code = code
        self._clock = clock

    @property
    def _keyring(self) -> Keyring:
        return self._file.contents

    def plan(self, first: int | None = None) -> tuple[tuple[bytes, ...], int | None, Keyring]:
        """Return (chain, number of the first statement to undo or None, keyring with the earlier
        keys). `first` is the user's choice. Raises `KeyringError` if neither the keyring nor a
        bundle has those keys."""
        chain = self._devices.follow(self._keyring.statements)
        check_recovery_key(chain, self._code)
        own = {one.generation: one for one in self._keyring.generations}

        def fetch(n: int) -> bytes:
            return self._session.call(GetBundle(n), SealedBundle).bundle

        # Statements whose keys this device has were not made by an attacker.
        known, good = own, self._last_known(chain if first is None else chain[: first - 1])
        try:
            opened = find_last_bundle(chain, fetch, self._code, first)
        except KeyringError as exc:
            if not good:
                cause = "neither this device nor the recovery code has the account's keys"
                raise KeyringError(cause) from exc
        else:
            # An attacker may have made a bundle that opens, so this device's own keys win.
            known = {one.generation: one for one in opened.bundle.generations} | own
            good = max(good, opened.n)
        if first is None and good < len(chain):
            first = good + 1
        return chain, first, self._keyring_before(chain, first, known)

    def _last_known(self, chain: tuple[bytes, ...]) -> int:
        """Return the number of the last statement whose keys this device has, or 0."""
        valid, _ = split_voided([Statement.parse(body) for body in chain])
        known = {one.generation: one for one in self._keyring.generations}
        for statement in reversed(valid):
            keys = known.get(statement.generation)
            if keys and SigningKey.from_seed(keys.sign_seed).public == statement.sign_pub:
                return statement.n
        return 0

    def _keyring_before(
        self, chain: tuple[bytes, ...], first: int | None, known: dict[int, GenerationKeys]
    ) -> Keyring:
        """Return the keyring as of the statement before `first`."""
        last = len(chain) if first is None else first - 1
        valid, _ = split_voided([Statement.parse(body) for body in chain])
        kept = {one.generation: one.sign_pub for one in valid if one.n <= last}
        generations = tuple(
            keys
            for number, keys in sorted(known.items())
            if kept.get(number) == SigningKey.from_seed(keys.sign_seed).public
        )
        return changed(self._keyring, statements=chain, generations=generations, pending=None)

    def begin(self, first: int | None = None, key_type: str | None = None) -> None:
        """Undo statements from `first` on (None: from the first whose bundle the code does not
        open), and begin a generation whose keys only this device has. The session adopts them.
        Raises `ConflictError` if somebody else keeps extending the chain."""
        self._session.check_trusted()
        for _ in range(MAX_CONFLICTS):
            chain, first, keyring = self.plan(first)
            base = Statement.parse(chain[-1 if first is None else first - 2])
            # This device's own key may have been stolen too, so it is replaced.
            device = new_device()
            pending = self._devices.build_generation(
                keyring,
                RECOVERY,
                key_type or base.wrap_alg,
                self._code.signing_key,
                int(self._clock()),
                own=device.device_id,
                oldest=base.oldest,
                devices=(public_device(device),),
                voids=() if first is None else (record_hash(chain[first - 1]),),
            )
            self._session.state.change_key(state_key(device.xwing_private))
            self._file.save(changed(keyring, device=device, next_device=None, pending=pending))
            reply = self._session.ask(
                RotateBegin(pending.statement, pending.signatures, pending.bundle)
            )
            if not isinstance(reply, Error):
                return self._devices.accept_statement(pending, reply, "rotate-begin")
            self._file.save(changed(self._keyring, pending=None))
            if reply.code != "conflict":
                raise to_exception(reply)
        raise ConflictError("somebody else keeps extending the account's chain", "run it again")
