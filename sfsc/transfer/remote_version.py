"""A version on the server, opened for reading: its record, key and leaf hashes are verified before
any of its ciphertext is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from protocol.codec import merkle
from protocol.codec.encoding import Buffer
from protocol.codec.values import Value
from protocol.records.record_signatures import signed_count
from protocol.records.records import record_hash
from protocol.wire.messages import Error, FileView, Reply
from protocol.wire.messages.base import PIECE, SignedRecord
from protocol.wire.messages.downloads import (
    Bytes,
    GetLeaves,
    LeavesPage,
    Open,
    Opened,
    OpenedVersion,
    OpenResult,
    OpenTarget,
    Read,
)
from sfsc.crypto.envelope import FILE, ContentKey, Metadata
from sfsc.crypto.padding import Padded
from sfsc.crypto.segments import (
    HEADER_SIZE,
    Allocate,
    ByteSource,
    SegmentChanged,
    plaintext_size,
    segment_count,
)
from sfsc.errors import (
    ConflictError,
    IntegrityError,
    KeyringError,
    NotFound,
    ProtocolFailure,
    Rollback,
    SfscError,
    Tampered,
    UnsupportedKind,
)
from sfsc.session.evidence import shown_answer
from sfsc.session.server_errors import expect_reply, to_exception
from sfsc.session.session import Session
from sfsc.transfer.chunks import DownloadStream, PieceDecryptor
from sfsc.trust.file_records import FileOwner, KnownRevision, VerifiedFile
from sfsc.trust.followed_log import LoggedHead
from sfsc.trust.peer_state import KnownSharedFile, PeerState
from sfsc.trust.server_log import REPORT

KnownRevisions = Mapping[str, KnownRevision | None]
"""file_id -> what is remembered of the file."""
_NOTHING: Final[KnownRevisions] = MappingProxyType({})


class VersionRequest(Value):
    """A version to open: `version` 0 is the current one. `name` is a checked name, None if only the
    id is known. `known` is what was known of the file before the request. `owner` is the user who
    shares it with us, None for a file of our own. `since` is the size to which the log was
    followed before the request. `user` is the name of the files' owner."""

    name: str | None
    file_id: str
    version: int
    known: KnownRevision | None
    owner: FileOwner | None
    since: int
    user: str

    @classmethod
    def build(
        cls,
        session: Session,
        file_id: str,
        version: int,
        *,
        name: str | None = None,
        owner: FileOwner | None = None,
        known: KnownRevisions = _NOTHING,
    ) -> VersionRequest:
        """Build a request; what is remembered of the file is read unless `known` has it."""
        if file_id not in known:
            known = known_revisions(session, owner, (file_id,))
        user = (owner or session.account).user
        return cls(name, file_id, version, known[file_id], owner, session.followed_size, user)

    @property
    def target(self) -> OpenTarget:
        return OpenTarget(self.file_id, self.version)

    @property
    def message(self) -> Open:
        """The request for this version alone."""
        return Open(self.user, (self.target,))


def known_revisions(
    session: Session, owner: FileOwner | None, file_ids: Sequence[str]
) -> KnownRevisions:
    """Return what is remembered of these files of `owner`, None for our own."""
    if owner is None:
        return session.state.known_revisions(file_ids)
    return PeerState(session.state).known_revisions(owner.user, file_ids)


def _signed_alone(session: Session, versions: Sequence[RemoteVersion]) -> KnownRevisions:
    """Return what is remembered of those of these files of ours whose last record has a signature
    of its own: looking it up costs less than verifying it. Records that were signed together share
    a signature, which is verified once."""
    found = [
        version.wanted.file_id
        for version in versions
        if version.owner is None
        and version.wanted.known is None
        and (opened := version.opened) is not None
        and len(signatures := _last(opened.view).signatures) > 0
        and signed_count(signatures[-1].signature) == 1
    ]
    return session.state.known_revisions(found) if found else {}


def _last(view: FileView) -> SignedRecord:
    """Return the file's last record."""
    return view.content if view.head is None else view.head


