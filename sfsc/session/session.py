"""One login: transport, trust and state tied together.

`connect` opens a session and lets nothing pass that `trust` has not judged; what was proven is
remembered before anybody is told. After a lost connection `surviving` opens another and goes on:
every request of this protocol may be sent twice, since a record is accepted onto one head only, and
the same bytes again get the same receipt.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

from protocol.log.auditlog import LogEntry
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
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Error, FileView, Receipt, Reply, Request
from protocol.wire.messages import session as opening
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.files import Stat, Stated
from protocol.wire.messages.log import CONSISTENCY, LogProof
from sfsc.crypto.envelope import ContentKey, Recipient, RecordAuthor
from sfsc.crypto.primitives import state_key
from sfsc.errors import (
    Distrusted,
    Fork,
    KeyringMissing,
    LocalError,
    NotFound,
    Rollback,
    SfscError,
    StaleGeneration,
    Unreachable,
)
from sfsc.keys.keyring import Keyring
from sfsc.session import fork_evidence
from sfsc.session.handshake import LOST, dial, greet, login, signed_login, trust_from
from sfsc.session.limits import Timeouts
from sfsc.session.server_errors import answered, proof_in, refusal
from sfsc.threadguard import ThreadGuard
from sfsc.trust.file_records import KnownRevision, OwnAccount, VerifiedFile
from sfsc.trust.server_log import SentChange, ServerTrust
from sfsc.trust.state import ClientState, KnownFile

if TYPE_CHECKING:
    from sfsc.session.transport import Transport

MAX_LOSSES: Final = 5
"""Connections that may be lost one after the other over one step of work."""
_PAUSES: Final = (0.0, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts to connect again; a daemon is restarted within them."""
LOGGED_AS: Final = {
    PUT: "upload",
    DELETE: "delete",
    RESTORE: "restore",
    MOVE: "move",
    REENCRYPT: "reencrypt",
    PURGE: "purge",
    ACCESS: "access",
}
"""What the log calls a record's op."""

_Done = TypeVar("_Done")
_Reply = TypeVar("_Reply", bound=Reply)


class Progress(Protocol):
    """Is told how far a long step is, in bytes of plaintext, about."""

    def expect(self, size: int) -> None:
        """`size` more bytes are to be moved."""

    def advance(self, size: int) -> None:
        """`size` more bytes were moved."""


class Readers(Protocol):
    """Knows other people's keys."""

    def recipients(
        self, head: FileRecord | None, readers: tuple[ReaderEntry, ...]
    ) -> list[Recipient]:
        """Those of a file's `readers` who are to get a wrap, with their present keys. `head` is
        the file's last record as the server shows it, None for a new file."""

    def check_newest(self, head: FileRecord) -> None:
        """Raise `Rollback` where the log has a newer record of a file of ours than `head`."""

    def forget(self) -> None:
        """Somebody has newer keys than were known: ask anew."""


class _Nobody:
    """Told, and does nothing with it."""

    def expect(self, size: int) -> None:
        pass

    def advance(self, size: int) -> None:
        pass


