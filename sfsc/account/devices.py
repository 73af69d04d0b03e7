"""Devices of an account: each has its own key, and the account's bundle is sealed to all of them.

A device joins by a statement that names its key and that an account key signs. Backups (a keyring
with its own device key, in a file) and recovery codes join in the same way. A statement is saved in
the keyring before it is sent, so a retry sends the same bytes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from protocol.codec.errors import PublicKeyError
from protocol.codec.terminal_text import printable
from protocol.codec.values import Value, changed
from protocol.records import chain as rules
from protocol.records.public_keys import check_device_keys
from protocol.records.records import (
    BACKUP,
    DEVICE,
    MACHINE,
    MAX_DEVICES,
    RECOVERY_KEY,
    Device,
    Statement,
    key_id,
    record_hash,
)
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Done, Error, Reply
from protocol.wire.messages.rotation import GetBundle, NewStatement, SealedBundle
from sfsc.account.key_status import (
    MAX_LABEL,
    default_label,
    has_old_keys,
    is_listed,
    is_rotating,
    new_device,
    public_device,
)
from sfsc.crypto.primitives import state_key
from sfsc.crypto.wrap import XWING, PrivateKey, PublicKey
from sfsc.errors import (
    BadRecord,
    ConflictError,
    Denied,
    IntegrityError,
    KeyringError,
    NotFound,
    UnsupportedKey,
    UsageError,
)
from sfsc.files.contacts import follow_user_chain
from sfsc.keys.account_info import current_keys
from sfsc.keys.bundle import Bundle, open_bundle, seal_bundle
from sfsc.keys.keyring import (
    MAX_PINS,
    DeviceKey,
    GenerationKeys,
    Keyring,
    KeyringFile,
    PendingStatement,
)
from sfsc.library_log import log_warning
from sfsc.local_files import check_new_file
from sfsc.session.handshake import key_lifetime
from sfsc.session.server_errors import expect_reply, to_exception
from sfsc.session.session import Session
from sfsc.times import as_datetime
from sfsc.trust.identity_chain import fetch_newest_bundle
from sfsc.trust.server_log import SentChange

if TYPE_CHECKING:
    from sfsc.keys.recovery_code import RecoveryCode

MAX_CONFLICTS: Final = 16
"""Attempts before a change fails because other devices keep publishing first."""
Change = Callable[[Statement], dict[str, Any] | None]
"""Returns the fields to change in the next statement, or None if nothing is left to do."""


class DeviceInfo(Value):
    """One device of the account, or its recovery code.

    `device_id` has 16 bytes. `label` is the user's name for it, or "". `kind` is ``machine``,
    ``backup`` or ``recovery``. Times are in unix seconds: `since` is that of the first statement
    that names it, `last_login` that of its last login by the server's log, 0 if there was none.
    `here` tells whether it is this machine.
    """

    device_id: bytes
    label: str
    kind: str
    since: int
    last_login: int
    here: bool

    @property
    def since_at(self) -> datetime | None:
        """Time since which the account names it, in UTC."""
        return as_datetime(self.since)

    @property
    def last_login_at(self) -> datetime | None:
        """Time of its last login, in UTC; None if there was none."""
        return as_datetime(self.last_login)


class Devices:
    """Extends the identity chain of the user's own account."""

    def __init__(self, session: Session, file: KeyringFile) -> None:
        self._session = session
        self._file = file

    @property
    def _keyring(self) -> Keyring:
        return self._file.contents

    def finish_pending(self) -> None:
        """Finish what was begun on this device, and add this device to the account."""
        self.catch_up()
        if self._keyring.pending is not None and self._keyring.pending.keys is None:
            renewed = self._keyring.next_device
            self._send_pending()
            head = Statement.parse(self._keyring.statements[-1])
            if renewed is not None and is_listed(head, renewed):
                self._use_device(renewed)
                self._session.reconnect()  # the key that opened this session no longer counts
        self._publish_device(self._keyring.device)

    def adopt_saved_device(self) -> bool:
        """Continue with the keyring file as it is now. Return whether another process of this
        machine has given the device new keys. Raises as `KeyringFile.reload`."""
        before = self._keyring.device
        self._file.reload()
        self._session.use_keyring(self._keyring)
        return self._keyring.device != before

    def renew_key(self) -> Statement:
        """Give this device new keys, because the present ones may have been copied. Return the
        newest statement. If this is interrupted, the device continues with those keys that the
        account names then."""
        device = new_device(self._keyring.device.device_id)
        # Before it is sent: another device may rotate the keys at once, so that only the new key
        # logs in and opens the bundle. If its rotation is first, only the old one does.
        self._file.update(lambda keyring: changed(keyring, next_device=device))
        self._publish_device(device)
        self._use_device(device)
        self._session.reconnect()  # the key that opened this session no longer counts
        return self.catch_up()

    def _use_device(self, device: DeviceKey) -> None:
        """Continue with the device's new keys, which the account names."""
        if self._keyring.device != device:
            self._file.update(lambda keyring: changed(keyring, device=device, next_device=None))
        # Last: a process that finds the state under another key finds that key in the keyring.
        self._session.state.change_key(state_key(device.xwing_private))
        self._session.use_keyring(self._keyring)

    def list_devices(self) -> list[DeviceInfo]:
        """Return the account's present devices, backups included, and at last its recovery code.
        The id of that is made of its public key."""
        head = self.catch_up()
        since: dict[bytes, int] = {}
        for statement in (*map(Statement.parse, self._keyring.statements), head):
            for device in statement.devices:
                since.setdefault(device.device_id, statement.created)
            if statement.recovery is not None:
                since.setdefault(statement.recovery.sign_pub, statement.created)
        here, labels = self._keyring.device.device_id, dict(self._keyring.labels)
        ids = [one.device_id.hex() for one in head.devices]
        logins = self._session.state.last_logins(ids)
        found = [
            DeviceInfo(
                one.device_id,
                labels.get(one.device_id, ""),
                "machine" if one.kind == MACHINE else one.kind,
                since[one.device_id],
                logins.get(one.device_id.hex(), 0),
                one.device_id == here,
            )
            for one in head.devices
        ]
        if head.recovery is not None:
            code = head.recovery.sign_pub
            name = key_id("ed25519", code)[:16]
            found.append(DeviceInfo(name, "recovery code", "recovery", since[code], 0, here=False))
        return found

    def set_label(self, device_id: bytes, label: str) -> None:
        """Name a device for all devices of the account. Raises `NotFound` if it is none of them,
        and `UsageError` for a label that is empty, longer than 64 bytes, or not printable."""
        if not label or len(label.encode(errors="replace")) > MAX_LABEL:
            raise UsageError(f"a label has 1 to {MAX_LABEL} bytes", "choose another label")
        if printable(label) != label:
            raise UsageError("a label has no control characters", "choose another label")

        def change(head: Statement) -> dict[str, Any] | None:
            if head.find_device(device_id) is None:
                raise NotFound("the account has no such device", "see `sfsc device list`")
            return None if dict(self._keyring.labels).get(device_id) == label else {}

        self._publish(DEVICE, change, labels={device_id: label})

    def backup(self, path: Path, passphrase: str | None) -> None:
        """Add a device for the file `path`, and write the keyring there with that device's key.
        Raises `LocalError` if the file exists or cannot be written."""
        check_new_file(path, "choose another name", parents=True)
        device = new_device()
        label = f"{default_label()[: MAX_LABEL // 2]} backup"
        public = public_device(device, BACKUP)
        added = {device.device_id: label}
        self._publish(DEVICE, lambda head: _with_device(head, public), labels=added)
        kept = changed(self._keyring, device=device, next_device=None, pending=None)
        KeyringFile.create(path, kept, passphrase)

    def has_recovery(self) -> bool:
        """Return whether the account has a recovery code."""
        return self.catch_up().recovery is not None

    def check_recovery(self, code: RecoveryCode | None) -> Statement:
        """Return the newest statement. Raises `Denied` if it is committed to a recovery code other
        than `code`."""
        head = self.catch_up()
        if head.recovery is not None and (code is None or code.public_keys != head.recovery):
            hint = "enter the present code"
            if code is not None:
                hint = "it is typed as printed, so it is an older one, or that of another account"
            raise Denied("this is not the account's recovery code", hint)
        return head

    def set_recovery(self, code: RecoveryCode, old: RecoveryCode | None) -> None:
        """Commit the account to `code`. A present code must be given as `old`, because it has to
        sign. Raises `Denied` if `old` is not the present code."""
        head = self.check_recovery(old)
        wanted = code.public_keys

        def change(head: Statement) -> dict[str, Any] | None:
            return None if head.recovery == wanted else {"recovery": wanted}

        also = None if head.recovery is None or old is None else old.signing_key
        self._publish(RECOVERY_KEY, change, also, code.signing_key)

    def _publish_device(self, device: DeviceKey) -> None:
        public = public_device(device)
        self._publish(DEVICE, lambda head: _with_device(head, public))

    def catch_up(self) -> Statement:
        """Follow the account's chain, adopt keys that another device has rotated, join if this
        device is not listed, and return the newest statement. Raises `KeyringError` if this device
        no longer belongs to the account."""
        with self._session.adopting_keys():
            head = self._adopt_newest()
            if self._session.is_joining:
                self.adopt_saved_device()
                self._publish_device(self._keyring.device)
                self._session.reconnect()
                head = self._adopt_newest()
            return head

    def _adopt_newest(self) -> Statement:
        """Like `catch_up`, but do not join."""
        session = self._session
        if not session.state.is_current:
            self.reread()
        for _ in range(MAX_CONFLICTS):
            before = self._keyring.statements
            try:
                head = self._catch_up()
            except ConflictError:
                self.reread()
                continue
            # While the keys were adopted, another device may have rotated them again.
            behind = session.is_restricted or session.is_behind
            if not behind or self._keyring.statements == before:
                return head
        raise ConflictError("other devices keep changing the account", "run the command again")

    def reread(self) -> None:
        """Continue with a keyring that another process of this device has written."""
        before = self._session.author.generation
        self._file.reload()
        self._session.use_keyring(self._keyring)
        if self._session.author.generation != before:
            self._session.reconnect()

    def _catch_up(self) -> Statement:
        keyring, session = self._keyring, self._session
        chain = self.follow(keyring.statements)
        head = Statement.parse(chain[-1])
        if keyring.next_device is not None and is_listed(head, keyring.next_device):
            self._use_device(keyring.next_device)
            keyring = self._keyring
        if keyring.current is None or head.generation != keyring.current.generation:
            self._renew(chain)
        elif chain != keyring.statements:
            pending = keyring.pending
            if pending is not None and pending.statement in chain:
                pending = None  # it was accepted; its reply was lost
            self._file.save(changed(keyring, statements=chain, pending=pending))
            session.use_keyring(self._keyring)
            self._adopt_labels()
        pending, head = self._keyring.pending, Statement.parse(self._keyring.statements[-1])
        begins = pending is not None and pending.keys is not None  # its rotation needs the old keys
        if not is_rotating(head) and not begins and has_old_keys(self._keyring):
            self._drop_old_keys()
        return head

    def _adopt_labels(self) -> None:
        """Take the labels of the newest statement, which another device has made. They do not
        matter enough to stop at a bundle that cannot be opened."""
        keyring = self._keyring
        try:
            chain, bundle = self._newest_bundle(keyring.statements)
        except (IntegrityError, KeyringError) as exc:
            log_warning("the labels of your devices could not be read", exc.cause, exc.hint)
            return
        if chain == keyring.statements and bundle.labels != keyring.labels:
            self._file.save(changed(keyring, labels=bundle.labels))
            self._session.use_keyring(self._keyring)

    def follow(self, known: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Return the account's whole chain as exact bytes. `known` was verified before."""
        keyring = self._keyring
        return follow_user_chain(self._session, keyring.user, keyring.first, known)

    def _renew(self, chain: tuple[bytes, ...]) -> None:
        """Adopt the keys of a rotation made on another device, or of our own if its reply was
        lost."""
        keyring, session = self._keyring, self._session
        pending = keyring.pending
        if pending is not None and pending.keys is not None and pending.statement == chain[-1]:
            generations = (*keyring.generations, pending.keys)
            renewed = changed(keyring, generations=generations, labels=pending.labels)
        else:
            # Another process of this device may have rotated, and given the device a new key. The
            # old key would not open the bundle.
            self._file.check_unchanged()
            chain, bundle = self._newest_bundle(chain)
            # Before the keys are saved: a server that then breaks the connection does not avoid it.
            session.expect_seen(bundle.checkpoint)
            pins = {**dict(bundle.pins), **dict(keyring.pins)}  # this device's own pins win
            merged = tuple(sorted(pins.items()))[:MAX_PINS]
            renewed = changed(
                keyring, generations=bundle.generations, pins=merged, labels=bundle.labels
            )
        self._file.save(changed(renewed, statements=chain, pending=None))
        session.use_keyring(self._keyring)
        session.reconnect()

    def _newest_bundle(self, chain: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], Bundle]:
        """Return the chain and its newest statement's bundle, opened with this device's key or an
        account key. Raises `BadRecord` if the bundle has another name key: an account keeps its own
        for life."""
        keyring = self._keyring
        keys = [PrivateKey(XWING, keyring.device.xwing_private)]
        keys += [PrivateKey(one.wrap_alg, one.wrap_private) for one in keyring.generations]
        chain, sealed = fetch_newest_bundle(
            chain, self.follow, lambda: self._session.call(GetBundle(0), SealedBundle).bundle
        )
        bundle = open_bundle(sealed, Statement.parse(chain[-1]), keys)
        if bundle.name_keys != keyring.name_keys:
            raise BadRecord(
                "the account's bundle holds another name key than this device's keyring",
                "an account never changes it: see `sfsc device list` and `sfsc audit log`",
            )
        return chain, bundle

    def drop_old_keys(self) -> None:
        """Destroy private keys of older generations, once the account's bundle was read back and
        holds only the newest generation's keys. Another process of this device may do so too."""
        for _ in range(MAX_CONFLICTS):
            try:
                if has_old_keys(self._keyring):
                    self._drop_old_keys()
                return
            except ConflictError:
                self.reread()
        raise ConflictError("other processes keep changing the keyring", "run the command again")

    def _drop_old_keys(self) -> None:
        keyring = self._keyring
        chain, bundle = self._newest_bundle(keyring.statements)
        if Statement.parse(chain[-1]).generation != keyring.generations[-1].generation:
            return  # another device has rotated: the keys go when that is followed
        if bundle.generations != keyring.generations[-1:]:
            raise BadRecord("the account's bundle holds other keys than the present ones")
        self._file.save(changed(keyring, generations=bundle.generations))
        self._session.use_keyring(self._keyring)

    def accept_statement(self, pending: PendingStatement, reply: Reply, op: str) -> None:
        """Verify that the log has our statement as it was sent, and save it as the newest one. If
        it began a generation, the session adopts its keys. Raises like `expect_reply` and
        `ServerTrust.verify_receipt`."""
        receipt = expect_reply(reply, Done).receipt
        keyring, session = self._keyring, self._session
        before = keyring.statements
        if pending.statement in before:  # the chain was followed to it meanwhile
            before = before[: before.index(pending.statement)]
        _, signers = rules.check_next(
            before, pending.statement, pending.signatures, pending.possession
        )
        named = zip(signers, pending.signatures, strict=True)
        sent = SentChange(
            op=op,
            actor=keyring.user,
            owner=keyring.user,
            file=None,
            version=None,
            record=pending.statement,
            signatures={key_id("ed25519", public).hex(): one for public, one in named},
        )
        if not session.is_restricted:
            session.accept_receipt(receipt, sent)
            session.link_receipts()
        keyring = self._keyring
        if pending.statement in keyring.statements:
            return  # the chain was followed to it meanwhile
        if pending.keys is not None:
            keyring = changed(keyring, generations=(*keyring.generations, pending.keys))
        statements = (*keyring.statements, pending.statement)
        accepted = changed(keyring, statements=statements, pending=None, labels=pending.labels)
        try:
            self._file.save(accepted)
        except ConflictError:
            # Another process of this device may have followed the chain to it already.
            self._file.reload()
            if pending.statement not in self._keyring.statements:
                raise
        self._session.use_keyring(self._keyring)
        if pending.keys is not None:
            self._session.reconnect()

    def _publish(
        self,
        reason: str,
        change: Change,
        also: SigningKey | None = None,
        recovery: SigningKey | None = None,
        labels: Mapping[bytes, str] = MappingProxyType({}),
    ) -> None:
        """Append a statement to the chain; retry if another device was first. `also` signs in
        addition to the account's own key, `recovery` is the recovery key that it introduces,
        `labels` are added to those of the devices."""
        for _ in range(MAX_CONFLICTS):
            fields = change(self._adopt_newest())
            if fields is None:
                return
            self._session.check_trusted()
            keyring = self._keyring
            draft = next_statement(keyring.statements[-1], reason, int(time.time()), **fields)
            own = SigningKey.from_seed(current_keys(keyring).sign_seed)
            keys = (own,) if also is None else (own, also)
            pending = self.build_statement(draft, keyring.generations, keys, labels=labels)
            if recovery is not None:
                proof = recovery.sign(Label.RECOVERY_POSSESSION, pending.statement)
                pending = changed(pending, possession=proof)
            self._file.save(changed(keyring, pending=pending))  # before it is sent
            if self._send_pending():
                return
        raise ConflictError("other devices keep changing the account", "run the command again")

    def build_generation(
        self,
        keyring: Keyring,
        reason: str,
        algorithm: str,
        signer: SigningKey,
        now: int,
        own: bytes | None = None,
        **fields: Any,
    ) -> PendingStatement:
        """Return the statement and bundle that begin the generation after the newest of `keyring`.
        Its keys are new; the new signing key and `signer` sign. `now` is in unix seconds, `own` as
        in `build_statement`, `fields` are further changes."""
        before = keyring.statements[-1]
        signing, wrapping = SigningKey.generate(), PrivateKey.generate(algorithm)
        generation = Statement.parse(before).generation + 1
        keys = GenerationKeys(generation, signing.seed, wrapping.alg, wrapping.encoded)
        due, expires = key_lifetime(self._session.limits, now)
        fields |= {"generation": generation, "sign_pub": signing.public, "wrap_alg": wrapping.alg}
        fields |= {"wrap_pub": wrapping.public.encoded, "due": due, "expires": expires}
        draft = next_statement(before, reason, now, **fields)
        generations = (*keyring.generations, keys)
        return self.build_statement(draft, generations, (signing, signer), keys, own=own)

    def build_statement(
        self,
        draft: Statement,
        generations: tuple[GenerationKeys, ...],
        signers: tuple[SigningKey, ...],
        keys: GenerationKeys | None = None,
        *,
        labels: Mapping[bytes, str] = MappingProxyType({}),
        own: bytes | None = None,
    ) -> PendingStatement:
        """Return the statement with its bundle, which holds these generations' private keys. `keys`
        are those of the generation that the statement begins, if any. `labels` change those of the
        keyring. `own` is the id of this device in the statement, by default that of the keyring; if
        it has no label, its host name is that."""
        keyring = self._keyring
        me = keyring.device.device_id if own is None else own
        named = {me: default_label(), **dict(keyring.labels), **labels}
        ids = sorted(device.device_id for device in draft.devices)
        named_devices = tuple((one, named[one]) for one in ids if one in named)
        seen = self._session.trust.seen_checkpoint()
        bundle = seal_bundle(
            Bundle(
                generations,
                keyring.name_keys,
                keyring.tag_key,
                keyring.pins,
                seen,
                named_devices,
            ),
            server=keyring.server_id,
            user=keyring.user,
            n=draft.n,
            recipients=bundle_recipients(draft),
        )
        body = changed(draft, bundle_sha256=hashlib.sha256(bundle).digest()).encode()
        signatures = tuple(key.sign(Label.STATEMENT, body) for key in signers)
        return PendingStatement(body, signatures, bundle, keys, labels=named_devices)

    def _send_pending(self) -> bool:
        """Send the pending statement. Return whether the log has it; False, and nothing stays
        pending, if the chain has grown instead."""
        pending = self._keyring.pending
        if pending is None:
            return True
        message = NewStatement(
            pending.statement, pending.signatures, pending.bundle, pending.possession
        )
        reply = self._session.ask(message)
        if isinstance(reply, Error):
            if reply.code in ("conflict", "bad-request", "refused"):
                # The keyring may have changed since this was sent.
                self._file.save(changed(self._keyring, pending=None))
            if reply.code == "conflict":
                return False
            raise to_exception(reply)
        self.accept_statement(pending, reply, "statement")
        return True


