"""Context of an operation: the session that asks, the server's parts, and the operation table.

`@operation` fills the table. It serves three purposes: `sfsd.net.dispatch` dispatches by it, it is
the matrix of which session may send which request, and it lists the log entry each request makes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

from protocol.codec.values import Mutable, Value, field
from protocol.log.auditlog import EntryDraft
from protocol.records.records import ServerStatement, server_id
from protocol.wire.messages import Done, Error, Receipt, Reply, Request
from sfsd.errors import OperationError, Refused, SfsdError
from sfsd.fs.descriptors import DescriptorBudget
from sfsd.histogram import Histogram
from sfsd.log.journal import Journal
from sfsd.rules.access import Visibility
from sfsd.rules.reader_wishes import ReaderWishes
from sfsd.rules.record_rules import Admission
from sfsd.rules.refusal_log import RefusalLog
from sfsd.rules.users import UserRegistry
from sfsd.settings.config import Config
from sfsd.state.documents import Documents
from sfsd.state.file_index import FileIndex
from sfsd.state.inbox_index import InboxIndex
from sfsd.state.last_logins import LastLogins
from sfsd.state.logged_downloads import LoggedDownloads
from sfsd.state.read_handles import ReadHandles
from sfsd.state.scrub_progress import ScrubProgress
from sfsd.state.uploads import UploadRegistry
from sfsd.storage.change import Change
from sfsd.storage.committer import Committer
from sfsd.storage.crash_recovery import RecoveryReport
from sfsd.storage.store import DirectoryStore


class Access(Enum):
    """The key that opened a session, which decides the requests it may send."""

    FULL = "a device of the user that has the newest keys"
    RESTRICTED = "a device with keys of another generation: only what it needs to find the newest"
    JOINING = "the user's newest signing key: the same, and a statement that adds a device"
    RECOVERY = "the user's recovery key: the same, and a statement that recovers the account"
    OPERATOR = "the operator's key: accounts and the daemon itself, no files"
    MONITOR = "the operator's key: only the status; not logged, so that it may be asked for often"


class Principal(Mutable):
    """One open session and its user.

    `generation` is that of the keys that the session was opened with (0: the recovery key).
    `session` is the sequence number of its login entry, -1 if a failed log could not take one.
    `known_size` is the size up to which the session was shown the log's leaves. `address` is the
    peer's IP address as text. `ended` is set when the connection is closed. `signer` is the Ed25519
    public key (32 bytes) that signed the login. `published` is set when the session has extended
    the identity chain: it may still read the log up to what it has done.
    """

    user: str
    generation: int
    access: Access
    session: int
    known_size: int
    address: str
    ended: bool = False
    signer: bytes = b""
    published: bool = False


class ServerIdentity(Value):
    """The server's signed statement, SHA-256 of this daemon's TLS key (SubjectPublicKeyInfo), which
    the statement names, and the operator's Ed25519 public key (32 bytes)."""

    body: bytes
    signature: bytes
    spki_sha256: bytes
    operator_public: bytes
    statement: ServerStatement
    server_id: bytes

    @classmethod
    def parse(
        cls, body: bytes, signature: bytes, spki_sha256: bytes, operator_public: bytes
    ) -> Self:
        """Build from the statement's encoded `body`. Raises `RemoteProtocolError` if malformed."""
        statement = ServerStatement.parse(body)
        server = server_id(statement.server_pub)
        return cls(body, signature, spki_sha256, operator_public, statement, server)


class ServerMetrics(Mutable):
    """Address and counters of the running daemon, since its start. Only the loop's thread changes
    them.

    `metrics_address` is that of the metrics, if they are served. `received` and `sent` are bytes
    inside TLS. `requests` has the seconds from the start of a request to its reply, by the name of
    its message. `refusals` are requests, changes and logins by error code; `disconnected` are
    connections by a few fixed words. `failed_jobs` says of each job whose last run failed why.
    """

    address: str = ""
    metrics_address: str = ""
    started: int = 0
    connections: int = 0
    sessions: int = 0
    received: int = 0
    sent: int = 0
    requests: dict[str, Histogram] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    disconnected: Counter[str] = field(default_factory=Counter)
    failed_jobs: dict[str, str] = field(default_factory=dict)

    def count_request(self, name: str, seconds: float) -> None:
        """Count an answered request."""
        found = self.requests.get(name)
        if found is None:
            found = self.requests[name] = Histogram()
        found.add(seconds)