class Session:
    """A user's way to the server. Call `connect` first; methods raise `SfscError`."""

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
        """With `anew` what is remembered of the log counts for nothing; with `recovery` the login
        is by the account's recovery key, until other keys are in `use`. Raises `KeyringMissing`
        where the keyring's first statement was never accepted."""
        if keyring.current is None or not keyring.statements:
            raise KeyringMissing("this keyring is not enrolled yet", "run `sfsc init` again")
        self.state = state
        self.keyring = keyring
        self._signing_ids: dict[int, str] = {}  # of each generation that signed here
        self.use(keyring)
        self._recovery = recovery
        self.trust = trust_from(state, keyring.server_id)
        if anew:
            self.trust = ServerTrust(keyring.server_id, statement=state.server_statement())
        self._remembered = self.trust.newest
        self.notice: opening.Notice | None = None
        """What the server had to say of our keys at the last login."""
        self.limits = opening.Limits(0, 0, 0, 0)
        self.renewer: Callable[[], object] | None = None
        """Called where the account has newer keys than this session: it finds and `use`s them."""
        self.readers: Callable[[], Readers] | None = None
        """Gives those whom files are wrapped for beside ourselves."""
        self.new_readers: Callable[[str], tuple[ReaderEntry, ...]] = lambda _name: ()
        """Who may read a new file of a name: those whom its folder is shared with."""
        self._timeouts = timeouts
        self._pause = pause
        self.turn = ThreadGuard()
        self.progress = progress or _Nobody()
        self._transport: Transport | None = None
        self.connections = 0
        self.login_record = b""
        """What the present login signed, and so the `rec` of its entry in the log."""

    @property
    def transport(self) -> Transport:
        """The present connection; after a loss, another one."""
        if self._transport is None:
            raise Unreachable("there is no connection")
        return self._transport

    def use(self, keyring: Keyring) -> None:
        """Go on with these keys; a connection that stands was opened with the ones before."""
        current = keyring.current
        if current is None:
            raise KeyringMissing("this keyring is not enrolled yet", "run `sfsc init` again")
        self._recovery = None
        if not self.state.is_current:
            # Another process of this machine has got a key of its own, and changed the state's.
            self.state.adopt_current_key(state_key(keyring.device.xwing_private))
        self.keyring = keyring
        self.account = OwnAccount.from_keyring(keyring)
        user = keyring.user
        self.author = RecordAuthor(keyring.server_id, user, user, current.generation)
        self._signing = SigningKey.from_seed(current.sign_seed)
        name = hash_of_key("ed25519", self._signing.public).hex()
        self._signing_ids[current.generation] = name

    def renew(self, error: Error) -> None:
        """Go on with the newer keys that the account has. Raises what `error`, the answer to a
        request, stands for where it is about something else or nobody can renew."""
        if self.renewer is None or error.code not in ("stale-generation", "stale-recipient"):
            raise refusal(error)
        if error.code == "stale-recipient" and self.readers is not None:
            self.readers().forget()
        self._renew()

    def keep_up(self) -> None:
        """For who needs what is cached: where another process of this machine has changed the key
        that it is kept under, have that found. Raises `LocalError` where it is not."""
        if not self.state.is_current:
            self._renew()
            self.state.check_current()

    def _renew(self) -> None:
        """Have newer keys found. All that this asks for is allowed with older ones: a server that
        calls it stale too is not renewed for again, and again within that."""
        renewer, self.renewer = self.renewer, None
        if renewer is None:
            return
        try:
            renewer()
        finally:
            self.renewer = renewer

    def wrap(
        self, key: ContentKey, head: FileRecord | None, readers: tuple[ReaderEntry, ...]
    ) -> tuple[Wrap, ...]:
        """Wrap the DEK of a version of ours for ourselves and for `readers`, all or some of the
        readers in the file's record `head` (None for a new file). Raises what `Readers` does."""
        if not readers:
            return self.account.wrap_for_readers(key)
        if self.readers is None:
            raise LocalError("nothing here knows other people's keys")
        return self.account.wrap_for_readers(key, self.readers().recipients(head, readers))

    # --- opening ------------------------------------------------------------------------------

    def connect(self) -> None:
        """Open a session, on the first of the keyring's addresses that answers.

        Raises `NetworkError`, `Denied`, and `IntegrityError` for a server that is not the pinned
        one or whose log does not continue the one remembered.
        """
        generation, key = self.author.generation, self._signing
        if self._recovery is not None:
            generation, key = 0, self._recovery
        server, user = self.keyring.server_id, self.keyring.user
        transport = dial(self.keyring.addresses, self._timeouts)
        try:
            self.limits = greet(transport, self.trust, self.state).limits
            message = login(transport, server, user, generation, key, self.trust.newest.size)
            reply = transport.call(message, transport.timeouts.opening)
            self.login_record = signed_login(transport, server, user, generation)
            opened = answered(reply, opening.Session)
            self.notice = opened.notice
            with self.judging():
                self.trust.accept_session(opened)
            self._remember()
        except BaseException:
            transport.close()
            raise
        self._transport = transport
        self.connections += 1

    def close(self) -> None:
        """Twice does no harm."""
        if self._transport is not None:
            self._transport.close()

    # --- asking -------------------------------------------------------------------------------

    def surviving(self, action: Callable[[], _Done], again: Callable[[], object]) -> _Done:
        """Do `action`; where the connection is lost, open another, do `again`, and then `action`.

        Both may be done several times. Raises what the last attempt raised.
        """
        lost = 0
        while True:
            try:
                if lost:
                    again()
                return action()
            except StaleGeneration:
                # This session was opened with keys that the account has newer ones of by now.
                if self.renewer is None or lost == MAX_LOSSES:
                    raise
                lost += 1
                self._renew()
            except LOST:
                # An answer like "busy" is of the same class, but the connection is there.
                if self.transport.usable or lost == MAX_LOSSES:
                    raise
                lost += 1
                self.reconnect()

    def reconnect(self) -> None:
        """A new login, with the keys in use; tried for as long as a daemon takes to restart."""
        self.close()
        failure: SfscError | None = None
        for seconds in _PAUSES:
            self._pause(seconds)
            try:
                return self.connect()
            except LOST as exc:
                failure = exc
        raise failure or Unreachable("the connection was lost")

    def ask(self, message: Request) -> Reply:
        """The answer to a request, be it an `Error`; sent again where the connection is lost, or
        was opened with keys that were rotated since."""
        generation = self.author.generation

        def asked() -> Reply:
            reply = self.transport.call(message)
            # Once renewed, it can only be what was signed with the older key.
            if _is_stale(reply) and self.renewer and self.author.generation == generation:
                raise refusal(cast(Error, reply))
            return reply

        return self.surviving(asked, lambda: None)

    def call(self, message: Request, kind: type[_Reply]) -> _Reply:
        """The answer to a request. Raises what an `Error` stands for."""
        return answered(self.ask(message), kind)

    def newest(self, file_id: str) -> VerifiedFile:
        """The newest version of a file of ours, deleted or not, verified and remembered.

        Raises `NotFound` where there never was one.
        """
        known = self.state.file(file_id)
        reply = self.ask(Stat(self.account.user, file_id, 0))
        missing = isinstance(reply, Error) and reply.code == "not-found"
        if missing and (known is not None or self.state.logged_revision(file_id)):
            # Records are never removed: not by rm, not by purge.
            raise Rollback("the server no longer knows a file that it had")
        return self.learn(answered(reply, Stated).view, file_id, known)

    def find(self, file_id: str) -> VerifiedFile | None:
        """As `newest`; None where there never was one."""
        try:
            return self.newest(file_id)
        except NotFound:
            return None

    def learn(self, view: FileView, file_id: str, known: KnownFile | None) -> VerifiedFile:
        """Verify and remember what the server shows as the newest version of a file of ours.

        `known` was read before the server was asked. Raises as `Owner.newest`.
        """
        file = self.account.verify_newest(view, file_id, None if known is None else known.revision)
        if known is None or file.head.rev > known.rev:
            # Without an entry: the next listing asks for what changed since the last, so for this.
            self.state.remember_file(known_file(file), None)
        return file

    def learn_head(self, file: VerifiedFile, known: KnownRevision | None) -> None:
        """Remember the head that any version of a file was shown with, verified, where it says
        which version is the newest: a put onto it must know. `known` is what was."""
        head = file.head
        if head.op in (PUT, RESTORE, MOVE) and (known is None or head.rev > known.rev):
            newest = KnownFile.from_record(head, file.head_body, head.version or 0)
            self.state.remember_file(newest, None)

    # --- changing -----------------------------------------------------------------------------

    @property
    def seen(self) -> tuple[int, bytes]:
        """Size and root of the newest proven point of the log, for the next record."""
        return self.trust.newest.size, self.trust.newest.root

    def sign(self, body: bytes) -> bytes:
        """Our signature of a file record, 64 bytes. Raises `Distrusted`."""
        self.check_trusted()
        return self._signing.sign(Label.RECORD, body)

    def signing_key(self) -> SigningKey:
        """For who signs many: `check_trusted` before any of it is sent. Raises `Distrusted`."""
        self.check_trusted()
        return self._signing

    def proven(
        self,
        receipt: Receipt,
        record: FileRecord,
        body: bytes,
        signature: bytes,
        tombstone: tuple[bytes, bytes] | None = None,
    ) -> LogEntry:
        """The log entry of a record of ours, proven from the checkpoint this session opened with.

        `tombstone` is the exact bytes and the signature of the record of the file that a move
        left. Call `join` before success is reported. Raises as `ServerTrust.receipt`.
        """
        # By the key of then: what was sent before the keys were renewed may be answered after.
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
        with self.judging():
            return self.trust.verify_receipt(receipt, sent)

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """Keep what proves that the server has told two stories, wherever a judgement finds that,
        and sign nothing more for it until somebody has looked (`Distrusted`)."""
        try:
            yield
        except (Rollback, Fork) as exc:
            if exc.notes is not None and exc.evidence is None:
                try:
                    exc.evidence = self.state.distrust_evidence() or self._keep(
                        exc.cause, exc.notes
                    )
                    exc.hint = f"both checkpoints are in {exc.evidence}; show them to others"
                except LocalError as fault:
                    # What was found is told all the same: a full disk must not hide it.
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
        """Raise `Distrusted` where the server has told two stories."""
        if (kept := self.state.distrust_evidence()) is not None:
            raise Distrusted(
                f"this server has told two stories: see {kept}",
                "where that has an explanation, say `sfsc audit accept`",
            )

    def join(self) -> None:
        """Have the receipts since the last `join` proven from each other, and remember the newest.

        Costs nothing for the first receipts of a session that are of one checkpoint. Raises `Fork`,
        and `BadReceipt` where the server will not prove that it has one log.
        """
        proofs = self.surviving(self._joining, lambda: None)
        with self.judging():
            self.trust.close_gaps(proofs)
        self._remember()

    def _joining(self) -> list[tuple[bytes, ...]]:
        asked = [
            self.transport.submit(LogProof(CONSISTENCY, old, new))
            for old, new in self.trust.consistency_gaps()
        ]
        replies = [self.transport.result(ticket) for ticket in asked]
        return [proof_in(reply) for reply in replies]

    def _remember(self) -> None:
        newest = self.trust.newest
        if newest != self._remembered:  # receipts of one commit have one checkpoint
            self.state.remember_checkpoint(newest.size, newest.root, newest.note)
            self._remembered = newest


def _is_stale(reply: Reply) -> bool:
    return isinstance(reply, Error) and reply.code == "stale-generation"


def known_file(file: VerifiedFile) -> KnownFile:
    """What to remember of a verified file whose newest version this is."""
    return KnownFile.from_record(file.head, file.head_body, file.version)
