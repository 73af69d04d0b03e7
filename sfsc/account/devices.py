"""The machines of one account: each has a key of its own, which the account's bundle is sealed to.

A machine joins by a statement that names its key, signed with the account's. So does a backup,
which is a keyring with a device key of its own in a file, and so does a recovery code. A statement
is kept in the keyring before it is sent: a rerun sends the very same bytes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from protocol.codec.values import Value, changed
from protocol.records import chain as rules
from protocol.records.records import (
    DEVICE,
    MAX_DEVICES,
    RECOVERY_KEY,
    RecoveryKey,
    Statement,
    key_id,
    record_hash,
)
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Done, Error, Receipt
from protocol.wire.messages.rotation import GetBundle, NewStatement, SealedBundle
from protocol.wire.messages.sharing import Identity
from sfsc.account.key_status import has_old_keys, public_of, unfinished
from sfsc.crypto.primitives import XWING, PrivateKey, PublicKey, state_key
from sfsc.errors import BadRecord, ConflictError, Denied, LocalError, UsageError
from sfsc.keys.bundle import Bundle, open_bundle, seal_bundle
from sfsc.keys.keyring import (
    MAX_PINS,
    DeviceKey,
    GenerationKeys,
    Keyring,
    KeyringFile,
    PendingStatement,
)
from sfsc.session.server_errors import expect_reply, to_exception
from sfsc.session.session import Session
from sfsc.trust.identity_chain import fetch_newest_bundle, follow_chain
from sfsc.trust.server_log import SentChange

if TYPE_CHECKING:
    from sfsc.keys.recovery_code import RecoveryCode

MAX_CONFLICTS: Final = 16
"""How often another machine may be faster."""
Change = Callable[[Statement], dict[str, object] | None]
"""What is to be other in the statement after this one; None where nothing is left to do."""


class DeviceInfo(Value):
    """One device of the account; `here` whether it is this machine's, `since` when the statement
    that first names it was made (unix seconds): what tells a lost one from the others."""

    device_id: bytes
    here: bool
    since: int


class Devices:
    """Continues the identity chain of one's own account, over one session."""

    def __init__(self, session: Session, file: KeyringFile) -> None:
        self._session = session
        self._file = file

    @property
    def _keyring(self) -> Keyring:
        return self._file.contents

    def settle(self) -> None:
        """Finish what was begun here, and have this machine join."""
        self.catch_up()
        if self._keyring.pending is not None and self._keyring.pending.keys is None:
            self._send_pending()
        device = self._keyring.device
        public = public_of(device)
        self._publish(DEVICE, lambda head: _with_device(head, device.device_id, public))

    def renew_key(self) -> Statement:
        """Give this machine another key of its own, since somebody may have a copy of the present
        one; the account's newest statement.

        Where that is cut between the two, the machine has the old key still, and joins with it.
        """
        key = PrivateKey.generate(XWING)
        device = DeviceKey(self._keyring.device.device_id, key.encoded)
        public = key.public.encoded
        # Not kept before it is sent: of a machine that loses to another's rotation only the old key
        # opens what that one has sealed.
        self._publish(DEVICE, lambda head: _with_device(head, device.device_id, public))
        for _ in range(MAX_CONFLICTS):
            try:
                self._file.save(changed(self._keyring, device=device))
            except ConflictError:
                self._file.reload()  # another process of this machine was faster
                continue
            # Behind that: who finds the state under another key finds that in the keyring.
            self._session.state.change_key(state_key(key.encoded))
            return self.catch_up()
        raise ConflictError("other processes keep changing the keyring", "run the command again")

    def all(self) -> list[DeviceInfo]:
        """The account's devices as of now, each a machine or a backup."""
        here = self._keyring.device.device_id
        head = self.catch_up()
        since: dict[bytes, int] = {}
        for statement in (*map(Statement.parse, self._keyring.statements), head):
            for device_id, _ in statement.devices:
                since.setdefault(device_id, statement.created)
        return [DeviceInfo(one, one == here, since[one]) for one, _ in head.devices]

    def backup(self, path: Path, passphrase: str | None) -> None:
        """Make a device of its own for the file `path`, and write the keyring there with its key.

        Raises `LocalError` where there is such a file already.
        """
        if os.path.exists(path):
            raise LocalError(f"there is a file {path} already", "name another one")
        key = PrivateKey.generate(XWING)
        device = DeviceKey(os.urandom(16), key.encoded)
        public = key.public.encoded
        self._publish(DEVICE, lambda head: _with_device(head, device.device_id, public))
        KeyringFile.create(path, changed(self._keyring, device=device, pending=None), passphrase)

    def has_recovery(self) -> bool:
        """Whether the account has a recovery code."""
        return self.catch_up().recovery is not None

    def check_recovery(self, code: RecoveryCode | None) -> Statement:
        """The account's newest statement. Raises `Denied` where it is committed to another recovery
        code than `code`."""
        head = self.catch_up()
        if head.recovery is not None and (code is None or code.public_keys != head.recovery):
            raise Denied("the account's recovery code is another", "the old code is needed")
        return head

    def set_recovery(self, code: RecoveryCode, old: RecoveryCode | None) -> None:
        """Commit the account to `code`; where it has one already, the `old` one must sign.

        Raises `Denied` for another old code than the committed.
        """
        head = self.check_recovery(old)
        wanted = code.public_keys

        def change(head: Statement) -> dict[str, object] | None:
            return None if head.recovery == wanted else {"recovery": wanted}

        also = None if head.recovery is None or old is None else old.signing_key
        self._publish(RECOVERY_KEY, change, also)

    # --- the chain ----------------------------------------------------------------------------

    def catch_up(self) -> Statement:
        """The newest statement of ours, followed from those that are known; where it is of another
        generation than this machine has, its keys are taken over, and the session goes on with
        them.

        Raises `KeyringError` where this machine is no longer one of the account's devices.
        """
        if not self._session.state.is_current:
            self._reread()
        for _ in range(MAX_CONFLICTS):
            try:
                return self._catch_up()
            except ConflictError:
                self._reread()
        raise ConflictError("other processes keep changing the keyring", "run the command again")

    def _reread(self) -> None:
        """Another process of this machine has written the keyring: go on from what it has."""
        before = self._session.author.generation
        self._file.reload()
        self._session.use_keyring(self._keyring)
        if self._session.author.generation != before:
            self._session.reconnect()

    def _catch_up(self) -> Statement:
        keyring, session = self._keyring, self._session
        chain = self.follow(keyring.statements)
        head = Statement.parse(chain[-1])
        if keyring.current is None or head.generation != keyring.current.generation:
            head = self._renew(chain)
        elif chain != keyring.statements:
            pending = keyring.pending
            if pending is not None and pending.statement in chain:
                pending = None  # it was accepted, and the answer lost
            self._file.save(changed(keyring, statements=chain, pending=pending))
            session.use_keyring(self._keyring)
        if not unfinished(head) and has_old_keys(self._keyring):
            self.drop_old_keys()
        return head

    def follow(self, known: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """The account's chain, exact bytes, as far as it goes now; `known` was followed before."""
        keyring, session = self._keyring, self._session
        with session.keeping_fork_evidence():
            chain = follow_chain(
                lambda asked: session.call(asked, Identity),
                session.trust,
                keyring.user,
                keyring.first,
                known,
            )
        session.link_receipts()
        return chain

    def _renew(self, chain: tuple[bytes, ...]) -> Statement:
        """Go on with the keys of a rotation that this machine did not make, or whose answer it did
        not get; the statement whose keys they are."""
        keyring, session = self._keyring, self._session
        pending = keyring.pending
        if pending is not None and pending.keys is not None and pending.statement == chain[-1]:
            renewed = _with_begun(keyring, pending.keys)
        else:
            # Another process of this machine may have made it, and given the machine another key of
            # its own: with the one before, nothing would open.
            self._file.check_unchanged()
            chain, bundle = self._newest_bundle(chain)
            renewed = changed(
                keyring,
                generations=bundle.generations,
                pins=_pins(keyring.pins, bundle.pins),
            )
        self._file.save(changed(renewed, statements=chain, pending=None))
        session.use_keyring(self._keyring)
        session.reconnect()
        return Statement.parse(chain[-1])

    def _newest_bundle(self, chain: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], Bundle]:
        """Return the chain and the bundle of its newest statement, opened with this machine's key
        or a key of the account.

        Raises `BadRecord` if the bundle has another name key: an account keeps its own for life.
        """
        keyring = self._keyring
        keys = [PrivateKey(XWING, keyring.device.xwing_private)]
        keys += [PrivateKey(one.wrap_alg, one.wrap_private) for one in keyring.generations]
        chain, sealed = fetch_newest_bundle(
            chain, self.follow, lambda: self._session.call(GetBundle(0), SealedBundle).bundle
        )
        bundle = open_bundle(sealed, Statement.parse(chain[-1]), keys)
        if bundle.name_keys != keyring.name_keys:
            raise BadRecord(
                "the account's bundle holds another name key than this machine's keyring",
                "an account never changes it: see `sfsc device list` and `sfsc audit log`",
            )
        return chain, bundle

    def drop_old_keys(self) -> None:
        """Destroy the private keys of older generations, after the account's bundle was read back
        and holds the newest generation's keys alone."""
        keyring = self._keyring
        if not has_old_keys(keyring):
            return
        chain, bundle = self._newest_bundle(keyring.statements)
        if Statement.parse(chain[-1]).generation != keyring.generations[-1].generation:
            return  # rotated meanwhile by another machine: they go when that is followed
        if bundle.generations != keyring.generations[-1:]:
            raise BadRecord("the account's bundle does not hold the present keys alone")
        self._file.save(changed(keyring, generations=bundle.generations))
        self._session.use_keyring(self._keyring)

    def prove(self, receipt: Receipt, op: str, pending: PendingStatement) -> None:
        """That the log has a statement of ours as it was sent. Raises as `Trust.receipt`."""
        keyring, session = self._keyring, self._session
        before = keyring.statements
        if pending.statement in before:  # the chain was followed to it meanwhile
            before = before[: before.index(pending.statement)]
        _, signers = rules.check_next(before, pending.statement, pending.signatures)
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
        with session.keeping_fork_evidence():
            session.trust.verify_receipt(receipt, sent)
        session.link_receipts()

    def accept(self, pending: PendingStatement) -> None:
        """What was kept as pending is the newest statement; where it began a generation, the
        session goes on with it."""
        keyring = self._keyring
        if pending.statement in keyring.statements:
            return  # the chain was followed to it meanwhile
        if pending.keys is not None:
            keyring = _with_begun(keyring, pending.keys)
        statements = (*keyring.statements, pending.statement)
        accepted = changed(keyring, statements=statements, pending=None)
        try:
            self._file.save(accepted)
        except ConflictError:
            # Another process of this machine may have followed the chain to it already.
            self._file.reload()
            if pending.statement not in self._keyring.statements:
                raise
        self._session.use_keyring(self._keyring)
        if pending.keys is not None:
            self._session.reconnect()

    def _publish(self, reason: str, change: Change, also: SigningKey | None = None) -> None:
        """Put a statement onto the chain, again where another machine was faster. `also` signs
        beside the account's own key."""
        self._session.check_trusted()
        for _ in range(MAX_CONFLICTS):
            fields = change(self.catch_up())
            if fields is None:
                return
            self._begin(reason, fields, also)
            if self._send_pending():
                return
        raise ConflictError("other machines keep changing the account", "run the command again")

    def _begin(self, reason: str, fields: dict[str, object], also: SigningKey | None) -> None:
        """Write the next statement, and keep it before it is sent."""
        keyring, current = self._keyring, self._keyring.current
        if current is None:
            raise LocalError("this keyring is not enrolled yet")
        before = keyring.statements[-1]
        head = Statement.parse(before)
        draft = _next(head, before, reason, fields)
        keys = (SigningKey.from_seed(current.sign_seed), *([also] if also is not None else []))
        pending = self.signed(draft, keyring.generations, keys)
        self._file.save(changed(keyring, pending=pending))

    def signed(
        self,
        draft: Statement,
        generations: tuple[GenerationKeys, ...],
        signers: tuple[SigningKey, ...],
        keys: GenerationKeys | None = None,
    ) -> PendingStatement:
        """Return the statement with its bundle, which holds these generations' private keys.

        `keys` are those of the generation that the statement begins, if it begins one.
        """
        keyring = self._keyring
        note = self._session.trust.newest.note
        bundle = seal_bundle(
            Bundle(generations, keyring.name_keys, keyring.pins, note),
            server=keyring.server_id,
            user=keyring.user,
            n=draft.n,
            recipients=recipients(draft),
        )
        body = changed(draft, bundle_sha256=hashlib.sha256(bundle).digest()).encode()
        signatures = tuple(key.sign(Label.STATEMENT, body) for key in signers)
        return PendingStatement(body, signatures, bundle, keys)

    def _send_pending(self) -> bool:
        """Send what is kept; whether it stands in the log now. Where the chain has grown instead
        it is dropped."""
        pending = self._keyring.pending
        if pending is None:
            return True
        message = NewStatement(pending.statement, pending.signatures, pending.bundle)
        reply = self._session.ask(message)
        if isinstance(reply, Error):
            if reply.code in ("conflict", "bad-request", "refused"):
                # What the keyring holds may be newer than when this was sent.
                self._file.save(changed(self._keyring, pending=None))
            if reply.code == "conflict":
                return False
            raise to_exception(reply)
        self.prove(expect_reply(reply, Done).receipt, "statement", pending)
        self.accept(pending)
        return True


