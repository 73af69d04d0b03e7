"""What an operation sees: who asks, all that the daemon is made of, and the table of operations.

The table is filled by `@operation` and is three things at once: the dispatch of `service`, the
matrix of who may ask for what, and the list of what the log says about it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

from protocol.codec.values import Mutable, Value, field
from protocol.log.auditlog import EntryDraft
from protocol.records.records import ServerStatement, server_id
from protocol.wire.messages import Receipt, Reply, Request
from sfsd.config import Config
from sfsd.fs.descriptors import Share
from sfsd.log.journal import Journal
from sfsd.rules.access import Visibility
from sfsd.rules.history import Histories
from sfsd.rules.record_rules import Admission
from sfsd.rules.refusal_log import RefusalLog
from sfsd.rules.users import Accounts
from sfsd.state.documents import Documents
from sfsd.state.file_index import Index
from sfsd.state.inbox_index import Inboxes
from sfsd.state.read_handles import Opened
from sfsd.state.uploads import Uploads
from sfsd.storage.change import Change
from sfsd.storage.committer import Committer
from sfsd.storage.store import DirectoryStore


class Access(Enum):
    """What a session was opened with, and so what it may ask for."""

    FULL = "the user's current key"
    RESTRICTED = "an older key of the user: what finding the newer one needs"
    RECOVERY = "the user's recovery key: the same, and a statement"
    OPERATOR = "the operator's key: accounts and the daemon itself, no file"


class Principal(Mutable):
    """Who asks: one open session.

    `generation` is of the key that opened it (0: recovery), `session` the seq of its login entry
    (-1 where a failed log could take none), `known_size` the size of the checkpoint it began with.
    `address` is the peer's, as text.
    """

    user: str
    generation: int
    access: Access
    session: int
    known_size: int
    address: str


class Identity(Value):
    """What this server is: its signed statement, and the operator's Ed25519 public key."""

    body: bytes
    signature: bytes
    operator_public: bytes
    statement: ServerStatement
    server_id: bytes

    @classmethod
    def of(cls, body: bytes, signature: bytes, operator_public: bytes) -> Self:
        """Raises `RemoteProtocolError` where `body` is no server statement."""
        statement = ServerStatement.parse(body)
        return cls(body, signature, operator_public, statement, server_id(statement.server_pub))


class Vitals(Mutable):
    """What only the composition root knows, and keeps up to date for the operator's `status`."""

    address: str = ""
    started: int = 0
    connections: int = 0
    sessions: int = 0


class World(Mutable):
    """All that operations work on. `clock` gives unix seconds, `root` is the daemon's folder."""

    root: Path
    config: Config
    identity: Identity
    store: DirectoryStore
    journal: Journal
    committer: Committer
    clock: Callable[[], float]
    documents: Documents
    index: Index
    inboxes: Inboxes
    accounts: Accounts
    uploads: Uploads
    opened: Opened
    admission: Admission
    visibility: Visibility
    histories: Histories
    refusals: RefusalLog
    vitals: Vitals = field(default_factory=Vitals)

    @classmethod
    def assemble(
        cls,
        root: Path,
        config: Config,
        identity: Identity,
        store: DirectoryStore,
        journal: Journal,
        committer: Committer,
        clock: Callable[[], float],
    ) -> Self:
        """The world on an opened store and log."""
        documents = Documents(store, journal)
        index = Index(store, documents)
        accounts = Accounts(documents, index)
        share = Share()
        return cls(
            root=root,
            config=config,
            identity=identity,
            store=store,
            journal=journal,
            committer=committer,
            clock=clock,
            documents=documents,
            index=index,
            inboxes=Inboxes(store),
            accounts=accounts,
            uploads=Uploads(store.stage, share, clock),
            opened=Opened(store.open_blob, share),
            admission=Admission(
                identity.server_id, accounts, lambda: journal.size, journal.root_at, clock
            ),
            visibility=Visibility(accounts, index, clock),
            histories=Histories(journal),
            refusals=RefusalLog(clock),
        )

    @property
    def now(self) -> int:
        """Unix seconds."""
        return int(self.clock())

    @property
    def failed(self) -> str | None:
        """Why no change and no download is acknowledged any more, or None."""
        return self.committer.failed

    def receipt(self, seq: int, who: Principal) -> Receipt:
        """Proof for `who` that entry `seq` stands in the log."""
        return self.journal.receipt(seq, who.known_size)

    def logged(self, seq: int) -> float:
        """When entry `seq` was logged, by this server's clock and not by who signed it."""
        return datetime.fromisoformat(self.journal.entry(seq).time).timestamp()


_Answer = TypeVar("_Answer")


class Commit(Value, Generic[_Answer]):
    """What an operation decided: make `change`, then `answer` from its seq.

    `undo` runs where it was not made, for whatever reason: also before it is decided again.
    """

    change: Change
    answer: Callable[[int], _Answer]
    undo: Callable[[], None] | None = None


Decision = Reply | Commit[Reply]
_Function = TypeVar("_Function", bound=Callable[..., Decision])


REQUEST_WEIGHT: Final = 16 * 1024
"""Bytes that a request weighs if nothing is known about it."""
_WRAP_WEIGHT: Final = 1280
"""Bytes of a wrap, its key's name and its user's name."""
Weight = int | Callable[[Any], int]


def weight_of_parts(*parts: bytes, wraps: int) -> int:
    """Return the weight, in bytes, of a request with these byte strings and number of wraps."""
    return REQUEST_WEIGHT + sum(map(len, parts)) + _WRAP_WEIGHT * wraps


class Operation(Value):
    """One row of the table.

    `access` are the sessions that may ask, `logged` the op its entry has (None: not logged).
    `after_data`: it waits for the Data its session sent before. `slow`: it may wait for the disk
    many times, or for a MiB of it. `weight`: about how many bytes the request and its answer make
    the daemon hold, or a function that says so of one request.
    """

    request: type[Request]
    access: frozenset[Access]
    logged: str | None
    function: Callable[[World, Principal, Any], Decision]
    after_data: bool = False
    slow: bool = False
    weight: Weight = REQUEST_WEIGHT


EVERYONE: Final = frozenset(Access)
USER: Final = frozenset({Access.FULL})
OPERATOR: Final = frozenset({Access.OPERATOR})
OWN_KEYS: Final = frozenset({Access.FULL, Access.RESTRICTED, Access.RECOVERY})
"""Anybody who is a user, even on an old key or the recovery key."""

STATEMENTS: Final = frozenset({Access.FULL, Access.RECOVERY})
"""Who may continue a user's identity chain."""

OPERATIONS: Final[dict[type[Request], Operation]] = {}


def operation(
    request: type[Request],
    *,
    access: frozenset[Access],
    logged: str | None = None,
    after_data: bool = False,
    slow: bool = False,
    weight: Weight = REQUEST_WEIGHT,
) -> Callable[[_Function], _Function]:
    """Enter a function ``(world, who, message) -> Reply | Commit`` in the table.

    It runs on a pool thread, may run again where its change came out `Stale`, and says no by
    raising `Refused`.
    """

    def enter(function: _Function) -> _Function:
        if request in OPERATIONS:
            raise ValueError(f"two operations for {request.__name__}")
        OPERATIONS[request] = Operation(request, access, logged, function, after_data, slow, weight)
        return function

    return enter


def draft(who: Principal, op: str, **fields: Any) -> EntryDraft:
    """A draft in the name of `who`, tied to his login."""
    session = who.session if who.session >= 0 else None
    return EntryDraft(op=op, actor=who.user, session=session, **fields)
