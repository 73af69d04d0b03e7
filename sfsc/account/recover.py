"""An account taken back with its recovery code from somebody who had its keys.

He can continue the chain with a generation of his own, and seal its bundle for himself alone. The
recovery key, which he has not, signs a statement that undoes his; the keys of before come out of
the last bundle that the code opens, which the server keeps for this. The statement and its keys
are kept before it is sent. From its acceptance on the rest is a rotation, which any command ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Final

from protocol.codec.values import Value, changed
from protocol.records.chain import standing
from protocol.records.records import RECOVERY, Statement, record_hash
from protocol.records.signatures import SigningKey
from protocol.wire.messages import Done, Error
from protocol.wire.messages.rotation import GetBundle, RotateBegin, SealedBundle
from sfsc.account.devices import Devices
from sfsc.account.rotate import Rotated, Rotation
from sfsc.crypto.primitives import XWING, PrivateKey, state_key
from sfsc.errors import (
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
from sfsc.keys.keyring import DeviceKey, GenerationKeys, Keyring, KeyringFile, PendingStatement
from sfsc.keys.recovery_code import RecoveryCode
from sfsc.session.handshake import DAY, key_lifetime
from sfsc.session.limits import Timeouts
from sfsc.session.pipeline import Skip
from sfsc.session.server_errors import expect_reply, to_exception
from sfsc.session.session import Session
from sfsc.trust.state import ClientState

MAX_CONFLICTS: Final = 64
"""How often somebody may continue the chain while it is taken back; a server ends that as well."""

KEPT_SECONDS: Final = 28 * DAY
"""For so long a server keeps the bundle of a statement that has a successor, at the least: 30 days,
less what a statement's clock may be wrong by."""
KEPT_MOST: Final = 256


class Link(Value):
    """One statement of an account's chain, for a person to judge. `created` in unix seconds, by the
    clock of who signed it; `undone`: it is, or would be."""

    n: int
    reason: str
    generation: int
    devices: int
    created: int
    undone: bool


class Opened(Value):
    """The last bundle that opens, that of statement `n`."""

    n: int
    bundle: Bundle


def last_opened(
    chain: tuple[bytes, ...],
    fetch: Callable[[int], bytes],
    code: RecoveryCode,
    first: int | None = None,
    now: float | None = None,
) -> Opened:
    """The last bundle before statement `first` (None: of all) that `code` opens; `fetch` asks for
    that of a statement, `now` is unix seconds.

    Raises `KeyringError` where the server keeps none, and `Rollback` where it does not give one
    that it has to keep: what opens would seem to be older than it is, and more be undone than a
    thief has done. Who names `first` has looked himself.
    """
    parsed = [Statement.parse(body) for body in chain]
    earlier = max((one.n for one in parsed if one.reason == RECOVERY), default=1)
    last = len(chain) if first is None else first - 1
    if not earlier <= last <= len(chain):
        raise UsageError(
            f"of this account statements {earlier + 1} to {len(chain)} can be undone",
            "see `sfsc rotate --recovery --plan`",
        )
    time_now = time.time() if now is None else now
    for n in range(last, earlier - 1, -1):
        try:
            sealed = fetch(n)
        except (NotFound, IntegrityError) as exc:
            if first is None and _must_be_kept(parsed, n, time_now):
                raise Rollback(f"the server does not give the bundle of statement {n}") from exc
            continue
        if hashlib.sha256(sealed).digest() != parsed[n - 1].bundle_sha256:
            raise Tampered("the server gives another bundle than the one its statement names")
        with contextlib.suppress(KeyringError, IntegrityError):  # sealed for somebody else
            return Opened(n, open_bundle(sealed, parsed[n - 1], (code.wrap_key,)))
    raise KeyringError(
        "no bundle that the server keeps opens with this recovery code",
        "a machine or a backup that knows the account's keys is needed: `sfsc rotate --recovery`",
    )


def _must_be_kept(parsed: list[Statement], n: int, now: float) -> bool:
    """Whether a server must still have the bundle of statement `n`: the newest, and those whose
    successor is not that old, while there are not so many that some had to go."""
    if n == len(parsed):
        return True
    # None was made before those it stands on, whatever the thief says of his.
    succeeded = max(one.created for one in parsed[: n + 1])
    return len(parsed) < KEPT_MOST and now - succeeded < KEPT_SECONDS