class ServerContext:
    """Everything that operations use, built on an opened store and log.

    `root` is the daemon's directory. `clock` returns Unix seconds. `recovered` says what opening
    the root had to repair.
    """

    def __init__(
        self,
        root: Path,
        config: Config,
        identity: ServerIdentity,
        store: DirectoryStore,
        journal: Journal,
        committer: Committer,
        clock: Callable[[], float],
    ) -> None:
        self.root = root
        self.config = config
        self.identity = identity
        self.store = store
        self.journal = journal
        self.committer = committer
        self.clock = clock
        self.documents = Documents(store, journal)
        self.index = FileIndex(store, self.documents)
        self.inboxes = InboxIndex(self.documents)
        self.users = UserRegistry(self.documents, self.index)
        share = DescriptorBudget()
        self.uploads = UploadRegistry(store.create_upload_file, share, clock)
        self.last_logins = LastLogins(journal)
        self.downloads = LoggedDownloads(journal, clock)
        self.read_handles = ReadHandles(store.open_blob, share)
        self.wishes = ReaderWishes(self.users, self.inboxes, config.limits.user_shared_files)
        self.admission = Admission(identity.server_id, self.users, self.wishes, journal, clock)
        self.visibility = Visibility(self.users, self.index, self.wishes, clock)
        self.refusals = RefusalLog(clock)
        self.metrics = ServerMetrics()
        self.recovered = RecoveryReport(0, 0, 0)
        self.scrub = ScrubProgress(root / "run", store.files)

    @property
    def now(self) -> int:
        """Current time in Unix seconds."""
        return int(self.clock())

    @property
    def disks(self) -> list[Path]:
        """A folder on each disk that the root is on: of the log, the stage and the store."""
        found: dict[object, Path] = {}
        for folder in (self.journal.folder, self.store.staging, self.store.users):
            try:
                disk: object = os.stat(folder).st_dev
            except OSError:
                disk = folder  # who asks for its room sees why
            found.setdefault(disk, folder)
        return list(found.values())

    @property
    def failed(self) -> str | None:
        """Why changes and downloads are refused, or None: until a restart, or while `awaits_room`
        until there is room."""
        return self.committer.failed

    @property
    def awaits_room(self) -> bool:
        """Whether `failed` ends once there is room on the disk, and the root is opened again."""
        return self.committer.awaits_room

    def check_storage(self) -> None:
        """Raise `Refused` after a storage failure: nothing can be changed or logged."""
        if self.failed is not None:
            until = "there is room on its disk" if self.awaits_room else "the daemon is restarted"
            raise Refused("unavailable", f"storage failure: no uploads and downloads until {until}")

    def receipt(self, seq: int, who: Principal) -> Receipt:
        """Return entry `seq` for session `who`, with what it has not seen of the log."""
        receipt, who.known_size = self.journal.receipt(seq, who.known_size)
        return receipt

    def done(self, seq: int, who: Principal) -> Done:
        """Return the reply to a change that entry `seq` logs."""
        return Done(self.receipt(seq, who))

    def logged_at(self, seq: int) -> float:
        """Return when entry `seq` was logged, in Unix seconds of the server's clock.

        The signer's own clock is not trusted for this.
        """
        return datetime.fromisoformat(self.journal.entry(seq).time).timestamp()


_Answer_co = TypeVar("_Answer_co", covariant=True)


class Transaction(Value, Generic[_Answer_co]):
    """Decision of an operation to make `change` and then reply with `answer(seq)`.

    `undo` runs if the change was not made, for whatever reason; also before a retry.
    """

    change: Change
    answer: Callable[[int], _Answer_co]
    undo: Callable[[], None] | None = None


