"""One login: combines the transport, the trust in the server and the remembered state.

Everything the server sends is verified by `sfsc.trust`, and what was proven is remembered before a
method returns. After a lost connection `with_reconnect` opens another and repeats the work. Every
request of this protocol is idempotent: a record is accepted onto one head only, and the same bytes
again get the same receipt.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

from protocol.log.auditlog import LogEntry
from protocol.records.record_signatures import RecordSigner
from protocol.records.records import (
    ACCESS,
    DELETE,
    MOVE,
    PURGE,
    PUT,
    REENCRYPT,
    RESTORE,
    FileRecord,
    ReaderEntry,
)
from protocol.records.records import key_id as hash_of_key
from protocol.records.signatures import SigningKey
from protocol.wire.messages import Error, FileView, Receipt, Reply, Request
from protocol.wire.messages import session as opening
from protocol.wire.messages.base import SignedRecord, Wrap
from protocol.wire.messages.files import MAX_PAGE, History, HistoryPage, Stat, Stated
from protocol.wire.messages.log import CONSISTENCY, LogCheckpoint, LogHead, LogProof
from protocol.wire.messages.uploads import ALL_UPLOADS, PutAbort
from sfsc.crypto.envelope import ContentKey, Recipient, RecordAuthor, WrapBatches
from sfsc.crypto.primitives import state_key
from sfsc.errors import (
    BadRecord,
    Denied,
    Distrusted,
    Fork,
    KeyringMissing,
    LocalError,
    NetworkError,
    NotFound,
    Rollback,
    Unreachable,
)
from sfsc.keys.keyring import Keyring
from sfsc.session import fork_evidence
from sfsc.session.handshake import (
    LoginKey,
    SentLogin,
    build_login,
    dial,
    login_keys,
    verify_welcome,
)
from sfsc.session.limits import Timeouts
from sfsc.session.retry import connect_again, retry
from sfsc.session.server_errors import expect_proof, expect_reply, to_exception
from sfsc.threadguard import ThreadGuard
from sfsc.trust.file_records import FileOwner, KnownRevision, OwnAccount, VerifiedFile
from sfsc.trust.record_chain import RecordChain
from sfsc.trust.server_log import REPORT, SentChange, ServerTrust, TreeHead
from sfsc.trust.state import ClientState, KnownFile

if TYPE_CHECKING:
    from sfsc.session.transport import Transport

_ABORT_SECONDS: Final = 5.0
"""Wait for the end of uploads that were interrupted: what was queued is sent before."""
LOGGED_AS: Final = {
    PUT: "upload",
    DELETE: "delete",
    RESTORE: "restore",
    MOVE: "move",
    REENCRYPT: "reencrypt",
    PURGE: "purge",
    ACCESS: "access",
}
"""Op of a record -> op of its log entry."""

_ENDED_HINT: Final = (
    "if this device was dropped, join again by `sfsc init --recovery` in an empty --home; if an "
    "attacker dropped it, take the account back by `sfsc rotate --recovery`"
)
_Done = TypeVar("_Done")
_Reply = TypeVar("_Reply", bound=Reply)


class Progress(Protocol):
    """Receives the progress of a long step, in approximate bytes of plaintext."""

    def expect(self, size: int) -> None:
        """Announce that `size` more bytes will be transferred."""

    def advance(self, size: int) -> None:
        """Report that `size` more bytes were transferred."""


class Readers(Protocol):
    """Looks up the keys of other users who read our files."""

    def recipients(
        self, head: FileRecord | None, readers: tuple[ReaderEntry, ...]
    ) -> list[Recipient]:
        """Return those of a file's `readers` who get a wrap, with their present keys. `head` is the
        file's last record as the server shows it, None for a new file."""

    def check_newest(self, head: FileRecord) -> None:
        """Raise `Rollback` if the log has a newer record of this file of ours than `head`."""

    def forget(self) -> None:
        """Discard the known keys, because a reader has newer ones."""


class _Nobody:
    """Ignores all progress."""

    def expect(self, size: int) -> None:
        pass

    def advance(self, size: int) -> None:
        pass


