"""One login: combines the transport, the trust in the server and the remembered state.

Everything the server sends is verified by `sfsc.trust`, and what was proven is remembered before a
method returns. After a lost connection `with_reconnect` opens another and repeats the work. Every
request of this protocol is idempotent: a record is accepted onto one head only, and the same bytes
again get the same receipt.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

from protocol.codec.terminal_text import counted
from protocol.log.auditlog import DOWNLOAD, REWRAP, LogEntry
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
    record_hash,
)
from protocol.records.records import key_id as hash_of_key
from protocol.records.signatures import SigningKey
from protocol.wire.messages import Error, FileView, Receipt, Reply, Request
from protocol.wire.messages import session as opening
from protocol.wire.messages.base import SignedRecord
from protocol.wire.messages.changes import Committed
from protocol.wire.messages.files import MAX_PAGE, History, HistoryPage, Stat, Stated
from protocol.wire.messages.log import (
    CONSISTENCY,
    MAX_LINES,
    LogCheckpoint,
    LogHead,
    LogLines,
    LogLinesPage,
    LogProof,
)
from protocol.wire.messages.rotation import GetBundle, NewStatement, RotateBegin
from protocol.wire.messages.sharing import Lookup
from protocol.wire.messages.uploads import ALL_UPLOADS, PutAbort
from sfsc.crypto.envelope import (
    ContentKey,
    Recipient,
    RecordAuthor,
    VersionWrap,
    WrapBatches,
)
from sfsc.crypto.primitives import state_key
from sfsc.errors import (
    BadReceipt,
    BadRecord,
    Denied,
    Distrusted,
    Fork,
    IntegrityError,
    KeyringMissing,
    LocalError,
    NetworkError,
    NotFound,
    Rollback,
    StaleGeneration,
    Unreachable,
)
from sfsc.keys.bundle import SeenCheckpoint
from sfsc.keys.keyring import Keyring
from sfsc.library_log import log_step, log_warning, milliseconds
from sfsc.session import evidence
from sfsc.session.follow import check_signed_to, follow_log, search_statements, shown_lines
from sfsc.session.handshake import (
    LoginKey,
    SentLogin,
    build_login,
    dial,
    login_keys,
    verify_welcome,
)
from sfsc.session.limits import Throttle, Timeouts, resolve_retry
from sfsc.session.progress import NoProgress, Progress
from sfsc.session.retry import connect_again, retry
from sfsc.session.server_errors import expect_proof, expect_reply, to_exception
from sfsc.session.waiting import Blocking, Waiting
from sfsc.threadguard import ThreadGuard
from sfsc.trust.file_records import FileOwner, KnownRevision, OwnAccount, VerifiedFile
from sfsc.trust.followed_log import (
    LOG_START,
    FollowedLog,
    LoggedHead,
    LoggedVersion,
    LogPosition,
    check_set,
    parse_line,
)
from sfsc.trust.record_chain import RecordChain
from sfsc.trust.server_log import (
    REPORT,
    LoggedRecord,
    SentChange,
    ServerTrust,
    TreeHead,
    check_matches,
    log_keys,
    quoted_note,
)
from sfsc.trust.state import ClientState, KnownFile

if TYPE_CHECKING:
    from sfsc.session.transport import Transport

_OWN_ENTRIES: Final = 65_536
"""Own entries whose hashes are kept, for receipts that arrive late."""
_EVIDENCE: Final = 4
"""Files of evidence that one session writes, beside that of a split view: one command may find many
versions changed."""
RESTRICTED_REQUESTS: Final = (Lookup, GetBundle, NewStatement, RotateBegin, PutAbort)
"""Requests of a session that does not follow the log: to adopt the account's newest keys, to join,
and to take the account back. Their answers are checked when the next session follows the log."""
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


class Readers(Protocol):
    """Looks up the keys of other users who read our files."""

    def recipients(self, readers: tuple[ReaderEntry, ...]) -> list[Recipient]:
        """Return those of a file's `readers` who get a wrap, with their present keys."""

    def forget(self) -> None:
        """Discard the known keys, because a reader has newer ones."""


class _StateDiscarded(LocalError):
    """The rows of the state that decide were removed, because somebody else has changed them: the
    log must be followed from its beginning."""