def _with_device(head: Statement, device: Device) -> dict[str, Any] | None:
    """Return the statement fields that add this device, or that replace its keys; None if it is
    listed."""
    if device.keys in (one.keys for one in head.devices):
        return None
    others = tuple(one for one in head.devices if one.device_id != device.device_id)
    if len(others) >= MAX_DEVICES:
        raise UsageError(f"the account already has {MAX_DEVICES} devices", "see `sfsc device list`")
    return {"devices": (*others, device)}


def next_statement(before: bytes, reason: str, now: int, **fields: Any) -> Statement:
    """Return the statement after the one whose exact bytes are `before`, except for its bundle.
    `now` is in unix seconds; `fields` are the fields to change."""
    head = Statement.parse(before)
    fields = {"voids": (), "devices": head.devices, **fields, "prev": record_hash(before)}
    fields["devices"] = _usable_devices(fields["devices"])
    return changed(head, n=head.n + 1, created=now, reason=reason, **fields)


def _usable_devices(devices: Iterable[Device]) -> tuple[Device, ...]:
    """Return the devices whose keys can be used, and warn of the others. No real device has such a
    key: somebody added it to make every later statement of the account fail."""
    usable = []
    for device in devices:
        try:
            check_device_keys(device)
        except PublicKeyError as exc:
            what = f"the device {device.device_id.hex()} is dropped"
            log_warning(what, str(exc), "if you did not add it, run `sfsc rotate --compromised`")
        else:
            usable.append(device)
    return tuple(usable)


def bundle_recipients(statement: Statement) -> list[PublicKey]:
    """Return all keys that the bundle of a statement is sealed to. A recovery key that cannot be
    used is left out, with a warning."""
    keys = [PublicKey(XWING, device.xwing_pub) for device in statement.devices]
    if statement.recovery is not None:
        try:
            keys.append(PublicKey(XWING, statement.recovery.xwing_pub))
        except UnsupportedKey as exc:
            what = "the account's recovery code cannot open it"
            log_warning(what, exc.cause, "replace it by `sfsc key recovery`")
    return [*keys, PublicKey(statement.wrap_alg, statement.wrap_pub)]