class Session:
    """A user's login on the server. Call `connect` first. Methods raise `SfscError`."""

    def __init__(
        self,
        keyring: Keyring,
        state: ClientState,
        timeouts: Timeouts | None = None,
        pause: Callable[[float], None] = time.sleep,
        progress: Progress | None = None,
        *,
        anew: bool = False,
        recovery: SigningKey | None = None,
    ) -> None:
        """With `anew`, ignore what is remembered of the log. With `recovery`, log in with the
        account's recovery key until `use_keyring` is called. Raises `KeyringMissing` if the server
        never accepted the keyring's first statement."""
        if keyring.current is None or not keyring.statements:
            raise KeyringMissing("this keyring is not enrolled yet", "run `sfsc init` again")
        self.state = state
        self.keyring = keyring
        self._signing_ids: dict[int, str] = {}  # of each generation that signed here
        self.use_keyring(keyring)
        self._recovery = recovery
        newest = None if anew else state.checkpoint()
        statement, signature = state.server_statement() or (None, b"")
        self.trust = ServerTrust(
            keyring.server_id,
            statement=statement,
            signature=signature,
            newest=None if newest is None else TreeHead(*newest),
        )
        self._remembered = self.trust.newest
        self.notice: opening.Notice | None = None
        """The server's notice about our keys at the last login."""
        self.limits = opening.Limits(0, 0, 0, 0)
        self.renewer: Callable[[], object] | None = None
        """Finds the account's newer keys, and calls `use_keyring` with them."""
        self.adopt_saved_device: Callable[[], bool] = lambda: False
        """Continues with the keyring file as it is now; returns whether another process of this
        machine has given the device new keys."""
        self.readers: Callable[[], Readers] | None = None
        """Returns the lookup of readers' keys."""
        self.new_readers: Callable[[str], tuple[ReaderEntry, ...]] = lambda _name: ()
        """Returns the readers of a new file by its name: those with whom its folder is shared."""
        self.share_deleted: Callable[[str], VerifiedFile | None] = lambda _name: None
        """Adds the same readers to a deleted file; returns the file if it changed."""
        self._timeouts = timeouts
        self._pause = pause
        self.thread_guard = ThreadGuard()
        self.progress = progress or _Nobody()
        self.uploading = 0
        """Number of puts that are not done: the server may hold uploads of theirs."""
        self._transport: Transport | None = None
        self.connections = 0
        self.login: SentLogin | None = None
        """The login of the present connection, whose log entry must show it as it was sent."""
        self._record_chain: RecordChain | None = None  # of the file that was last asked for

    @property
    def transport(self) -> Transport:
        """The present connection; a different one after a loss."""
        if self._transport is None:
            raise Unreachable("not connected")
        return self._transport

    @property
    def is_restricted(self) -> bool:
        """Whether the session was opened with keys of another generation than the account's newest,
        or by a device that has not joined yet. The server then gives it no file."""
        return self.is_joining or (self.notice is not None and self.notice.state == "rotated")

    @property
    def is_joining(self) -> bool:
        """Whether the account's own key opened the session, to add this device."""
        login = None if self.login is None else self.login.message
        return login is not None and login.device_id is None and login.generation > 0

    def use_keyring(self, keyring: Keyring) -> None:
        """Use these keys from now on; the present connection was opened with the ones before."""
        current = keyring.current
        if current is None:
            raise KeyringMissing("this keyring is not enrolled yet", "run `sfsc init` again")
        self._recovery = None
        if not self.state.is_current:
            # Another process of this machine rotated the device's key, and with it the state's.
            self.state.adopt_current_key(state_key(keyring.device.xwing_private))
        self.keyring = keyring
        self.account = OwnAccount.from_keyring(keyring)
        user = keyring.user
        self.author = RecordAuthor(keyring.server_id, user, user, current.generation)
        self._signing = SigningKey.from_seed(current.sign_seed)
        self._signer = RecordSigner(
            self._signing, keyring.server_id, self.account.first, current.generation
        )
        name = hash_of_key("ed25519", self._signing.public).hex()
        self._signing_ids[current.generation] = name

    def renew_keys(self, error: Error) -> None:
        """Adopt the newer keys that the account has, if `error` asks for that. Raises the exception
        of `error` if it is about something else, or if newer keys cannot be found."""
        if self.renewer is None or error.code not in ("stale-generation", "stale-recipient"):
            raise to_exception(error)
        if error.code == "stale-recipient" and self.readers is not None:
            self.readers().forget()
        self._renew()

    def refresh_state_key(self) -> None:
        """Adopt newer keys if another process of this machine has changed the key that encrypts the
        cached state. Raises `LocalError` if the state still cannot be read."""
        if not self.state.is_current:
            self._renew()
            self.state.check_current()

    def _renew(self) -> None:
        """Call `renewer`, but not from within itself. All of its requests are allowed with older
        keys: if the server calls these stale too, they are not renewed again."""
        renewer, self.renewer = self.renewer, None
        if renewer is None:
            return
        try:
            renewer()
        finally:
            self.renewer = renewer

    def wrap(
        self,
        key: ContentKey,
        head: FileRecord | None,
        readers: tuple[ReaderEntry, ...],
        batches: WrapBatches | None = None,
    ) -> tuple[Wrap, ...]:
        """Wrap the DEK of a version of ours for ourselves and for `readers`, all or some of the
        readers in the file's record `head` (None for a new file), in `batches` or else in fresh
        ones. Raises what `Readers` does."""
        if not readers:
            return self.account.wrap_for_readers(key, (), batches)
        if self.readers is None:
            raise LocalError("no lookup of other users' keys")
        recipients = self.readers().recipients(head, readers)
        return self.account.wrap_for_readers(key, recipients, batches)

    # --- opening ------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect to the first of the keyring's addresses that answers, and log in.

        Raises `NetworkError`, `Denied`, and `IntegrityError` if the server is not the pinned one or
        if its log does not continue the one remembered.
        """
        if self._recovery is not None:
            return self._log_in(LoginKey(None, 0, self._recovery))
        account_key = LoginKey(None, self.author.generation, self._signing)
        first, second = login_keys(self.keyring, account_key)
        try:
            self._log_in(first)
        except Denied as exc:
            try:
                self._log_in(second)
            except Denied:
                raise Denied(exc.cause, f"{_ENDED_HINT}; {exc.hint}") from exc

    def _log_in(self, login: LoginKey) -> None:
        server, user = self.keyring.server_id, self.keyring.user
        transport = dial(self.keyring.addresses, self._timeouts)
        try:
            with self.keeping_fork_evidence():
                self.limits = verify_welcome(transport, self.trust, self.state).limits
            sent = build_login(transport, server, user, login, self.trust.newest.size)
            reply = transport.call(sent.message, transport.timeouts.opening)
            opened = expect_reply(reply, opening.Session)
            self.login, self.notice = sent, opened.notice
            with self.keeping_fork_evidence():
                self.trust.accept_session(opened)
            self._remember()
        except BaseException:
            transport.close()
            raise
        self._transport = transport
        self.connections += 1

    def abort_uploads(self) -> None:
        """Have the server drop all uploads that this session has not committed, so that they hold
        no quota any more. Does nothing if the connection is lost: then the server drops them when
        their room is needed."""
        if self._transport is not None and self._transport.usable:
            with contextlib.suppress(NetworkError):
                self._transport.call(PutAbort(ALL_UPLOADS), _ABORT_SECONDS)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._transport is not None:
            self._transport.close()

    # --- asking -------------------------------------------------------------------------------

    def with_reconnect(self, action: Callable[[], _Done]) -> _Done:
        """Return the result of `action`, repeated on a new connection if one is lost, and with
        newer keys if the account has them. Raises the error of the last attempt."""
        return retry(
            action,
            usable=lambda: self.transport.usable,
            reconnect=self.reconnect,
            renew=None if self.renewer is None else self._renew,
        )

    def reconnect(self) -> None:
        """Log in again with the present keys, retrying for as long as a daemon takes to restart."""
        self.close()
        try:
            connect_again(self.connect, self._pause)
        except Denied:
            if not self.adopt_saved_device():
                raise
            connect_again(self.connect, self._pause)
        if self.is_joining:
            self._renew()

    def ask(self, message: Request) -> Reply:
        """Return the reply to a request, which may be an `Error`. The request is repeated if the
        connection is lost, or was opened with keys that were rotated since."""
        generation = self.author.generation

        def asked() -> Reply:
            reply = self.transport.call(message)
            # After a renewal, only a signature in the message itself can be stale.
            if _is_stale(reply) and self.renewer and self.author.generation == generation:
                raise to_exception(cast(Error, reply))
            return reply

        return self.with_reconnect(asked)

    def call(self, message: Request, kind: type[_Reply]) -> _Reply:
        """Return the reply to a request. Raises the exception of an `Error`."""
        return expect_reply(self.ask(message), kind)

    def fetch_newest(self, file_id: str) -> VerifiedFile:
        """Fetch, verify and remember the newest version of a file of ours, deleted or not.

        Raises `NotFound` if there never was one.
        """
        known = self.state.file(file_id)
        reply = self.ask(Stat(self.account.user, file_id, 0))
        missing = isinstance(reply, Error) and reply.code == "not-found"
        if missing and (known is not None or self.state.logged_revision(file_id)):
            # Records are never removed: not by rm, not by purge.
            raise Rollback("the server no longer knows a file that it had")
        return self.verify_newest(expect_reply(reply, Stated).view, file_id, known)

    def find_newest(self, file_id: str) -> VerifiedFile | None:
        """Like `fetch_newest`, but return None if there never was such a file."""
        try:
            return self.fetch_newest(file_id)
        except NotFound:
            return None

    def verify_newest(self, view: FileView, file_id: str, known: KnownFile | None) -> VerifiedFile:
        """Verify and remember what the server shows as the newest version of a file of ours.

        `known` was read before the server was asked. Raises as `FileOwner.verify_newest`.
        """
        file = self.account.verify_newest(view, file_id, None if known is None else known.revision)
        if known is None or file.head.rev > known.rev:
            # No entry needed: the next listing asks for all changes since the last, with this one.
            self.state.remember_file(known_file(file), None)
        return file

    def confirm_version(
        self, file: VerifiedFile, owner: FileOwner | None = None, *, newest: bool = False
    ) -> VerifiedFile:
        """Confirm that the records of a file name the content that a version was shown with.

        The last record names the content of the current version. Any other content must be that of
        the last record of its version on the chain of records that leads to the head; these are
        fetched from the server. With `newest`, no later record may have made another version.
        `owner` shares the file with us, None for a file of our own. Raises `Rollback` if another
        record made the version, `BadRecord` if the records do not lead to the head, and `Damaged`.
        """
        if file.is_confirmed and not newest:
            return file
        chain = self._record_chain
        if chain is None or not chain.extend(file):
            chain = self._record_chain = RecordChain(file)
        while chain.first > file.content.rev:
            first = max(1, chain.first - MAX_PAGE)
            chain.prepend(self._fetch_records(owner or self.account, file.file_id, first, chain))
        return chain.confirm(file, newest=newest)

    def _fetch_records(
        self, owner: FileOwner, file_id: str, first: int, chain: RecordChain
    ) -> list[SignedRecord]:
        """Return a file's records from revision `first` up to the first one of `chain`."""
        found: list[SignedRecord] = []
        while first + len(found) < chain.first:
            page = self.call(History(owner.user, file_id, first + len(found)), HistoryPage)
            if not page.records:
                raise BadRecord("the server shows a part of the file's records only", REPORT)
            found += page.records
        return found[: chain.first - first]

    def remember_head(self, file: VerifiedFile, known: KnownRevision | None) -> None:
        """Remember the head that a verified version was shown with, if it says which version is the
        newest: a later put builds on it. `known` is what was known before."""
        head = file.head
        if head.op in (PUT, RESTORE, MOVE) and (known is None or head.rev > known.rev):
            newest = KnownFile.from_record(head, file.head_body, head.version or 0)
            self.state.remember_file(newest, None)

    # --- changing -----------------------------------------------------------------------------

    @property
    def seen(self) -> tuple[int, bytes]:
        """(size, root) of the newest proven checkpoint, for the next record."""
        return self.trust.newest.size, self.trust.newest.root

    def sign(self, *bodies: bytes) -> list[bytes]:
        """Sign file records (exact bytes) together; return their packed signatures. Raises
        `Distrusted`."""
        return self.record_signer().sign(bodies)

    def record_signer(self) -> RecordSigner:
        """Return the signer of many records, which the caller then sends at once. Raises
        `Distrusted`."""
        self.check_trusted()
        return self._signer

    def verify_receipt(
        self,
        receipt: Receipt,
        record: FileRecord,
        body: bytes,
        signature: bytes,
        tombstone: tuple[bytes, bytes] | None = None,
    ) -> LogEntry:
        """Verify that the log has a record of ours, and that the log continues the one of this
        login. Return its log entry.

        `tombstone` is the exact bytes and the signature of the record that a move leaves at the old
        name. Call `link_receipts` before reporting success. Raises as `ServerTrust.verify_receipt`.
        """
        # The key of that generation: a reply may come after the keys were renewed.
        signer = self._signing_ids[record.generation]
        left = tombstone and (tombstone[0], {signer: tombstone[1]})
        sent = SentChange(
            op=LOGGED_AS[record.op],
            actor=record.actor,
            owner=record.owner,
            file=record.file_id,
            version=record.version,
            record=body,
            signatures={signer: signature},
            tombstone=left,
        )
        with self.keeping_fork_evidence():
            return self.trust.verify_receipt(receipt, sent)

    @contextlib.contextmanager
    def keeping_fork_evidence(self) -> Iterator[None]:
        """Save the evidence of a split view if the block finds one, and sign nothing more for this
        server (`Distrusted`) until the user has looked at it."""
        try:
            yield
        except (Rollback, Fork) as exc:
            if exc.notes is not None and exc.evidence is None:
                try:
                    exc.evidence = self.state.distrust_evidence() or self._keep(
                        exc.cause, exc.notes
                    )
                    exc.hint = f"both are in {exc.evidence}; show them to others"
                except LocalError as fault:
                    # Report the fork all the same: a full disk must not hide it.
                    exc.hint = f"{exc.hint} ({fault.cause})"
            raise

    def _keep(self, what: str, notes: tuple[bytes, bytes]) -> str:
        about = f"server {self.keyring.server_id.hex()}, user {self.keyring.user}"
        path = fork_evidence.place(self.state.home, notes)
        try:
            fork_evidence.save(path, about, what, notes)
        finally:
            self.state.distrust(str(path))
        return str(path)

    def check_trusted(self) -> None:
        """Raise `Distrusted` if the server has shown a split view."""
        if (kept := self.state.distrust_evidence()) is not None:
            raise Distrusted(
                f"this server has shown two different logs: see {kept}",
                "if there is an explanation, run `sfsc audit accept`",
            )

    def link_receipts(self) -> None:
        """Prove that the checkpoints of all receipts since the last call are of one log, and
        remember the newest.

        This costs nothing for the first receipts of a session if they have one checkpoint. Raises
        `Fork`, and `BadReceipt` if the server declines the proof.
        """
        proofs = self.with_reconnect(self._fetch_consistency_proofs)
        with self.keeping_fork_evidence():
            self.trust.close_gaps(proofs)
        self._remember()

    def refresh_log(self) -> TreeHead:
        """Fetch the log's present checkpoint, and verify that it continues what is known."""
        head = self.call(LogHead(0), LogCheckpoint)
        with self.keeping_fork_evidence():
            self.trust.accept_checkpoint(head.checkpoint, head.consistency)
        self.link_receipts()
        return self.trust.newest

    def _fetch_consistency_proofs(self) -> list[tuple[bytes, ...]]:
        asked = [
            self.transport.submit(LogProof(CONSISTENCY, old, new))
            for old, new in self.trust.consistency_gaps()
        ]
        replies = [self.transport.result(ticket) for ticket in asked]
        return [expect_proof(reply) for reply in replies]

    def _remember(self) -> None:
        newest = self.trust.newest
        if newest != self._remembered:  # receipts of one commit share a checkpoint
            self.state.remember_checkpoint(newest.size, newest.root, newest.note)
            self._remembered = newest


def _is_stale(reply: Reply) -> bool:
    return isinstance(reply, Error) and reply.code == "stale-generation"


def known_file(file: VerifiedFile) -> KnownFile:
    """Return what the state remembers of a verified file, of which this is the newest version."""
    return KnownFile.from_record(file.head, file.head_body, file.version)