class Changeset(ABC):
    """Changes of one request, `count` of them. If it `is_atomic`, all of them are made, or none.
    Until the request `is_valid`, an error is about all of it."""

    count: int
    is_valid: bool = False
    is_atomic: bool = False

    @abstractmethod
    def decide(
        self, places: Sequence[int], take_lines: Callable[[int], None]
    ) -> list[int | Transaction[int] | OperationError]:
        """Return, for each change with one of these numbers, the log entry of one that was made
        before, the change to make, or why it is refused.

        It may be called again for changes that were `Stale`. `take_lines` counts log lines that are
        to be added, and raises `Refused` if they are too many.
        """

    @abstractmethod
    def answer(self, outcomes: Sequence[int | Error]) -> Reply:
        """Return the reply for the outcome of each change: its log entry, or an error."""


class PartlyRefused(Value):
    """Outcome of a request for several things, some of which were `refused`. `reply` gets the error
    of each of these, in order."""

    refused: tuple[SfsdError | OSError, ...]
    reply: Callable[[Iterator[Error]], Reply]


Answer = Reply | PartlyRefused
Decision = Answer | Transaction[Answer] | Changeset
_Function = TypeVar("_Function", bound=Callable[..., Decision])


REQUEST_WEIGHT: Final = 16 * 1024
"""Bytes that a request weighs if nothing is known about it."""
_WRAP_WEIGHT: Final = 1344
"""Bytes of a wrap, its key's name and its user's name."""
Weight = int | Callable[[Any], int]


def weight_of_parts(*parts: bytes, wraps: int) -> int:
    """Return the weight, in bytes, of a request with these byte strings and number of wraps."""
    return REQUEST_WEIGHT + sum(map(len, parts)) + _WRAP_WEIGHT * wraps


class Operation(Value):
    """Row of the operation table.

    `access` lists the sessions that may send the request. `logged` is the op of its log entry
    (None: not logged). With `after_data`, it waits for the Data that its session sent before. With
    `slow`, it may wait for the disk many times, or for one MiB of it; with `bulk` it does little
    else. `weight` is about how many bytes of memory the request and its reply take, or a function
    that returns this for a request.
    """

    request: type[Request]
    access: frozenset[Access]
    logged: str | None
    function: Callable[[ServerContext, Principal, Any], Decision]
    after_data: bool = False
    slow: bool = False
    bulk: bool = False
    weight: Weight = REQUEST_WEIGHT


EVERYONE: Final = frozenset(Access)
USER: Final = frozenset({Access.FULL})
OPERATOR: Final = frozenset({Access.OPERATOR})
MONITORING: Final = frozenset({Access.OPERATOR, Access.MONITOR})
"""Sessions that may ask how the daemon is."""
OWN_KEYS: Final = frozenset({Access.FULL, Access.RESTRICTED, Access.JOINING, Access.RECOVERY})
"""Sessions of a user, including those that may only find the newest keys."""

JOINING: Final = frozenset({Access.FULL, Access.JOINING})
"""Sessions that may add a device."""

RECOVERING: Final = frozenset({Access.FULL, Access.RECOVERY})
"""Sessions that may begin a generation; that of the recovery key only recovers."""

OPERATIONS: Final[dict[type[Request], Operation]] = {}


def operation(
    request: type[Request],
    *,
    access: frozenset[Access],
    logged: str | None = None,
    after_data: bool = False,
    slow: bool = False,
    bulk: bool = False,
    weight: Weight = REQUEST_WEIGHT,
) -> Callable[[_Function], _Function]:
    """Register a function ``(server, who, message) -> Reply | Transaction`` in the table.

    The function runs on a pool thread, runs again if its change was `Stale`, and refuses a request
    by raising `Refused`.
    """

    def enter(function: _Function) -> _Function:
        if request in OPERATIONS:
            raise ValueError(f"duplicate operation for {request.__name__}")
        OPERATIONS[request] = Operation(
            request, access, logged, function, after_data, slow, bulk, weight
        )
        return function

    return enter


def draft(who: Principal, op: str, **fields: Any) -> EntryDraft:
    """Return a draft log entry whose actor is the user of `who`, linked to that session's login."""
    session = who.session if who.session >= 0 else None
    return EntryDraft(op=op, actor=who.user, session=session, **fields)