def links(chain: tuple[bytes, ...], first: int | None) -> list[Link]:
    """The chain, for a person who decides from which statement on it is undone."""
    parsed = [Statement.parse(body) for body in chain]
    _, undone = standing(parsed)
    gone = {one.n for one in undone}
    return [
        Link(
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
    told: Skip | None = None,
) -> Rotated:
    """Undo the account's statements from `first` on (None: from the first that the code's bundles
    do not cover), put its files right, and finish the rotation; `told` as in `Rotation.rotate`.

    Raises `Denied` for a code that is not the account's.
    """
    with opened_by_code(file, state, code, timeouts) as (session, devices):
        Recovery(session, file, devices, code).begin(first)
        session.renewer = devices.catch_up
        people = Contacts(session, file)
        session.readers = lambda: people
        return Rotation(session, file, devices, people).rotate(told=told)


@contextlib.contextmanager
def opened_by_code(
    file: KeyringFile, state: ClientState, code: RecoveryCode, timeouts: Timeouts | None = None
) -> Iterator[tuple[Session, Devices]]:
    """A session of the account's recovery key. Raises `Denied` for a code that is another's."""
    session = Session(file.contents, state, timeouts, recovery=code.signing_key)
    try:
        session.connect()
    except Denied as exc:
        cause = "the server does not accept this recovery code"
        raise Denied(cause, "is it this account's, and its newest?") from exc
    try:
        yield session, Devices(session, file)
    finally:
        session.close()


class Recovery:
    """Takes one account back, over a session that its recovery key has opened."""

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

    def look(self, first: int | None = None) -> tuple[tuple[bytes, ...], int | None, Keyring]:
        """(the chain, the number of the first statement to be undone (None: of none), the keyring
        with what is known of the keys before it). `first` is what a person says of it.

        Raises `KeyringError` where nothing here or there has those keys.
        """
        chain = self._devices.follow(self._keyring.statements)
        try:
            opened = last_opened(chain, self._bundle, self._code, first)
        except KeyringError:
            return self._by_keyring(chain, first)
        if first is None:
            # What this machine has keys of was not kept from it.
            good = max(opened.n, self._last_known(chain))
            first = good + 1 if good < len(chain) else None
        # A bundle that opens may have been made to mislead: what this machine knows stays known.
        known = {one.generation: one for one in opened.bundle.generations}
        known |= {one.generation: one for one in self._keyring.generations}
        return chain, first, self._with(chain, first, known)

    def _by_keyring(
        self, chain: tuple[bytes, ...], first: int | None
    ) -> tuple[tuple[bytes, ...], int | None, Keyring]:
        """By what this machine knows: the last statement whose keys it has."""
        good = self._last_known(chain if first is None else chain[: first - 1])
        if not good:
            raise KeyringError("neither this machine nor the recovery code has the account's keys")
        if first is None and good < len(chain):
            first = good + 1
        known = {one.generation: one for one in self._keyring.generations}
        return chain, first, self._with(chain, first, known)

    def _last_known(self, chain: tuple[bytes, ...]) -> int:
        """The number of the last statement whose keys this machine has, 0 for none."""
        stand, _ = standing([Statement.parse(body) for body in chain])
        known = {one.generation: one for one in self._keyring.generations}
        for statement in reversed(stand):
            keys = known.get(statement.generation)
            if keys and SigningKey.from_seed(keys.sign_seed).public == statement.sign_pub:
                return statement.n
        return 0

    def _with(
        self,
        chain: tuple[bytes, ...],
        first: int | None,
        known: dict[int, GenerationKeys],
    ) -> Keyring:
        """The keyring as of the statement before `first`."""
        last = len(chain) if first is None else first - 1
        stand, _ = standing([Statement.parse(body) for body in chain])
        kept = {one.generation: one.sign_pub for one in stand if one.n <= last}
        generations = tuple(
            keys
            for number, keys in sorted(known.items())
            if kept.get(number) == SigningKey.from_seed(keys.sign_seed).public
        )
        return changed(
            self._keyring,
            statements=chain,
            generations=generations,
            pending=None,
        )

    def _bundle(self, n: int) -> bytes:
        return self._session.call(GetBundle(n), SealedBundle).bundle

    def begin(self, first: int | None = None, key_type: str | None = None) -> None:
        """Undo all from statement `first` on (None: from the first whose bundle the code does not
        open), and begin a generation that this machine alone has the keys of. The session goes on
        with it. Raises `ConflictError` where somebody else keeps continuing the chain.
        """
        self._session.check_trusted()
        for _ in range(MAX_CONFLICTS):
            chain, first, keyring = self.look(first)
            pending, device = self._drafted(chain, first, keyring, key_type)
            # The machine's own key may be the one that was stolen: it gets another.
            self._session.state.change_key(state_key(device.xwing_private))
            self._file.save(changed(keyring, device=device, pending=pending))
            reply = self._session.ask(
                RotateBegin(pending.statement, pending.signatures, pending.bundle)
            )
            if not isinstance(reply, Error):
                self._devices.prove(expect_reply(reply, Done).receipt, "rotate-begin", pending)
                self._devices.accept(pending)
                return
            self._file.save(changed(self._keyring, pending=None))
            if reply.code != "conflict":
                raise to_exception(reply)
        raise ConflictError("somebody keeps continuing the account's chain", "run it again")

    def _drafted(
        self,
        chain: tuple[bytes, ...],
        first: int | None,
        keyring: Keyring,
        key_type: str | None,
    ) -> tuple[PendingStatement, DeviceKey]:
        before = chain[-1]
        head = Statement.parse(before)
        base = head if first is None else Statement.parse(chain[first - 2])
        device_key = PrivateKey.generate(XWING)
        device = DeviceKey(os.urandom(16), device_key.encoded)
        signing, wrapping = SigningKey.generate(), PrivateKey.generate(key_type or base.wrap_alg)
        keys = GenerationKeys(head.generation + 1, signing.seed, wrapping.alg, wrapping.encoded)
        now = int(self._clock())
        due, expires = key_lifetime(self._session.limits, now)
        draft = changed(
            head,
            n=head.n + 1,
            generation=keys.generation,
            oldest=base.oldest,
            sign_pub=signing.public,
            wrap_alg=wrapping.alg,
            wrap_pub=wrapping.public.encoded,
            devices=((device.device_id, device_key.public.encoded),),
            voids=() if first is None else (record_hash(chain[first - 1]),),
            created=now,
            due=due,
            expires=expires,
            prev=record_hash(before),
            reason=RECOVERY,
        )
        pending = self._devices.signed(
            draft,
            (*keyring.generations, keys),
            (signing, self._code.signing_key),
            keys,
        )
        return pending, device
