"""One version of a file opened for reading: its record, key and leaf hashes verified, its
ciphertext still to come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from protocol.codec import merkle
from protocol.codec.encoding import Buffer
from protocol.codec.values import Value
from protocol.wire.messages import Error, Reply
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import Bytes, GetLeaves, GetOpen, LeavesPage, Opened, Read
from sfsc.crypto.envelope import ContentKey, Metadata
from sfsc.crypto.segments import HEADER_SIZE, Allocate, segment_count
from sfsc.errors import ConflictError, NotFound, ProtocolFailure, SfscError, Tampered
from sfsc.session.server_errors import answered
from sfsc.session.session import Session
from sfsc.transfer.chunks import Fetching, Opener
from sfsc.trust.file_records import FileOwner, KnownRevision, VerifiedFile
from sfsc.trust.peer_state import KnownSharedFile, PeerState

Known = Mapping[str, KnownRevision | None]
_NOTHING: Final[Known] = MappingProxyType({})


class Wanted(Value):
    """A version that is asked for: `version` 0 is the current one. `name` was checked; None where
    only the id is known. `known` is what was known of the file before it is asked for; `owner`
    shares it with us, None for our own."""

    name: str | None
    file_id: str
    version: int
    known: KnownRevision | None
    request: GetOpen
    owner: FileOwner | None = None

    @classmethod
    def of(cls, session: Session, name: str, version: int, known: Known = _NOTHING) -> Wanted:
        """Of a file of ours. `known` is what was looked up already, by file_id."""
        return cls.of_id(session, session.account.file_id(name), version, name, known)

    @classmethod
    def of_id(
        cls,
        session: Session,
        file_id: str,
        version: int,
        name: str | None = None,
        known: Known = _NOTHING,
    ) -> Wanted:
        """As `of`."""
        request = GetOpen(session.account.user, file_id, version)
        if file_id not in known:
            known = session.state.known_revisions((file_id,))
        return cls(name, file_id, version, known[file_id], request)

    @classmethod
    def shared(
        cls,
        session: Session,
        owner: FileOwner,
        file_id: str,
        version: int,
        name: str | None = None,
        known: Known = _NOTHING,
    ) -> Wanted:
        """Of a file that `owner` shares with us; as `of`."""
        request = GetOpen(owner.user, file_id, version)
        if file_id not in known:
            known = PeerState(session.state).known_revisions(owner.user, (file_id,))
        return cls(name, file_id, version, known[file_id], request, owner)


class Answer:
    """What came for `wanted`, over the connection that stands; each step of judging it sets what
    comes below it."""

    def __init__(self, session: Session, wanted: Wanted, reply: Reply) -> None:
        self.session = session
        self.wanted = wanted
        self.reply = reply
        self.connection = session.connections
        self.opened: Opened
        self.file: VerifiedFile
        self.key: ContentKey
        self.metadata: Metadata

    def verify(self) -> None:
        wanted = self.wanted
        if isinstance(self.reply, Error) and self.reply.code == "not-found":
            name, version = wanted.name or "the file", wanted.version
            which = f"{name} has no version {version}" if version else f"there is no file {name}"
            raise NotFound(which, "`sfsc ls` shows what there is")
        self.opened = answered(self.reply, Opened)
        owner = wanted.owner or self.session.account
        self.file = owner.verify_version(
            self.opened.view, wanted.file_id, wanted.version, wanted.known
        )

    def unwrap(self) -> None:
        self.key = self.session.account.open_content_key(self.file, self.wanted.owner)

    def describe(self) -> None:
        wanted = self.wanted
        self.metadata = self.session.account.open_metadata(self.key, self.file, wanted.owner)
        if wanted.name is not None and self.metadata.name != wanted.name:
            raise Tampered("the server gave another file than the one asked for")

    def learn(self) -> None:
        if self.wanted.owner is None:
            self.session.learn_head(self.file, self.wanted.known)
        else:
            PeerState(self.session.state).remember_file(KnownSharedFile.from_file(self.file, None))


class Blob:
    """Build with `open`, `ask` or `judged`: `file` and `metadata` are verified then, the hashes of
    its pieces once it was made `ready`."""

    def __init__(self, answer: Answer) -> None:
        """Of one that was judged."""
        self._session = answer.session
        self.owner = answer.wanted.owner
        self.file = answer.file
        self.metadata = answer.metadata
        self.size = self.file.content.ciphertext_size or 0
        self.handle = answer.opened.handle
        self.first: Buffer = answer.opened.data
        self._key = answer.key
        self._leaves = answer.opened.leaves
        self._connection = answer.connection
        self._fetching: Fetching | None = None

    @classmethod
    def judged(cls, answers: Sequence[Answer]) -> list[Blob | SfscError]:
        """What each of the answers gives, or why it gives nothing: `NotFound`, `IntegrityError`, or
        `KeyringError` where we have no key for it.

        Each step is taken for all before the next: behind other steps, and cryptography above all,
        it finds its code and tables gone from the processor's caches, and takes a sixth more.
        """
        failures: dict[int, SfscError] = {}
        for step in (Answer.verify, Answer.unwrap, Answer.describe, Answer.learn):
            for place, answer in enumerate(answers):
                if place not in failures:
                    try:
                        step(answer)
                    except SfscError as exc:
                        failures[place] = exc
        return [failures.get(place) or cls(answer) for place, answer in enumerate(answers)]

    @classmethod
    def open(cls, session: Session, name: str, version: int) -> Blob:
        """Open a version of our file `name`.

        Raises as `ask`, and `Rollback` if the server no longer knows a file that it had.
        """
        wanted = Wanted.of(session, name, version)
        try:
            return cls.ask(session, wanted)
        except NotFound:
            if wanted.known is not None:
                session.newest(wanted.file_id)  # the server must still know a deleted file
            raise

    @classmethod
    def ask(cls, session: Session, wanted: Wanted) -> Blob:
        """Asked for and answered. Raises as `judged` gives."""
        (blob,) = cls.judged([Answer(session, wanted, session.ask(wanted.request))])
        if isinstance(blob, SfscError):
            raise blob
        return blob

    def ready(self) -> Opener:
        """All leaf hashes, checked against the record; then pieces can be opened in any order."""
        self._session.surviving(self._complete, self.reopen)
        decryptor = self._key.decryptor(memoryview(self.first)[:HEADER_SIZE], self.size)
        return Opener(decryptor, self._leaves)

    def segments(self, allocate: Allocate | None = None) -> Iterator[memoryview]:
        """The plaintext in order, each segment valid until the next is asked for; of more than one
        in memory that `allocate` gave, as `Decryptor.open`: on another thread, but in order. Raises
        as `ready`, and `Tampered` for a piece that is not what was signed."""
        if self.is_whole and self.size <= PIECE:
            return iter((self.ready().open(0, self.first),))  # nothing is left to fetch
        return self._begun().segments(allocate)

    @property
    def is_whole(self) -> bool:
        """Whether all of it came with the answer."""
        return len(self.first) == self.size

    def ask_ahead(self) -> None:
        """Ask for the next pieces already; they are kept until `segments` comes to them. Raises as
        `ready`; `abandon` it where nobody wants its `segments` any more."""
        self._begun().ask_ahead()

    @property
    def ahead(self) -> int:
        """Bytes, about, that were asked for and that `segments` has not come to."""
        return 0 if self._fetching is None else self._fetching.ahead

    def abandon(self) -> None:
        """Nobody wants what was asked for ahead."""
        if self._fetching is not None:
            self._fetching.abandon()

    def _begun(self) -> Fetching:
        if self._fetching is None:
            opener = self.ready()
            self._fetching = Fetching(self._session, opener, self.first, self.handle, self.reopen)
        return self._fetching

    def _complete(self) -> None:
        transport, expected = self._session.transport, 32 * segment_count(self.size)
        if self._connection != self._session.connections:
            self.reopen()  # the answer was of a connection that is gone by now
        while len(self._leaves) < expected:
            asked = GetLeaves(self.handle, len(self._leaves) // 32)
            page = answered(transport.call(asked), LeavesPage).leaves
            if not page or len(page) % 32:
                raise ProtocolFailure("the server sends no hashes where some are missing")
            self._leaves += page
        hashes = [self._leaves[at : at + 32] for at in range(0, len(self._leaves), 32)]
        if len(self._leaves) != expected or merkle.root(hashes) != self.file.content.segments_root:
            raise Tampered("the hashes of the file's pieces are not what was signed")
        if len(self.first) < HEADER_SIZE:
            read = Read(self.handle, 0, min(self.size, PIECE))
            self.first = answered(transport.call(read), Bytes).data

    def reopen(self) -> bytes:
        """A handle on the same version, over the present connection."""
        owner = self.owner or self._session.account
        asked = GetOpen(owner.user, self.file.file_id, self.file.version)
        opened = answered(self._session.transport.call(asked), Opened)
        if opened.view.content.record != self.file.content_body:
            raise ConflictError("the file was encrypted anew meanwhile", "run the command again")
        self.handle = opened.handle
        self._connection = self._session.connections
        return self.handle
