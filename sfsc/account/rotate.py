"""Key rotation: begin a generation, replace every wrap, destroy the old keys.

New wraps limit what a key stolen *tomorrow* opens. They do not help against a thief who already has
the old private key and the old wraps. For that case contents are encrypted again
(`sfsc.account.compromise`).

A rotation may be interrupted at any step. The new keys and their statement are saved before they
are sent. The server lists what is left to wrap. Old private keys are destroyed only after the
account's bundle was read back without them. Another device helps to finish a rotation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from protocol.codec import merkle
from protocol.codec.terminal_text import counted
from protocol.codec.values import Value, changed
from protocol.records.chain import split_voided
from protocol.records.records import (
    COMPROMISED,
    FINISH,
    RECOVERY,
    ROTATE,
    Device,
    RotationFinish,
    Statement,
    record_hash,
)
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Error
from protocol.wire.messages.rotation import RotateBegin, RotateFinish, WrapItem
from sfsc.account.compromise import files_of, reencrypt_versions
from sfsc.account.devices import MAX_CONFLICTS, Devices, next_statement
from sfsc.account.key_status import is_rotating, public_device
from sfsc.account.rewrap import (
    SERVER_FAULTS,
    LeftOut,
    Place,
    Rewrapper,
    RewrapResult,
    check_logged,
    leaf_of,
    left_out_root,
    place_of,
    renewed_hashes,
    valid_records,
    wrap_items,
)
from sfsc.account.undo_attacker import FileRepair
from sfsc.crypto.segments import plaintext_size
from sfsc.errors import (
    BadRecord,
    ConflictError,
    Damaged,
    Destroyed,
    IntegrityError,
    NotFound,
    SfscError,
    StaleGeneration,
    UsageError,
)
from sfsc.files.contacts import Contacts
from sfsc.keys.account_info import current_keys
from sfsc.keys.keyring import DeviceKey, Keyring, KeyringFile, PendingStatement
from sfsc.library_log import log_warning
from sfsc.log.rewraps import LoggedRewraps
from sfsc.session.pipeline import Skip
from sfsc.session.server_errors import to_exception
from sfsc.session.session import Session
from sfsc.times import as_datetime
from sfsc.trust.file_records import Entry, FileOwner

MAX_PASSES: Final = 16
"""Attempts before giving up because other devices keep changing the account."""
_NAMED: Final = 10
"""Most versions of other users that are named one by one when they are given up."""
_AGAIN: Final = "run the command again"
_DAMAGED: Final = (
    "the operator may restore them from a backup; `sfsc rotate` finishes without them, and "
    "`sfsc verify-rotation` lists them"
)


class RotationPlan(Value):
    """The work of a rotation: wraps to replace, plaintext bytes they protect (none are moved),
    and when the keys are due (unix seconds). `begun` tells whether a rotation is unfinished,
    `damaged` counts the versions that would be left out."""

    versions: int
    size: int
    generation: int
    due: int
    begun: bool
    damaged: int

    @property
    def due_at(self) -> datetime | None:
        """Time at which the keys are due, in UTC."""
        return as_datetime(self.due)


class RotationResult(Value):
    """A finished rotation. `wrapped` counts the wraps replaced by this device, `files` all wraps,
    which are now of `generation`. `left_out` counts the versions that could not be renewed because
    they are damaged."""

    generation: int
    wrapped: int
    files: int
    left_out: int
    key_type: str
    due: int

    @property
    def due_at(self) -> datetime | None:
        """Time at which the new keys are due, in UTC."""
        return as_datetime(self.due)


class Rotation:
    """Rotates the keys of one account."""

    def __init__(
        self,
        session: Session,
        file: KeyringFile,
        devices: Devices,
        contacts: Contacts,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives unix seconds."""
        self._clock = clock
        self._session = session
        self._file = file
        self._devices = devices
        self._contacts = contacts

    @property
    def _keyring(self) -> Keyring:
        return self._file.contents

    def plan(self) -> RotationPlan:
        """Return what `rotate` would do; change nothing."""
        head = self._devices.catch_up()
        size = versions = 0
        damaged: LeftOut = {}
        for item in wrap_items(self._session, damaged, damaged):
            if item.wrap is None:
                continue
            owner: FileOwner = self._session.account
            try:
                if item.owner != owner.user:
                    owner = self._contacts.find(item.owner).owner
                if not owner.is_voided_signed(item.content):
                    record = owner.verify_record(item.content, item.file_id)
                    versions += 1
                    size += plaintext_size(record.ciphertext_size or 0)
            except SERVER_FAULTS:
                raise
            except (IntegrityError, NotFound) as exc:
                damaged[place_of(item)] = exc
        begun = is_rotating(head)
        return RotationPlan(versions, size, head.generation, head.due, begun, len(damaged))

    def rotate(
        self,
        key_type: str | None = None,
        drop: bytes | None = None,
        *,
        compromised: bool = False,
        names: Sequence[str] = (),
        skip: Skip | None = None,
        automatic: bool = False,
    ) -> RotationResult:
        """Replace the keys, or finish a rotation that was begun.

        `key_type` is the type of the new wrap key, by default the present one. `drop` is the
        device_id of a device to remove. With `compromised`, contents are encrypted again too;
        `names` limits this to all versions of those files.

        Damaged versions are left out. `skip` is called for each of them, and for each version that
        an attacker destroyed if this finishes a recovery. Without it, one `IntegrityError` names
        them all, raised after everything else is done. The old private keys are destroyed, so a
        version that is left out stays unreadable even if the operator restores it later. Therefore
        an `automatic` rotation does not finish without it, and raises `IntegrityError`.

        Raises `SfscError`; run it again to continue.
        """
        head = self._devices.catch_up()
        self._session.check_trusted()
        if key_type is not None:
            self._contacts.check_strength("this account", key_type)
        if drop is not None:
            if drop == self._keyring.device.device_id:
                raise UsageError("a device cannot drop itself", "run this on another device")
            if head.find_device(drop) is None:
                raise NotFound("the account has no such device", "see `sfsc device list`")
        begun = self._is_compromised()
        begins = not is_rotating(head) or drop is not None or compromised > begun
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
        failures: list[tuple[str, SfscError]] = []
        report: Skip = skip or (lambda what, error: failures.append((what, error)))
        if RECOVERY in self._reasons():
            repair = FileRepair(self._session, self._contacts, self._keyring.statements)
            repair.repair_files(report)
        done, left_out = self._finish_all(automatic=automatic)
        self._report(left_out, report)
        if failures:
            names = ", ".join(dict.fromkeys(what for what, _ in failures))
            destroyed = any(isinstance(error, Destroyed) for _, error in failures)
            kind, how = (Destroyed, "destroyed") if destroyed else (IntegrityError, "damaged")
            raise kind(f"the keys were replaced, but these versions are {how}: {names}", _DAMAGED)
        return done

    def _report(self, left_out: LeftOut, report: Skip) -> None:
        """Call `report` for each version that was left out, by name if the name is known here."""
        user, state = self._session.account.user, self._session.state
        for place, error in sorted(left_out.items(), key=lambda one: one[0]):
            owner, file_id, _ = place
            entry = state.last_entry(file_id) if owner == user else None
            name = None if entry is None else Entry.unpack(entry).name
            if name is None or not isinstance(error, Damaged):  # which tells the version
                name = _describe(place, user, name)
            report(name, error)

    def _choose(self, chosen: frozenset[str] | None, generation: int, *, begun: bool) -> None:
        """Save which files to encrypt again, before the rotation begins. Files chosen for an
        unfinished rotation stay chosen."""
        state = self._session.state
        if begun and chosen is not None:
            before = state.reencrypt_choice(self._session.author.generation)
            chosen = None if before is None else before | chosen
        state.remember_reencrypt_choice(generation, chosen)

    def _finish_all(self, *, automatic: bool) -> tuple[RotationResult, LeftOut]:
        """Return the result, and the versions that are damaged. Raises `ConflictError` if other
        devices keep changing the account, `IntegrityError` if the server does not accept that
        versions are left out which it shows."""
        wrapped, compromised, damaged = 0, False, LeftOut()
        for _ in range(MAX_PASSES):
            result = self._rewrap()
            wrapped += result.done
            leaves, left_out = result.leaves, result.left_out
            damaged = left_out | result.missing
            # Another device may finish the rotation without this machine's chosen files.
            compromised |= self._is_compromised()
            if compromised:
                chosen = self._session.state.reencrypt_choice(self._session.author.generation)
                damaged |= reencrypt_versions(self._session, chosen, result.left_out)
                leaves = self._leaves(left_out)
            if automatic and damaged:
                raise _NotRenewed(
                    f"the rotation is not finished, because {counted(len(damaged), 'version')} "
                    "cannot be renewed",
                    _DAMAGED,
                )
            files = self._finish(leaves, left_out)
            if files is not None:
                now = Statement.parse(self._keyring.statements[-1])
                about = now.generation, wrapped, files, len(damaged), now.wrap_alg, now.due
                return RotationResult(*about), damaged | left_out
        if damaged:
            error = damaged[min(damaged)]
            raise IntegrityError(f"the rotation cannot be finished: {error.cause}", error.hint)
        raise ConflictError("other devices keep changing the account", _AGAIN)

    def _begin(self, key_type: str | None, drop: bytes | None, reason: str) -> None:
        """Begin the next generation, or adopt one that another device began meanwhile if it meets
        the request. Raises `ConflictError` if it does not."""
        for _ in range(MAX_CONFLICTS):
            before = current_keys(self._keyring).generation
            try:
                if self._try_begin(key_type, drop, reason):
                    return
            except ConflictError:  # another process of this machine has written the keyring
                self._devices.reread()
            head = self._devices.catch_up()
            if head.generation == before:
                continue  # a device was added or removed: retry on the new head
            # Another device's generation counts, and ours was never used. Its keys will do if only
            # new keys are wanted: it removes no device, encrypts no content again, and has its own
            # type of key.
            if drop is None and reason == ROTATE and key_type in (None, head.wrap_alg):
                return
            raise ConflictError("another device has just rotated the keys", _AGAIN)
        raise ConflictError("other devices keep changing the account", _AGAIN)

    def _try_begin(self, key_type: str | None, drop: bytes | None, reason: str) -> bool:
        """Send the statement that begins a generation. Return whether it was accepted; False if
        another device was first. Raises `Distrusted`."""
        if self._session.is_behind:
            return False
        self._session.check_trusted()
        pending = self._keyring.pending
        kept = None if pending is None else pending.keys
        again = kept is not None and key_type in (None, kept.wrap_alg)
        if pending is None or not again or drop is not None or reason != ROTATE:
            pending = self._new_generation(key_type, drop, reason)
            self._file.save(changed(self._keyring, pending=pending))
        message = RotateBegin(
            pending.statement, pending.signatures, pending.bundle, pending.possession
        )
        reply = self._session.ask(message)
        if pending.statement in self._keyring.statements:
            return True  # accepted; its reply was lost, and the chain was followed to it
        if isinstance(reply, Error):
            if reply.code not in ("conflict", "stale-generation"):
                if reply.code in ("bad-request", "refused", "denied"):
                    # Nothing is pending: the server will not accept this statement later either.
                    self._file.save(changed(self._keyring, pending=None))
                raise to_exception(reply)
            self._file.save(changed(self._keyring, pending=None))
            return False
        self._devices.accept_statement(pending, reply, "rotate-begin")
        return True

    def _new_generation(
        self, key_type: str | None, drop: bytes | None, reason: str
    ) -> PendingStatement:
        """Create a generation's keys, and the statement and bundle that begin it."""
        keyring = self._keyring
        head = Statement.parse(keyring.statements[-1])
        algorithm = key_type or self._contacts.raise_to_minimum(head.wrap_alg)
        old = SigningKey.from_seed(current_keys(keyring).sign_seed)
        devices = _kept_devices(head, keyring.device, drop)
        now = int(self._clock())
        return self._devices.build_generation(keyring, reason, algorithm, old, now, devices=devices)

    def _rewrap(self) -> RewrapResult:
        """Run passes until one leaves nothing. `done` is the sum of all passes; the rest is that of
        the last."""
        rewrapper, done = Rewrapper(self._session, self._contacts), 0
        for _ in range(MAX_PASSES):
            self._expect_versions()
            result = rewrapper.run_pass()
            done += result.done
            if not result.left:
                result.done = done
                _warn_given_up(rewrapper.given_up, self._session.account.user)
                return result
        raise ConflictError("other devices keep changing the account", _AGAIN)

    def _expect_versions(self) -> None:
        """Announce the versions of our files, as far as this machine knows them."""
        if self._session.progress.wanted:
            heads = self._session.state.logged_heads().values()
            self._session.progress.expect_items(sum(head.version for head in heads))

    def _reasons(self) -> set[str]:
        """Return the reasons of valid statements since the last finished rotation."""
        valid, _ = split_voided([Statement.parse(body) for body in self._keyring.statements])
        reasons = [one.reason for one in valid]
        ends = [at for at, reason in enumerate(reasons) if reason in (FINISH, "enrol")]
        return set(reasons[ends[-1] + 1 :])

    def _is_compromised(self) -> bool:
        """Return whether the unfinished rotation is a response to a theft."""
        return COMPROMISED in self._reasons()

    def _leaves(self, left_out: LeftOut) -> list[bytes]:
        """Return the leaf hashes of the wraps as listed now, like `RewrapResult.leaves`. Versions
        that are damaged by now are added to `left_out`. Raises as `check_logged`."""
        account, leaves = self._session.account, list[bytes]()
        generation = self._session.author.generation
        logged = LoggedRewraps(self._session, [generation])
        for item in wrap_items(self._session, left_out):
            check_logged(logged, renewed_hashes(account, generation, item))
            if item.wrap is not None and item.wrap.key_id == account.own_key.key_id:
                leaves.append(leaf_of(item, item.wrap))
        return leaves

    def _finish(self, leaves: Sequence[bytes], left_out: LeftOut) -> int | None:
        """End older generations and return the number of wraps; None if the server has wraps other
        than `leaves`, or if some are left to replace that are not in `left_out`."""
        session, keyring, current = self._session, self._keyring, current_keys(self._keyring)
        before = keyring.statements[-1]
        head = Statement.parse(before)
        if not is_rotating(head):
            self._devices.drop_old_keys()
            return len(leaves)
        if session.is_behind:
            self._devices.catch_up()
            return None
        session.check_trusted()
        now = int(self._clock())
        draft = next_statement(before, FINISH, now, oldest=head.generation)
        signing = SigningKey.from_seed(current.sign_seed)
        ending = self._devices.build_statement(draft, (current,), (signing,))
        finish = RotationFinish(
            server=head.server,
            user=head.user,
            statement=record_hash(ending.statement),
            generation=current.generation,
            as_of_seq=session.trust.newest.size,
            files=len(leaves),
            root=merkle.root(leaves),
            left_out=len(left_out),
            left_out_root=left_out_root(left_out),
        ).encode()
        signature = signing.sign(Label.ROTATION_FINISH, finish)
        reply = session.ask(
            RotateFinish(ending.statement, ending.signatures, ending.bundle, finish, signature)
        )
        if isinstance(reply, Error) and reply.code in ("conflict", "stale-generation"):
            self._devices.catch_up()
            return None
        self._devices.accept_statement(ending, reply, "rotate-finish")
        self._devices.drop_old_keys()
        return len(leaves)

    def verify(self, skip: Skip | None = None) -> RotationResult:
        """Verify that no wrap and no record of an older generation is left; after this machine has
        rotated with `compromised`, also that all chosen contents were encrypted again. Raises
        `StaleGeneration` if a rotation is unfinished. `skip` is called for each version that is
        damaged, or of an older generation; without it, the first error is raised."""
        head = self._devices.catch_up()
        if is_rotating(head):
            raise StaleGeneration("a rotation is unfinished", "run `sfsc rotate`")
        files, account = 0, self._session.account
        logged = LoggedRewraps(self._session, [head.generation])
        left_out: LeftOut = {}
        for item in wrap_items(self._session, left_out, left_out):
            check_logged(logged, renewed_hashes(account, head.generation, item))
            try:
                files += self._verify_item(item)
            except BadRecord as exc:
                left_out[place_of(item)] = exc
        if left_out and skip is None:
            raise left_out[min(left_out)]
        if skip is not None:
            self._report(left_out, skip)
        about = head.generation, 0, files, len(left_out), head.wrap_alg, head.due
        return RotationResult(*about)

    def _verify_item(self, item: WrapItem) -> bool:
        """Return whether the version has a wrap that counts. Raises `BadRecord`."""
        account = self._session.account
        if item.owner == account.user:
            for one in valid_records(account, item):
                account.verify_record(one, item.file_id)
        if item.wrap is None or account.is_lost((item.wrap,)):
            return False
        if item.wrap.key_id != account.own_key.key_id:
            raise _NotRenewed("a version is wrapped for an older key", "run `sfsc rotate`")
        if item.owner == account.user:
            self._check_reencrypted(item)
        return True

    def _check_reencrypted(self, item: WrapItem) -> None:
        """Raise `BadRecord` if a version was to be encrypted again after a theft, and was not."""
        state, generation = self._session.state, self._session.author.generation
        if not state.has_reencrypt_choice(generation):
            return  # no theft, or another machine of the account knows what was chosen
        chosen = state.reencrypt_choice(generation)
        old = self._session.account.verify_record(item.content, item.file_id).generation
        if old < generation and (chosen is None or item.file_id in chosen):
            raise _NotRenewed(
                "its content is damaged: it is still encrypted as before the theft",
                "restore the file from another copy, or remove it by `sfsc rm --purge`",
            )


