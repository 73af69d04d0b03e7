"""Rotation of the account's keys: begin a generation, renew every wrap, destroy the old keys.

Renewed wraps limit what a key stolen *tomorrow* opens. They do not help against a thief who already
has the old private key and the old wraps. For that case contents are encrypted again
(`sfsc.account.compromise`).

A rotation may be interrupted at any step. The new keys and their statement are saved before they
are sent. The server lists what is left to wrap. Old private keys are destroyed only after the
account's bundle was read back without them. A second machine helps to finish what another began.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from protocol.codec import merkle
from protocol.codec.values import Value, changed
from protocol.records.chain import standing
from protocol.records.records import (
    COMPROMISED,
    FINISH,
    RECOVERY,
    ROTATE,
    RotationFinish,
    Statement,
    record_hash,
)
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Done, Error
from protocol.wire.messages.rotation import RotateBegin, RotateFinish, WrapItem
from sfsc.account.compromise import Theft, files_of
from sfsc.account.devices import MAX_CONFLICTS, Devices
from sfsc.account.key_status import public_of, unfinished
from sfsc.account.rewrap import Rewrapping, Sweep, leaf_of, standing_records, wrap_items
from sfsc.account.undo_attacker import Repair
from sfsc.crypto.primitives import PrivateKey
from sfsc.crypto.segments import plaintext_size
from sfsc.errors import (
    BadRecord,
    ConflictError,
    Destroyed,
    NotFound,
    StaleGeneration,
    UsageError,
)
from sfsc.files.contacts import Contacts
from sfsc.keys.account_info import current_keys
from sfsc.keys.keyring import DeviceKey, GenerationKeys, Keyring, KeyringFile, PendingStatement
from sfsc.session.handshake import key_lifetime
from sfsc.session.pipeline import Skip
from sfsc.session.server_errors import expect_reply, to_exception
from sfsc.session.session import Session
from sfsc.trust.file_records import FileOwner

MAX_SWEEPS: Final = 16
"""How often all is looked through again for what other machines have made meanwhile."""
_AGAIN: Final = "run the command again"


class Plan(Value):
    """What a rotation would do: versions to wrap anew, bytes of plaintext in them (none of which
    are moved), and when the keys are due (unix seconds); `begun` where one was begun already."""

    versions: int
    size: int
    generation: int
    due: int
    begun: bool


class Rotated(Value):
    """A rotation that is finished: `wrapped` versions were wrapped anew here, all `files` wraps of
    the account are of `generation`."""

    generation: int
    wrapped: int
    files: int
    key_type: str
    due: int


class Rotation:
    """Rotates the keys of one account, over one session."""

    def __init__(
        self,
        session: Session,
        file: KeyringFile,
        devices: Devices,
        people: Contacts,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives unix seconds."""
        self._clock = clock
        self._session = session
        self._file = file
        self._devices = devices
        self._people = people
        self._theft: Theft | None = None

    @property
    def _keyring(self) -> Keyring:
        return self._file.contents

    def plan(self) -> Plan:
        """Return what `rotate` would do; change nothing."""
        head = self._devices.catch_up()
        size = versions = 0
        for item in self._items():
            if not self._owner(item).is_voided_signed(item.content):
                record = self._owner(item).verify_record(item.content, item.file_id)
                versions += 1
                size += plaintext_size(record.ciphertext_size or 0)
        return Plan(versions, size, head.generation, head.due, unfinished(head))

    def rotate(
        self,
        key_type: str | None = None,
        drop: bytes | None = None,
        *,
        compromised: bool = False,
        names: Sequence[str] = (),
        told: Skip | None = None,
    ) -> Rotated:
        """Replace the keys and finish, or finish a rotation that was begun.

        `key_type` is the type of the new wrap key, by default that of the present one. `drop` is
        the device_id of a machine that gets no more of this account's keys. With `compromised` all
        contents are encrypted again too; with `names` only all versions of those files.

        Raises `SfscError`; run again, it continues where it stopped. If it finishes a recovery,
        `told` is called for each version that somebody else has destroyed. Without `told`, one
        `Destroyed` names them all, raised when everything else is done.
        """
        self._session.check_trusted()
        head = self._devices.catch_up()
        if key_type is not None:
            self._people.check_strength("this account", key_type)
        if drop is not None:
            _check_droppable(head, drop, self._keyring.device.device_id)
        begun = self._is_compromised()
        begins = not unfinished(head) or drop is not None or compromised > begun
        begins = begins or key_type not in (None, head.wrap_alg)
        if compromised and begins:
            # A copy of the keyring contains this machine's device key, which opens the bundle.
            head = self._devices.renew_key()
        if compromised:
            chosen = files_of(self._session, names) if names else None
            self._choose(chosen, head.generation + begins, begun=begun)
        if begins:
            reason = COMPROMISED if compromised else ROTATE
            self._begin(key_type, drop, reason)
        destroyed: list[str] = []
        if RECOVERY in self._reasons():
            Repair(self._session, self._people, self._keyring.statements).run(
                told or (lambda what, _error: destroyed.append(what))
            )
        self._theft = None
        if self._is_compromised():
            self._theft = Theft(self._session, self._keyring.statements)
        done = self._finish_all()
        if destroyed:
            names = ", ".join(dict.fromkeys(destroyed))
            raise Destroyed(f"the account is yours again; destroyed in part: {names}")
        return done

    def _choose(self, chosen: frozenset[str] | None, generation: int, *, begun: bool) -> None:
        """Remember the files to encrypt again, before the rotation begins. Files that were chosen
        for one that has begun already stay chosen."""
        state = self._session.state
        if begun and chosen is not None:
            before = state.reencrypt_choice(self._session.author.generation)
            chosen = None if before is None else before | chosen
        state.remember_reencrypt_choice(generation, chosen)

    def _finish_all(self) -> Rotated:
        wrapped = 0
        for _ in range(MAX_SWEEPS):
            sweep = self._rewrap()
            wrapped += sweep.done
            if self._theft is not None:
                chosen = self._session.state.reencrypt_choice(self._session.author.generation)
                self._theft.reencrypt(self._items(), chosen)
            files = self._finish(sweep.leaves if self._theft is None else self._leaves())
            if files is not None:
                now = Statement.parse(self._keyring.statements[-1])
                return Rotated(now.generation, wrapped, files, now.wrap_alg, now.due)
        raise ConflictError("other machines keep changing the account", _AGAIN)

    # --- begin --------------------------------------------------------------------------------

    def _begin(self, key_type: str | None, drop: bytes | None, reason: str) -> None:
        """Have the server accept the next generation, or continue with the one that another machine
        began if any will do. Raises `ConflictError` if that one will not do or is finished."""
        for _ in range(MAX_CONFLICTS):
            before = current_keys(self._keyring).generation
            if self._has_begun(key_type, drop, reason):
                return
            head = self._devices.catch_up()
            if head.generation == before:
                continue  # a machine has joined or left meanwhile: onto that
            # Another machine's generation counts, and ours was never used. Its keys will do if only
            # new keys are wanted: it drops no device, encrypts no content again, and has its own
            # type of key.
            will_do = drop is None and reason == ROTATE and key_type in (None, head.wrap_alg)
            if will_do and unfinished(head):
                return
            raise ConflictError("another machine has rotated the keys just now", _AGAIN)
        raise ConflictError("other machines keep changing the account", _AGAIN)

    def _has_begun(self, key_type: str | None, drop: bytes | None, reason: str) -> bool:
        """Send the beginning of a generation. Return whether it was accepted: False if another
        machine was faster."""
        pending = self._keyring.pending
        kept = None if pending is None else pending.keys
        again = kept is not None and key_type in (None, kept.wrap_alg)
        if pending is None or not again or drop is not None or reason != ROTATE:
            pending = self._new_generation(key_type, drop, reason)
            self._file.save(changed(self._keyring, pending=pending))
        message = RotateBegin(pending.statement, pending.signatures, pending.bundle)
        reply = self._session.ask(message)
        if pending.statement in self._keyring.statements:
            return True  # accepted, and the answer lost: the chain was followed to it meanwhile
        if isinstance(reply, Error):
            if reply.code not in ("conflict", "stale-generation"):
                if reply.code in ("bad-request", "refused"):
                    self._file.save(changed(self._keyring, pending=None))
                raise to_exception(reply)
            self._file.save(changed(self._keyring, pending=None))
            return False
        self._devices.prove(expect_reply(reply, Done).receipt, "rotate-begin", pending)
        self._devices.accept(pending)
        return True

    def _new_generation(
        self, key_type: str | None, drop: bytes | None, reason: str
    ) -> PendingStatement:
        """Make a generation's keys, and the statement and bundle that begin it."""
        keyring, current = self._keyring, current_keys(self._keyring)
        before = keyring.statements[-1]
        head = Statement.parse(before)
        algorithm = key_type or self._people.at_least(head.wrap_alg)
        signing, wrapping = SigningKey.generate(), PrivateKey.generate(algorithm)
        keys = GenerationKeys(head.generation + 1, signing.seed, wrapping.alg, wrapping.encoded)
        now = int(self._clock())
        due, expires = key_lifetime(self._session.limits, now)
        draft = changed(
            head,
            n=head.n + 1,
            generation=keys.generation,
            sign_pub=signing.public,
            wrap_alg=wrapping.alg,
            wrap_pub=wrapping.public.encoded,
            devices=_devices(head, keyring.device, drop),
            voids=(),
            created=now,
            due=due,
            expires=expires,
            prev=record_hash(before),
            reason=reason,
        )
        old = SigningKey.from_seed(current.sign_seed)
        generations = (*keyring.generations, keys)
        return self._devices.signed(draft, generations, (signing, old), keys)

    # --- wraps --------------------------------------------------------------------------------

    def _rewrap(self) -> Sweep:
        """Until a sweep leaves nothing; `done` is of all of them, `leaves` of the last."""
        judge = None if self._theft is None else self._theft.check
        rewrapping, done = Rewrapping(self._session, self._people, judge), 0
        for _ in range(MAX_SWEEPS):
            sweep = rewrapping.sweep()
            done += sweep.done
            if not sweep.left:
                sweep.done = done
                return sweep
        raise ConflictError("other machines keep changing the account", _AGAIN)

    def _owner(self, item: WrapItem) -> FileOwner:
        """Whose file it is."""
        account = self._session.account
        return account if item.owner == account.user else self._people.find(item.owner).owner

    def _items(self) -> Iterator[WrapItem]:
        return wrap_items(self._session)

    # --- contents -----------------------------------------------------------------------------

    def _reasons(self) -> set[str]:
        """Of the statements since the last rotation that was finished, but those undone."""
        stand, _ = standing([Statement.parse(body) for body in self._keyring.statements])
        reasons = [one.reason for one in stand]
        ends = [at for at, reason in enumerate(reasons) if reason in (FINISH, "enrol")]
        return set(reasons[ends[-1] + 1 :])

    def _is_compromised(self) -> bool:
        """Whether the rotation that is not finished is one after a theft."""
        return COMPROMISED in self._reasons()

    # --- finish -------------------------------------------------------------------------------

    def _leaves(self) -> list[bytes]:
        """Return the leaf hashes as in `Sweep.leaves`, of the wraps as they are listed now."""
        own = self._session.account.own_key.key_id
        return [
            leaf_of(item, item.wrap)
            for item in self._items()
            if item.wrap is not None and item.wrap.key_id == own
        ]

    def _finish(self, leaves: Sequence[bytes]) -> int | None:
        """End older generations. Return how many wraps there are; None if the server has others
        than `leaves` by now, or if something is left to wrap."""
        session, keyring, current = self._session, self._keyring, current_keys(self._keyring)
        finish = RotationFinish(
            current.generation, session.trust.newest.size, len(leaves), merkle.root(leaves)
        ).encode()
        before = keyring.statements[-1]
        head = Statement.parse(before)
        if not unfinished(head):
            self._devices.drop_old_keys()
            return len(leaves)
        draft = changed(
            head,
            n=head.n + 1,
            oldest=head.generation,
            voids=(),
            created=int(self._clock()),
            prev=record_hash(before),
            reason=FINISH,
        )
        signing = SigningKey.from_seed(current.sign_seed)
        ending = self._devices.signed(draft, (current,), (signing,))
        signature = signing.sign(Label.ROTATION_FINISH, finish)
        reply = session.ask(
            RotateFinish(ending.statement, ending.signatures, ending.bundle, finish, signature)
        )
        if isinstance(reply, Error) and reply.code in ("conflict", "stale-generation"):
            self._devices.catch_up()
            return None
        self._devices.prove(expect_reply(reply, Done).receipt, "rotate-finish", ending)
        self._devices.accept(ending)
        self._devices.drop_old_keys()
        return len(leaves)

    # --- proof --------------------------------------------------------------------------------

    def verify(self) -> Rotated:
        """Check that no wrap and no record of an older generation than the present is left.

        Raises `StaleGeneration` where a rotation is not finished, `BadRecord` where one is left.
        """
        head = self._devices.catch_up()
        if unfinished(head):
            raise StaleGeneration("a rotation was begun and is not finished", "run `sfsc rotate`")
        account, files = self._session.account, 0
        own = account.own_key.key_id
        for item in self._items():
            if item.owner == account.user:
                for one in standing_records(account, item):
                    account.verify_record(one, item.file_id)
            if item.wrap is None or account.is_lost((item.wrap,)):
                continue
            if item.wrap.key_id != own:
                raise BadRecord("a version is wrapped for an older key", "run `sfsc rotate`")
            files += 1
        return Rotated(head.generation, 0, files, head.wrap_alg, head.due)


def _devices(
    head: Statement, own: DeviceKey, drop: bytes | None
) -> tuple[tuple[bytes, bytes], ...]:
    """Those of `head` without the one that is dropped. Of this machine the key that it has: who has
    a copy of an older one may have joined with that meanwhile."""
    return tuple(
        (device_id, public_of(own) if device_id == own.device_id else public)
        for device_id, public in head.devices
        if device_id != drop
    )


def _check_droppable(head: Statement, drop: bytes, own: bytes) -> None:
    if drop == own:
        raise UsageError("this machine cannot drop itself", "do it on another one")
    if all(one != drop for one, _ in head.devices):
        raise NotFound("the account has no such device", "see `sfsc device list`")