def open_results(session: Session, user: str, reply: Reply, asked: int) -> tuple[OpenResult, ...]:
    """Return the results for the first of `asked` targets, files of `user`. An `Error` is the
    result of each. Call `Session.link_receipts` once they are used. Raises `ProtocolFailure` for
    none or more than these, and as `Session.accept_download`."""
    if isinstance(reply, Error):
        return (OpenResult(None, reply),) * asked
    opened = expect_reply(reply, Opened)
    if not 0 < len(opened.results) <= asked:
        raise ProtocolFailure("the server answers for other versions than those requested")
    if opened.receipt is not None:
        session.accept_download(opened.receipt, user)
    return opened.results


def opened_version(result: OpenResult) -> OpenedVersion:
    """Return the version of a result. Raises the exception of its error."""
    if result.error is not None:
        raise to_exception(result.error)
    if result.opened is None:
        raise ProtocolFailure("the server neither opens a version nor says why")
    return result.opened


def check_is_file(metadata: Metadata) -> None:
    """Raise `UnsupportedKind` for a folder or a link. Their contents can be encrypted again."""
    if metadata.kind != FILE:
        raise UnsupportedKind(f"{metadata.name} is a {metadata.kind}, not a file")


class RemoteVersion:
    """A version on the server; `file` and `metadata` describe it, `size` is that of its ciphertext.

    Build with `open_own`, `request` or `verify_batch`, which run the verification steps. Each step
    sets attributes that the next one needs. The hashes of the pieces are verified before the first
    piece is decrypted.
    """

    def __init__(self, session: Session, wanted: VersionRequest, result: OpenResult) -> None:
        """`result` is that of `wanted` in a reply over the present connection."""
        self.owner: FileOwner | None = wanted.owner
        self.file: VerifiedFile
        self.metadata: Metadata
        self.size: int
        self.first: Buffer
        self._session = session
        self.wanted = wanted
        self.opened: OpenedVersion | None = result.opened
        self._result = result
        self._connection = session.connections
        self._handle: bytes
        self._leaves: bytes
        self._key: ContentKey
        self._download: DownloadStream | None = None

    def _verified(
        self, saved: Mapping[str, LoggedHead], alone: KnownRevisions
    ) -> RemoteVersion | SfscError:
        try:
            self._verify(saved, alone)
            self._unwrap()
            self._open_metadata()
        except SfscError as exc:
            self.add_proof(exc)
            return exc
        return self

    def _verify(self, saved: Mapping[str, LoggedHead], alone: KnownRevisions) -> None:
        """Verify the file's records. `alone` is what is known of records that were signed alone.
        Raises `NotFound` and `IntegrityError`."""
        wanted = self.wanted
        error = self._result.error
        if error is not None and error.code == "not-found":
            raise self._not_found()
        opened = opened_version(self._result)
        owner = wanted.owner or self._session.account
        known = alone.get(wanted.file_id)
        if known is None or known.hash != record_hash(_last(opened.view).record):
            known = wanted.known
        try:
            self.file = owner.verify_version(opened.view, wanted.file_id, wanted.version, known)
        except NotFound:  # its last record, which may be an old one, deleted it
            raise self._not_found() from None
        if wanted.owner is None:
            head, body = self.file.head, self.file.head_body
            self._session.check_head(head, body, opened.view.at, wanted.since, saved)
        self.size = self.file.content.ciphertext_size or 0
        self.first, self._leaves, self._handle = opened.data, opened.leaves, opened.handle

    def _not_found(self) -> NotFound:
        """Return the error that says whether the file or only the version does not exist. Raises
        `Rollback` if the log has a file of ours, and it is not deleted."""
        wanted, session = self.wanted, self._session
        name, version = wanted.name or "the file", wanted.version
        missing = NotFound(f"no such file: {name}", "run `sfsc ls` to see what is stored")
        if wanted.owner is not None:
            return (
                NotFound(f"{name} has no version {version}", "ask its owner")
                if version
                else missing
            )
        before = session.head_at(wanted.file_id, wanted.since)
        file = session.find_newest(wanted.file_id)
        if file is None or (file.deleted and not version):
            return missing
        if not version:
            if before == (file.head.rev, record_hash(file.head_body)):
                raise Rollback("the server does not show a file that its log has", REPORT)
            return missing  # it was stored meanwhile
        hint = "run `sfsc history` to see its versions"
        if version > file.version:
            return NotFound(f"{name} has no version {version}", hint)
        return NotFound(f"the content of version {version} of {name} was removed", hint)

    def _unwrap(self) -> None:
        """Confirm that the file's records name this content, and decrypt its key. Raises as
        `confirm_version`, and `KeyringError` if we have no key for it."""
        if self.file.metadata:  # else there is nothing to open
            self.file = self._session.confirm_version(self.file, self.owner)
        try:
            self._key = self._session.account.open_content_key(self.file, self.owner)
        except KeyringError as exc:
            version = self.wanted.version
            if self.owner is None or not version or type(exc) is not KeyringError:
                raise
            hint = f"ask {self.owner.user} to run `sfsc share NAME YOU --history`"
            raise KeyringError(f"version {version} was not shared with you", hint) from exc

    def _open_metadata(self) -> None:
        """Decrypt the metadata, check the name, and remember a file of another user: of ours, the
        followed log is remembered. Raises `Tampered`."""
        self.metadata = self._session.account.open_metadata(self._key, self.file, self.owner)
        if self.wanted.name is not None and self.metadata.name != self.wanted.name:
            raise Tampered("the server returned another file than the one requested")
        if self.owner is not None:
            known = KnownSharedFile.from_file(self.file, None)
            PeerState(self._session.state).remember_file(known)

    @classmethod
    def verify_batch(
        cls, session: Session, versions: Sequence[RemoteVersion]
    ) -> list[RemoteVersion | SfscError]:
        """Verify versions; return each, or its error: `NotFound`, `IntegrityError`, or
        `KeyringError` if we have no key for it."""
        own = [version.wanted.file_id for version in versions if version.owner is None]
        saved, alone = session.state.logged_heads(own), _signed_alone(session, versions)
        return [cls._verified(version, saved, alone) for version in versions]

    @classmethod
    def open_own(cls, session: Session, name: str, version: int) -> RemoteVersion:
        """Open a version of our own file `name`. Raises as `request`, and `Rollback` if the server
        no longer knows a file that it had."""
        wanted = VersionRequest.build(session, session.account.file_id(name), version, name=name)
        return cls.request(session, wanted)

    @classmethod
    def request(cls, session: Session, wanted: VersionRequest) -> RemoteVersion:
        """Request one version and verify it. Raises the errors of `verify_batch`."""
        reply = session.ask(wanted.message)
        (result,) = open_results(session, wanted.user, reply, 1)
        (found,) = cls.verify_batch(session, [cls(session, wanted, result)])
        session.link_receipts()
        if isinstance(found, SfscError):
            raise found
        if found.owner is None:
            session.remember_head(found.file, wanted.known)
        return found

    def add_proof(self, error: SfscError) -> None:
        """Add the server's answer to an error about it: it may not be one of the last answers when
        the error is raised."""
        if isinstance(error, IntegrityError) and not error.proofs:
            error.proofs = (shown_answer(self.wanted.message, Opened((self._result,))),)

    @property
    def content_key(self) -> ContentKey:
        """The key of this version's content."""
        return self._key

    def decryptor(self) -> PieceDecryptor:
        """Fetch all leaf hashes and verify them against the record, so that pieces can be decrypted
        in any order."""
        self._session.with_reconnect(self._complete)
        decryptor = self._key.decryptor(memoryview(self.first)[:HEADER_SIZE], self.size)
        return PieceDecryptor(decryptor, self._leaves, self.file.content_body)

    def has_content(self, source: ByteSource) -> bool:
        """Return whether `source` is the plaintext. It is encrypted again, with the same key and
        header: only the same plaintext gives pieces with the signed hashes, and none is fetched.
        Raises as `decryptor`, and what `source` raises."""
        self._session.with_reconnect(self._complete)
        leaves = [self._leaves[at : at + 32] for at in range(0, len(self._leaves), 32)]
        header = bytes(memoryview(self.first)[:HEADER_SIZE])
        encryptor, count = self._key.resume_encryptor(header, leaves), 0
        padded = Padded(source, plaintext_size(self.size))
        for segment, last in encryptor.plaintext_segments(padded):
            if count == len(leaves):
                return False
            try:
                encryptor.seal_segment(segment, last=last)
            except SegmentChanged:
                return False
            count += 1
        return count == len(leaves) and padded.source_size == self.metadata.size

    def segments(self, allocate: Allocate | None = None) -> Iterator[memoryview]:
        """Yield the plaintext in order, each segment valid until the next is requested.

        Segments of a longer file lie in memory from `allocate`, which is called on another thread,
        in order. Raises as `decryptor`, and `Tampered` for a piece that is not what was signed.
        """
        if self.is_whole and self.size <= PIECE:
            return iter((self._whole()[: self.metadata.size],))
        if self.is_padded:
            return _first(self.metadata.size, self._stream().segments())
        return self._stream().segments(allocate)

    @property
    def is_padded(self) -> bool:
        """Whether zero bytes follow the content, to hide its size."""
        return plaintext_size(self.size) > self.metadata.size

    def _whole(self) -> memoryview:
        """Return the plaintext of a content of one piece that came with the reply."""
        leaf = merkle.leaf_hash(self.first)
        if leaf == self._leaves == self.file.content.segments_root:  # none of them is secret
            return memoryview(self._key.open_small(bytes(self.first)))
        return self.decryptor().decrypt(0, self.first)  # raises what is wrong

    @property
    def is_whole(self) -> bool:
        """Whether all of the ciphertext came with the first reply."""
        return len(self.first) == self.size

    def prefetch(self) -> None:
        """Request the next pieces before `segments` needs them. Raises as `decryptor`. Call
        `abandon` if `segments` will not be used."""
        self._stream().prefetch()

    @property
    def prefetched(self) -> int:
        """Approximate number of bytes that were requested and not yet yielded by `segments`."""
        return 0 if self._download is None else self._download.prefetched

    def abandon(self) -> None:
        """Discard the pieces that were requested."""
        if self._download is not None:
            self._download.abandon()

    def handle(self) -> bytes:
        """Return a read handle that is valid on the present connection.

        Raises `ConflictError` if the version was re-encrypted since it was opened.
        """
        if self._connection != self._session.connections:
            target = OpenTarget(self.file.file_id, self.file.version)
            reply = self._session.transport.call(Open(self.wanted.user, (target,)))
            opened = opened_version(*open_results(self._session, self.wanted.user, reply, 1))
            if opened.view.content.record != self.file.content_body:
                raise ConflictError("the file was re-encrypted meanwhile", "run the command again")
            self._handle = opened.handle
            self._connection = self._session.connections
        return self._handle

    def _stream(self) -> DownloadStream:
        if self._download is None:
            decryptor = self.decryptor()
            self._download = DownloadStream(self._session, decryptor, self.first, self.handle)
        return self._download

    def _complete(self) -> None:
        transport, expected = self._session.transport, 32 * segment_count(self.size)
        while len(self._leaves) < expected:
            message = GetLeaves(self.handle(), len(self._leaves) // 32)
            page = expect_reply(transport.call(message), LeavesPage).leaves
            if not page or len(page) % 32:
                raise ProtocolFailure("the server does not send all hashes of the file's pieces")
            self._leaves += page
        hashes = [self._leaves[at : at + 32] for at in range(0, len(self._leaves), 32)]
        if len(self._leaves) != expected or merkle.root(hashes) != self.file.content.segments_root:
            raise Tampered("the hashes of the file's pieces are not what was signed")
        if len(self.first) < HEADER_SIZE:
            read = Read(self.handle(), 0, min(self.size, PIECE))
            self.first = expect_reply(transport.call(read), Bytes).data


def _first(size: int, segments: Iterator[memoryview]) -> Iterator[memoryview]:
    """Yield the first `size` bytes; all `segments` are verified."""
    for segment in segments:
        if size:
            yield segment[:size]
        size = max(0, size - len(segment))