class _NotRenewed(BadRecord):
    """A version that a rotation has left out."""

    blames_server = False


def _warn_given_up(given_up: LeftOut, user: str) -> None:
    """Warn of versions that others share and that do not open. They do not fail the rotation: what
    a sharer has stored must not keep a reader from one."""
    for place in sorted(given_up)[:_NAMED]:
        hint = f"ask {place[0]} to share the file again"
        log_warning(f"{_describe(place, user, None)} is given up", given_up[place].cause, hint)
    if len(given_up) > _NAMED:
        more = counted(len(given_up) - _NAMED, "other version")
        hint = "`sfsc inbox block OWNER` hides an owner"
        log_warning(f"{more} of other users: given up", "the keys do not open", hint)


def _describe(place: Place, user: str, name: str | None) -> str:
    """Return a text that names a version, with the file's `name` if that is known."""
    owner, file_id, version = place
    file = name or (f"file {file_id}" if owner == user else f"file {file_id} of {owner}")
    return f"{file} version {version}"


def _kept_devices(head: Statement, own: DeviceKey, drop: bytes | None) -> tuple[Device, ...]:
    """Return the devices of `head` without the removed one. This device keeps its present keys,
    because a thief may have joined again with a copy of older ones."""
    return tuple(
        public_device(own, one.kind) if one.device_id == own.device_id else one
        for one in head.devices
        if one.device_id != drop
    )