class Session:
    """A user's login on the server. Call `connect` first. Methods raise `SfscError`."""

    def __init__(
        self,
        keyring: Keyring,
        state: ClientState,
        timeouts: Timeouts | None = None,
        progress: Progress | None = None,
        *,
        throttle: Throttle | None = None,
        anew: bool = False,
        recovery: SigningKey | None = None,
        waiting: Waiting | None = None,
    ) -> None:
        """With `anew`, ignore what is remembered of the log until `accept_log`. With `recovery`,
        log in with the account's recovery key until `use_keyring` is called. Raises
        `KeyringMissing` if the server never accepted the keyring's first statement."""
        if keyring.current is None or not keyring.statements:
            raise KeyringMissing("this keyring is not enrolled yet", "run `sfsc init` again")
        self.state = state
        self.keyring: Keyring = keyring
        self._signing_ids: dict[int, str] = {}  # of each generation that signed here
        self.use_keyring(keyring)
        self._recovery = recovery
        self.trust: ServerTrust = ServerTrust.from_stored(
            keyring.server_id, state.server_statements()
        )
        self._anew = anew
        self._log: FollowedLog | None = None
        self._log_failure: IntegrityError | None = None
        self._same_log = LOG_START  # saved position that the followed log was found to continue
        self._own_entries: dict[int, bytes] = {}  # hashes of the newest own entries, by seq
        self.rewraps: list[LogEntry] = []
        """Entries of this account's re-wraps that were followed since its last rotation began, or
        since the session began."""
        self._receipts: list[tuple[int, bytes, TreeHead]] = []  # not yet found in the log
        self._receipt_head: TreeHead | None = None  # the newest one since `link_receipts`
        self.notice: opening.Notice | None = None
        """The server's notice about our keys at the last login."""
        self.limits: opening.Limits = opening.Limits(0, 0, 0, 0)
        self.renewer: Callable[[], object] | None = None
        """Finds the account's newer keys, and calls `use_keyring` with them."""
        self.adopt_saved_device: Callable[[], bool] = lambda: False
        """Continues with the keyring file as it is now; returns whether another process of this
        machine has given the device new keys."""
        self.readers: Callable[[], Readers] | None = None
        """Returns the lookup of readers' keys."""
        self.new_readers: Callable[[str], tuple[ReaderEntry, ...]] = lambda _name: ()
        """Returns the readers of a new file by its name: those with whom its folder is shared."""
        self.pads: Callable[[], bool] = lambda: False
        """Returns whether the account's settings say that contents are padded."""
        self.share_deleted: Callable[[str], VerifiedFile | None] = lambda _name: None
        """Adds the same readers to a deleted file; returns the file if it changed."""
        self.drop_left: Callable[[VerifiedFile], VerifiedFile] = lambda file: file
        """Drops the readers who have left a file; returns the file as it is then."""
        self.leave_out: Callable[[Sequence[str], str], None] = lambda _readers, _cause: None
        """Leaves these readers out of new files, because of what the text says."""
        self._timeouts = timeouts
        self._throttle = throttle
        self._waiting = waiting or Blocking()
        self._retry_for = resolve_retry(None if timeouts is None else timeouts.retry)
        self._answers = evidence.Answers()
        self._kept = 0
        self.thread_guard: ThreadGuard = ThreadGuard(self.keep_evidence)
        self.progress = progress or NoProgress()
        self.uploading = 0
        """Number of puts that are not done: the server may hold uploads of theirs."""
        self._transport: Transport | None = None
        self.connections: int = 0
        self.login: SentLogin | None = None
        """The login of the present connection, whose log entry must show it as it was sent."""
        self._login_seq: int | None = None
        self.reads_only: bool = False
        """Whether the server can log nothing, so that nothing may be signed."""
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
        with its recovery key, or by a device that has not joined yet. It may read statements and
        the bundle, join or recover, and does not follow the log: so it can show no file."""
        rotated = self.notice is not None and self.notice.state == "rotated"
        return rotated or (self.login is not None and self.login.message.device_id is None)

    @property
    def is_joining(self) -> bool:
        """Whether the account's own key opened the session, to add this device."""
        login = None if self.login is None else self.login.message
        return login is not None and login.device_id is None and login.generation > 0

    def require_followed(self) -> None:
        """Raise `StaleGeneration` if this connection does not follow the log, also after newer keys
        were looked for: then nothing that the server shows of files or other users counts. Raises
        what was found wrong with the log, too."""

        def check() -> FollowedLog:
            if self.is_restricted:
                raise StaleGeneration(
                    "the server takes this machine's keys for old ones, and shows no newer ones",
                    "run the command again; if this stays, ask the server's operator",
                )
            return self.log

        self.with_reconnect(check)

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
        self.account: OwnAccount = OwnAccount.from_keyring(keyring)
        user = keyring.user
        self.author: RecordAuthor = RecordAuthor(keyring.server_id, user, user, current.generation)
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

    def adopt_newest(self) -> None:
        """Adopt the account's newest statement if the followed log has one that this machine does
        not know. Call it before something is built that will be signed. Raises `Rollback` if the
        server does not show that statement."""
        if self.is_behind:
            self._renew()

    def refresh_state_key(self) -> None:
        """Adopt newer keys if another process of this machine has changed the key that encrypts the
        cached state. Raises `LocalError` if the state still cannot be read."""
        if not self.state.is_current:
            self._renew()
            self.state.check_current()

    def _renew(self) -> None:
        if self.renewer is not None:
            self.renewer()

    @contextlib.contextmanager
    def adopting_keys(self) -> Iterator[None]:
        """Look for newer keys in the block, and nowhere within it again. All of its requests are
        allowed with older keys: if the server calls these stale too, they are not renewed."""
        renewer, self.renewer = self.renewer, None
        try:
            yield
        finally:
            self.renewer = renewer

    def wrap(
        self,
        key: ContentKey,
        version: int,
        readers: tuple[ReaderEntry, ...],
        batches: WrapBatches,
    ) -> tuple[VersionWrap, ...]:
        """Wrap the DEK of a version of ours for ourselves and for `readers`, all or some of the
        file's readers. Raises what `Readers` does."""
        recipients = [Recipient(self.account.user, self.account.own_key)]
        if readers:
            if self.readers is None:
                raise LocalError("no lookup of other users' keys")
            recipients += self.readers().recipients(readers)
        return tuple(batches.wrap_version(key, version, recipients))

    # --- opening ------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect to the first of the keyring's addresses that answers, and log in.

        Raises `NetworkError`, `Denied`, and `IntegrityError` if the server is not the pinned one or
        if its log does not continue the one remembered.
        """
        if self._recovery is not None:
            return self._log_in(LoginKey(None, 0, self._recovery))
        account_key = LoginKey(None, self.author.generation, self._signing)
        first, *others = login_keys(self.keyring, account_key)
        try:
            self._log_in(first)
        except Denied as exc:
            for login in others:
                with contextlib.suppress(Denied):
                    return self._log_in(login)
            raise Denied(exc.cause, f"{_ENDED_HINT}; {exc.hint}") from exc

    def _log_in(self, login: LoginKey) -> None:
        try:
            self._open(login)
        except StaleGeneration:
            # The keys were rotated after the server had accepted the login, so that it shows this
            # connection no more of the log. It opens the next one to adopt the newer keys.
            self._open(login)

    def _open(self, login: LoginKey) -> None:
        server, user = self.keyring.server_id, self.keyring.user
        transport = dial(self.keyring.addresses, self._timeouts, self._answers, self._waiting)
        began = time.monotonic()
        transport.throttle = self._throttle
        try:
            with self.keeping_evidence():
                self.limits = verify_welcome(transport, self.trust, self.state).limits
            if self._log is None:
                self._log, self._log_failure = self._saved_log(), None
            sent = build_login(transport, server, user, login, self._log.size)
            reply = transport.call(sent.message, transport.timeouts.opening)
            opened = expect_reply(reply, opening.Session)
            self.login, self.notice, self._login_seq = sent, opened.notice, None
            head = self.trust.verify_note(opened.checkpoint)
            if self.is_restricted:
                # The server alone says that the keys are old ones, so nothing else is sent or
                # believed before a session has followed the log.
                transport.allowed = RESTRICTED_REQUESTS
            else:
                self._follow_login(transport, head, opened.receipt)
        except BaseException:
            transport.close()
            raise
        self._transport = transport
        self.connections += 1
        log = "with keys that are not the newest"
        if not self.is_restricted:
            log = f"to a log of {counted(head.size, 'entry', 'entries')}"
        log_step(f"logged in as {user} {log} in {milliseconds(time.monotonic() - began)}")

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
        """Log in again with the present keys, as `connect_again` does."""
        self.close()
        try:
            connect_again(self.connect, self._waiting.pause, self._retry_for, self.progress)
        except Denied:
            if not self.adopt_saved_device():
                raise
            connect_again(self.connect, self._waiting.pause, self._retry_for, self.progress)
        if self.is_restricted or self.is_behind:
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
        since = self.followed_size
        reply = self.ask(Stat(self.account.user, file_id, 0))
        missing = isinstance(reply, Error) and reply.code == "not-found"
        if missing and self.head_at(file_id, since) is not None:
            # Records are never removed: not by rm, not by purge.
            raise Rollback("the server no longer knows a file that its log has", REPORT)
        return self.verify_newest(expect_reply(reply, Stated).view, file_id, since)

    def find_newest(self, file_id: str) -> VerifiedFile | None:
        """Like `fetch_newest`, but return None if there never was such a file."""
        try:
            return self.fetch_newest(file_id)
        except NotFound:
            return None

    def verify_newest(self, view: FileView, file_id: str, since: int) -> VerifiedFile:
        """Verify and remember what the server shows as the newest version of a file of ours.

        `since` is the size to which the log was followed when the server was asked. Raises as
        `FileOwner.verify_newest` and `check_head`.
        """
        (file,) = self.verify_all_newest([(file_id, view)], since)
        return file

    def verify_all_newest(
        self, shown: Sequence[tuple[str, FileView]], since: int
    ) -> list[VerifiedFile]:
        """Verify and remember many answers (file_id, view) as `verify_newest`, at less cost."""
        file_ids = [file_id for file_id, _ in shown]
        known = self.state.files(file_ids)
        files = [
            self.account.verify_newest(view, file_id, _same_revision(known[file_id], view))
            for file_id, view in shown
        ]
        if any(view.at > self.followed_size for _, view in shown):
            self.refresh_log()
        saved = self.state.logged_heads(file_ids)
        for file, (_, view) in zip(files, shown, strict=True):
            self.check_head(file.head, file.head_body, view.at, since, saved)
        # No entry needed: the next listing asks for a file that has none.
        newer = [
            (known_file(file), None)
            for file in files
            if (before := known[file.file_id]) is None or file.head.rev > before.rev
        ]
        if newer:
            self.state.remember_files(newer)
        return files

    def check_head(
        self,
        head: FileRecord,
        body: bytes,
        at: int,
        since: int,
        saved: Mapping[str, LoggedHead] | None = None,
    ) -> None:
        """Check that `head`, whose exact bytes are `body`, is the newest record of a file of ours
        in the first `at` entries of the log, which is followed to there if needed. `saved` is as in
        `head_at`. Raises `Rollback` for an older one and `BadReceipt` for one that the log does not
        have."""
        self.follow_to(at, since)
        known = self.head_at(head.file_id, at, saved)
        shown = head.rev, record_hash(body)
        if known != shown and saved is not None:
            known = self.head_at(head.file_id, at)  # what was saved has changed since
        if known == shown:
            return
        if known is not None and head.rev < known[0]:
            raise Rollback(
                f"the server shows revision {head.rev} of a file; its log has revision {known[0]}",
                REPORT,
            )
        # Its signer had seen a log: perhaps another one than this.
        self.check_seen([TreeHead(*head.seen, quoted_note(head, body))])
        raise BadReceipt(
            f"the server shows a revision {head.rev} of a file that its log does not have", REPORT
        )

    def check_seen(self, points: Iterable[TreeHead]) -> None:
        """Check that our log continues each of these checkpoints, which signers of records had
        seen. Raises `Fork` and `Rollback`."""
        for point in points:
            if not point.size:
                continue
            newest, proof = self.trust.newest, tuple[bytes, ...]()
            if point.size < newest.size:
                proof = expect_proof(self.ask(LogProof(CONSISTENCY, point.size, newest.size)))
            with self.keeping_evidence():
                self.trust.check_continues(point, newest, proof)

    def expect_seen(self, seen: SeenCheckpoint | None) -> None:
        """Check that the server's statement continues what another device of the account had seen,
        by a bundle that it sealed. From the next login on, the log must pass that checkpoint.
        Raises `Fork` and `Rollback`."""
        if seen is not None and self.trust.find_seen(seen) is not None:
            with self.keeping_evidence():
                self.trust.check_seen_statement(seen)
            self.state.remember_seen(seen)

    def follow_to(self, at: int, since: int) -> None:
        """Follow the log to at least `at` entries, as of which the server has answered. `since` is
        the size to which it was followed when the server was asked: an answer is never older."""
        if at < since:
            raise Rollback(f"the server answers as of {at} entries, after {since} entries", REPORT)
        if at > self.followed_size:
            self.refresh_log()
        if at > self.followed_size:
            raise BadReceipt("the server answers as of entries that its log does not have", REPORT)

    def head_at(
        self, file_id: str, at: int, saved_heads: Mapping[str, LoggedHead] | None = None
    ) -> tuple[int, bytes] | None:
        """Return (rev, hash) of a file's newest record in the first `at` entries of the log, None
        if it has none. `saved_heads` are `State.logged_heads` of this file and others, read in this
        session: many files together cost less."""
        if saved_heads is not None:
            saved = saved_heads.get(file_id)
            if saved is None or saved.seq < self.followed_size:
                return self.log.head_at(file_id, at, saved_heads.get)
        try:
            saved = self.log.known_head(file_id)
        except _StateDiscarded:
            self._log, saved = self._saved_log(), None
            self.refresh_log()
        if saved is not None and saved.seq >= self.followed_size:
            self.refresh_log()  # another process of this machine has followed farther
        return self.log.head_at(file_id, at)

    def newest_heads(self, file_ids: Sequence[str]) -> dict[str, tuple[int, bytes] | None]:
        """Return (rev, hash) of the newest record of each file of ours in the followed log, None if
        it has none; for several files at less cost than `head_at`."""
        size = self.followed_size
        with contextlib.suppress(_StateDiscarded):
            saved = self.log.known_heads(file_ids)
            if all(one.seq < size for one in saved.values()):
                return {one: self.log.head_at(one, size, saved.get) for one in file_ids}
        return {one: self.head_at(one, self.followed_size) for one in file_ids}

    def logged_versions(
        self, places: Sequence[tuple[str, int]]
    ) -> tuple[dict[str, LoggedHead], dict[tuple[str, int], LoggedVersion]]:
        """Return what the followed log has of these versions (file_id, number) of our files: the
        newest record of each file, and the records of each version. What the log does not have is
        left out. Follow the log first."""
        ids = list(dict.fromkeys(file_id for file_id, _ in places))
        heads = self.state.logged_heads(ids)
        if missing := [file_id for file_id in ids if file_id not in heads]:
            for file_id in missing:
                self.head_at(file_id, self.followed_size)  # follows again what the state has lost
            heads = self.state.logged_heads(ids)
        return heads, self.state.logged_versions(places, heads)

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

    def without_left(self, file: VerifiedFile) -> VerifiedFile:
        """Return a file of ours after dropping the readers who have left it, of which the log
        tells. Call it before another record of the file is built."""
        if file.head.readers and self.log.left_readers(file.file_id):
            return self.drop_left(file)
        return file

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

    def record_signer(self) -> RecordSigner:
        """Return the signer of many records, which the caller then sends at once. Raises
        `Distrusted`."""
        self.check_trusted()
        return self._signer

    def sent_record(
        self,
        record: FileRecord,
        body: bytes,
        signature: bytes,
        tombstone: tuple[bytes, bytes] | None = None,
    ) -> SentChange:
        """Return what the log must have of a record of ours, with its packed `signature`.
        `tombstone` is the same pair for the record that a move leaves at the old name."""
        # The key of that generation: a reply may come after the keys were renewed.
        signer = self._signing_ids[record.generation]
        left = tombstone and (tombstone[0], {signer: tombstone[1]})
        return SentChange(
            op=LOGGED_AS[record.op],
            actor=record.actor,
            owner=record.owner,
            file=record.file_id,
            version=record.version,
            record=body,
            signatures={signer: signature},
            tombstone=left,
        )

    def accept_receipt(self, receipt: Receipt, sent: SentChange) -> LogEntry:
        """Verify that the entry in `receipt` is the change that was sent; `link_receipts` then
        verifies that the log has it. Raises as `ServerTrust.verify_receipt`."""
        entry, head = self.trust.verify_receipt(receipt, sent)
        self._accept([entry], receipt.first, receipt.leaves, head)
        return entry

    def accept_download(self, receipt: Receipt, owner: str) -> None:
        """Verify that the entry in `receipt` logs downloads of this account, of files of `owner`;
        `link_receipts` then verifies that the log has it. Raises `BadReceipt` and `BadRecord`."""
        head = self.trust.verify_note(receipt.checkpoint)
        entry = parse_line(receipt.line)
        if (entry.op, entry.actor, entry.owner) != (DOWNLOAD, self.account.user, owner):
            raise BadReceipt("the server shows another log entry than that of a download", REPORT)
        self._accept([entry], receipt.first, receipt.leaves, head)

    def accept_changes(
        self,
        reply: Committed,
        sent: Sequence[SentChange],
        records: Mapping[bytes, FileRecord],
        *,
        atomic: bool = False,
    ) -> list[Receipt | Error]:
        """Verify that the entries of a changeset are the changes that were sent; `link_receipts`
        then verifies that the log has them. Return the receipt of each, or the error of one that
        was refused. `records` are those of the changes, by their exact bytes. If `atomic`, the
        entries must be one set, or there must be none. Raises `BadReceipt`, `BadRecord` and
        `PartialSet`."""
        if len(reply.outcomes) != len(sent):
            raise BadReceipt("the server answers another number of changes", REPORT)
        head = self.trust.verify_note(reply.checkpoint)
        found: list[Receipt | Error] = []
        entries: list[LogEntry] = []
        accepted = (one for one in reply.outcomes if one.error is None)
        missing = self._lines(sorted({one.seq for one in accepted if not one.line}))
        for outcome, one in zip(reply.outcomes, sent, strict=True):
            if outcome.error is not None:
                found.append(outcome.error)
                continue
            line = outcome.line or missing[outcome.seq]
            entry = parse_line(line)
            check_matches(entry, one)
            if entry.seq != outcome.seq:
                raise BadReceipt("the server names another log entry than it shows", REPORT)
            entries.append(entry)
            found.append(Receipt.of_checked(line, reply.checkpoint, 0, b""))
        if atomic and entries:
            check_set(entries, len(sent))
        self._accept(entries, reply.first, reply.leaves, head, records)
        return found

    def has_set(self, sent: Sequence[SentChange]) -> bool:
        """Return whether the followed log has these changes of an atomic set. A record of theirs in
        a change of another machine, with the same bytes, does not count. Raises `PartialSet` if the
        log has only some of them, or not as one set, and `BadReceipt`."""
        found: dict[int, list[LoggedRecord]] = {}
        for body, signatures in (one for change in sent for one in change.records):
            record = FileRecord.parse(body)
            seq = self.log.find_record(record.file_id, record.rev, record_hash(body))
            if seq is not None:
                found.setdefault(seq, []).append((body, signatures))
        entries: list[LogEntry] = []
        for seq, line in self._lines(sorted(found)).items():
            entry = parse_line(line, seq)
            if self._own_entries.get(seq) != entry.hash:
                raise BadReceipt(f"the server shows another entry {seq} than its log has", REPORT)
            if any(one in entry.records for one in found[seq]):
                entries.append(entry)
        if not entries:
            return False
        check_set(entries, len(sent))
        for entry, one in zip(entries, sent, strict=True):
            check_matches(entry, one)
        return True

    def _lines(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """Return the log's lines `seqs`, which are not verified."""
        found: dict[int, bytes] = {}
        while wanted := seqs[len(found) : len(found) + MAX_LINES]:
            page = self.call(LogLines(tuple(wanted)), LogLinesPage)
            found.update(shown_lines(page, wanted))
        return found

    def _accept(
        self,
        entries: Sequence[LogEntry],
        first: int,
        leaves: bytes,
        head: TreeHead,
        records: Mapping[bytes, FileRecord] | None = None,
    ) -> None:
        with self.keeping_evidence(head):
            confirmed = self._read_receipt(entries, first, leaves, head, records)
            self._receipts.extend((entry.seq, entry.hash, head) for entry in entries)
            if confirmed:
                self._check_receipts(head)
        if self._receipt_head is None or head.size > self._receipt_head.size:
            self._receipt_head = head

    def _read_receipt(
        self,
        entries: Sequence[LogEntry],
        first: int,
        leaves: bytes,
        head: TreeHead,
        records: Mapping[bytes, FileRecord] | None = None,
    ) -> bool:
        """Take what a receipt shows of the log. If it shows all up to its checkpoint, nothing has
        to be asked for: return whether the checkpoint is confirmed."""
        log, before = self.log, self.log.size
        for entry in entries:
            check_signed_to(entry.seq + 1, head.size)
        log.add_entries(entries, records)
        if leaves and first <= log.size:
            log.add_leaves(first, leaves)
            check_signed_to(log.size, max(before, head.size))
        if head.size > log.size or log.wanted_lines(1):
            return False
        self._confirm(head)
        return True

    @contextlib.contextmanager
    def keeping_evidence(self, head: TreeHead | None = None) -> Iterator[None]:
        """Keep evidence as `keep_evidence` if the block raises. `head` is the checkpoint that was
        shown. The followed log is not used any further after an error."""
        try:
            yield
        except IntegrityError as exc:
            log, self._log, self._log_failure = self._log, None, exc
            known = b"" if log is None else log.start.note
            if isinstance(exc, (Rollback, Fork)) and exc.notes is None and head and known:
                exc.notes = (known, head.note)
            self.keep_evidence(exc)
            raise

    def keep_evidence(self, exc: BaseException) -> None:
        """Save what proves that the server has lied, if `exc` says so, and name the file in its
        hint. After two signed texts that contradict each other, sign nothing more for this server
        (`Distrusted`) until the user has looked at them. Idempotent."""
        if not isinstance(exc, IntegrityError) or exc.evidence or not exc.blames_server:
            return
        if isinstance(exc, (Rollback, Fork)):
            exc.hint = evidence.restored_hint(exc.hint)
        try:
            kept = None if exc.notes is None else self.state.distrust_evidence()
            if kept is not None:
                exc.evidence = str(kept)
                exc.hint = evidence.conflict_hint(kept)
            elif exc.notes is not None or self._kept < _EVIDENCE:
                self._kept += 1
                evidence.keep(self.state.home, self._about, exc, self._answers, self._in_force())
            if exc.notes is not None and kept is None:
                self.state.distrust(evidence.place(self.state.home, exc).name)
        except LocalError as fault:
            # Report the lie all the same: a full disk must not hide it.
            exc.hint = f"{exc.hint} ({fault.cause})"

    @property
    def _about(self) -> str:
        return f"server {self.keyring.server_id.hex()}, user {self.keyring.user}"

    def _in_force(self) -> str:
        """Return the server's statement, and the checkpoint to which this machine has followed the
        log, as text."""
        note = self.trust.newest.note or self.state.followed().note
        return f"{self.trust.signed_statement()}\n{note.decode(errors='backslashreplace')}"

    @property
    def followed_size(self) -> int:
        """The size to which the log was followed: no later answer may be older."""
        return self.trust.newest.size

    @property
    def is_behind(self) -> bool:
        """Whether the log has statements of this account that this machine has not adopted."""
        return self._log is not None and self._statements_in_log > len(self.keyring.statements)

    @property
    def _statements_in_log(self) -> int:
        return self.log.statement_count(self.keyring.first)

    def check_trusted(self) -> None:
        """Raise an error if nothing may be signed: `Distrusted` if the server has shown a split
        view, `StaleGeneration` or `Rollback` if the log has a statement of this account that was
        not adopted yet (`adopt_newest`), and `Unreachable` if it can log nothing."""
        if self.is_behind and self.renewer is None:  # nothing newer was shown when it was asked for
            raise Rollback("the log has a newer statement of this account than was shown", REPORT)
        if self.is_behind:
            raise StaleGeneration(
                "another device has changed the account meanwhile", "run the command again"
            )
        if self.reads_only:
            raise Unreachable("the server can write nothing to its log", "try again later")
        if (kept := self.state.distrust_evidence()) is not None:
            raise Distrusted(
                "this server has shown two different logs", evidence.conflict_hint(kept)
            )

    # --- following the log --------------------------------------------------------------------

    @property
    def log(self) -> FollowedLog:
        """The followed log. Raises what was wrong with it, until it was followed from another
        login, and `Unreachable` before the first one."""
        if self._log is None:
            raise self._log_failure or Unreachable("not connected")
        return self._log

    def link_receipts(self) -> None:
        """Follow the log to the checkpoints of all receipts since the last call, and check that it
        has their entries. Raises `Fork` and `BadReceipt`."""
        if self._receipt_head is not None:
            self.with_reconnect(self._follow_receipts)

    def _follow_receipts(self) -> None:
        if self._receipt_head is not None:  # else a new login has followed the log past them
            self._follow(self.transport, self._receipt_head)

    def _check_receipts(self, head: TreeHead | None = None) -> None:
        """Check that the log has the entries of the receipts with this checkpoint, or of all, whose
        checkpoints it has passed."""
        left = []
        for seq, digest, point in self._receipts:
            if head not in (None, point):
                left.append((seq, digest, point))
            elif self._own_entries.get(seq) != digest:
                cause = f"the log does not have entry {seq}, which the server has confirmed"
                raise BadReceipt(cause, REPORT)
        self._receipts = left

    def refresh_log(self) -> TreeHead:
        """Follow the log to its present end."""

        def follow() -> None:
            reply = expect_reply(self.transport.call(LogHead()), LogCheckpoint)
            self._follow(self.transport, self.trust.verify_note(reply.checkpoint))

        self.with_reconnect(follow)
        return self.trust.newest

    def accept_log(self) -> None:
        """Forget what was known of the log before this session, which was opened with `anew`."""
        self.state.reset_log()
        self._anew = False
        if self._log is not None:
            self._save(self.transport)

    def watch_contact(self, first: bytes) -> None:
        """Find all statements of another user in the log, from its beginning; `first` is the hash
        of the first one. From then on, following the log finds the later ones."""
        if self.log.watches(first):
            return

        def search() -> None:
            # At exactly the checkpoint to which the log was followed.
            head = self.refresh_log()
            sequence = self.log.identity_sequence(first)
            with self.keeping_evidence(head):
                search_statements(self.transport, sequence, head)
            self.log.watch_found(first, sequence)

        self.with_reconnect(search)
        self.with_reconnect(lambda: self._save(self.transport))

    def _follow_login(self, transport: Transport, head: TreeHead, receipt: Receipt | None) -> None:
        """Follow the log to the checkpoint of this login, whose entry must be in it. Without a
        `receipt`, the server can log nothing at present: the session only reads."""
        with self.keeping_evidence(head):
            if head.size < self.log.size:
                raise Rollback(
                    f"the server's log has {head.size} entries, fewer than {self.log.size} seen",
                    REPORT,
                )
            try:
                if receipt is not None:
                    entry = parse_line(receipt.line)
                    self._read_receipt([entry], receipt.first, receipt.leaves, head)
                self._follow(transport, head)
            except _StateDiscarded:
                self._log = self._saved_log()
                self._follow(transport, head)
        self.reads_only = receipt is None
        if receipt is not None and self._login_seq is None:
            raise Rollback("the log does not show this session's own login", REPORT)
        if not self._anew and self._statements_in_log < len(self.keyring.statements):
            raise Rollback("the log lacks statements of this account that were accepted", REPORT)
        known = enumerate(self.keyring.statements, 1)
        if not self._anew and any(self.log.statements.get(n, body) != body for n, body in known):
            raise BadReceipt(
                "the log has another statement of this account than known here", REPORT
            )
        if self.reads_only:
            log_warning(
                "the server can write nothing to its log",
                "its disk may be full",
                "files can be read; tell its operator",
            )

    def _saved_log(self) -> FollowedLog:
        """Return the log as far as it was followed before, by any process of this machine."""
        keyring, start, contacts = self.keyring, LOG_START, dict[bytes, int]()
        if not self._anew:
            with self.state.transaction():  # of one moment: another process may save both
                start, contacts = self.state.followed(), self.state.contacts()
        self._same_log = start

        def known_heads(file_ids: Sequence[str]) -> Mapping[str, LoggedHead]:
            if self._anew:
                return {}
            heads = self.state.logged_heads(file_ids)
            if len(heads) < len(file_ids) and self.state.followed().size < start.size:
                if not self.state.is_current:  # another process has changed the device's key
                    self.refresh_state_key()
                    return self.state.logged_heads(file_ids)
                # The rows that decide were removed since, because they were not ours.
                cause = f"{self.state.path} was changed by something else than sfsc"
                raise _StateDiscarded(cause, "run the command again")
            return heads

        log = FollowedLog(
            *(keyring.server_id, keyring.user, keyring.first, keyring.tag_key, start, known_heads),
            () if self._anew else self.state.left_readers(),
        )
        for first, n in contacts.items():
            log.watch_contact(first, n)
        return log

    def _follow(self, transport: Transport, head: TreeHead) -> None:
        """Follow the log to `head`, past the checkpoints of receipts and of other devices, and save
        how far."""
        points = {(one.size, one.root): one for _, _, one in self._receipts}
        if (newest := self._receipt_head) is not None:
            points[newest.size, newest.root] = newest
        with self.keeping_evidence(head):
            if (others := self._others_checkpoint(head)) is not None:
                points[others.size, others.root] = others
            for (size, _), point in sorted(points.items()):
                if self.log.size < size or self.log.can_confirm(size):
                    self._pass(transport, point, head)
                else:
                    self.trust.check_continues(point, head, _consistency(transport, point, head))
            follow_log(transport, self.log, head)
            self._confirm(head)
            self._check_receipts()
            self._receipt_head = None
            self._check_newest_seen(transport, head)
        self._save(transport)
        if others is not None:
            self.state.forget_must_pass()

    def _check_newest_seen(self, transport: Transport, head: TreeHead) -> None:
        """Check what the other machines of the account had seen of the log when they signed their
        last records: the server may show them another log, with the same records in it."""
        if (found := self.log.take_newest_seen()) is None or self.trust.has_proven(found[0].seen):
            return
        point = TreeHead(*found[0].seen, quoted_note(*found))
        if point.size:
            self.trust.check_continues(point, head, _consistency(transport, point, head))

    def _pass(self, transport: Transport, point: TreeHead, head: TreeHead) -> None:
        """Follow the log to an earlier checkpoint than `head`, which it must pass."""
        try:
            follow_log(transport, self.log, point)
        except Fork as exc:
            exc.notes = exc.notes or (point.note, head.note)
            raise

    def _others_checkpoint(self, head: TreeHead) -> TreeHead | None:
        """Return the checkpoint of another device that the log was not yet found to pass. Raises
        `Rollback` if the log is shorter at `head`."""
        if self._anew or (note := self.state.must_pass()) is None:
            return None
        statements = self.state.server_statements()
        point = self.trust.verify_checkpoint(note, log_keys(self.trust.pin, statements))
        if point.size > head.size:
            raise Rollback(
                f"the server's log has {head.size} entries, fewer than {point.size} that another"
                " device of this account has seen",
                REPORT,
                notes=(point.note, head.note),
            )
        return point

    def _confirm(self, head: TreeHead) -> None:
        """Check what was read of the log against the signed `head`, and take it for true."""
        self.log.confirm(head.size, head.root)
        for seq, entry in self.log.take_entries().items():
            self._own_entries[seq] = entry.hash
            if (entry.op, entry.owner) == ("rotate-begin", self.account.user):
                self.rewraps = []
            elif entry.op == REWRAP and entry.actor == self.account.user:
                self.rewraps.append(entry)
            if self.login is not None and self.login.is_logged_by(entry):
                self._login_seq = seq
        while len(self._own_entries) > _OWN_ENTRIES:
            del self._own_entries[next(iter(self._own_entries))]
        if head.size == self.log.size:
            self.trust.newest = head

    def _save(self, transport: Transport) -> None:
        """Remember how far the log was followed, if it is the one that other processes of this
        machine have followed meanwhile. Raises as `_check_same_log`."""
        log, newest, state = self.log, self.trust.newest, self.state
        if self._anew or newest.size != log.size:
            return
        position, changes = log.position(newest.note), log.take_changes()
        saved = state.followed()
        while True:
            if saved.size and saved not in (self._same_log, position):
                self._check_same_log(transport, saved)
            self._same_log = saved
            state.save_followed(position, changes, log.contacts(), log.start.size, saved)
            if (found := state.followed()) in (position, saved):
                break  # `saved`: the other process has followed farther, and has learnt the same
            saved = found
        self._same_log = found

    def _check_same_log(self, transport: Transport, saved: LogPosition) -> None:
        """Check that another process of this machine has followed the same log to `saved`: shown
        two, each would save what it learns, and the state would forget one of them. Raises `Fork`,
        and `Rollback` if the server does not prove it."""
        theirs = TreeHead(saved.size, saved.root, saved.note)
        old, new = sorted((theirs, self.trust.newest), key=lambda point: point.size)
        with self.keeping_evidence():
            try:
                proof = _consistency(transport, old, new)
            except BadReceipt as exc:
                cause = "the server does not prove that another process has seen the same log"
                raise Rollback(cause, REPORT, notes=(old.note, new.note)) from exc
            self.trust.check_continues(old, new, proof)


def _consistency(transport: Transport, old: TreeHead, new: TreeHead) -> tuple[bytes, ...]:
    """Return what the server sends to prove that the log at `new` continues that at `old`."""
    if old.size in (0, new.size):
        return ()
    return expect_proof(transport.call(LogProof(CONSISTENCY, old.size, new.size)))


def _is_stale(reply: Reply) -> bool:
    return isinstance(reply, Error) and reply.code == "stale-generation"


def _same_revision(known: KnownFile | None, view: FileView) -> KnownRevision | None:
    """Return what is known of the very record that is shown as the last: its signature may have
    been verified. Whether it is the newest one, the log tells."""
    last = view.content if view.head is None else view.head
    if known is None or record_hash(last.record) != known.hash:
        return None
    return known.revision


def known_file(file: VerifiedFile) -> KnownFile:
    """Return what the state remembers of a verified file, of which this is the newest version."""
    return KnownFile.from_record(file.head, file.head_body, file.version)