def _with_begun(keyring: Keyring, keys: GenerationKeys) -> Keyring:
    """Return the keyring with the generation whose keys these are."""
    return changed(keyring, generations=(*keyring.generations, keys))


def _pins(
    here: tuple[tuple[str, bytes], ...], there: tuple[tuple[str, bytes], ...]
) -> tuple[tuple[str, bytes], ...]:
    """Whom this machine and another know; where they differ, this machine's own counts."""
    return tuple(sorted({**dict(there), **dict(here)}.items()))[:MAX_PINS]


def _with_device(head: Statement, device_id: bytes, public: bytes) -> dict[str, object] | None:
    """In the place of another key that this device had."""
    if (device_id, public) in head.devices:
        return None
    others = tuple(one for one in head.devices if one[0] != device_id)
    if len(others) >= MAX_DEVICES:
        raise UsageError(f"the account has {MAX_DEVICES} devices already", "see `sfsc device list`")
    return {"devices": (*others, (device_id, public))}


def _next(head: Statement, body: bytes, reason: str, fields: dict[str, object]) -> Statement:
    """The statement after `head`, whose exact bytes are `body`, but for its bundle."""
    devices, recovery = fields.get("devices", head.devices), fields.get("recovery", head.recovery)
    if not isinstance(devices, tuple) or not isinstance(recovery, RecoveryKey | None):
        raise UsageError("a statement of a wrong form")
    return changed(
        head,
        n=head.n + 1,
        devices=devices,
        recovery=recovery,
        voids=(),
        created=int(time.time()),
        prev=record_hash(body),
        reason=reason,
    )


def recipients(statement: Statement) -> list[PublicKey]:
    """All that the bundle of a statement is sealed to."""
    keys = [PublicKey(XWING, public) for _, public in statement.devices]
    if statement.recovery is not None:
        keys.append(PublicKey(XWING, statement.recovery.xwing_pub))
    return [*keys, PublicKey(statement.wrap_alg, statement.wrap_pub)]
