"""Rules that a signed record must satisfy before it is appended to a file.

The server checks every rule of docs/format.md that does not need a private key. The order suits an
honest client that another device overtook: first the signer, then the head, then the rest. Each
check adds the documents it relied on to `expect`; the committer checks them again when it appends
the record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from protocol.codec.errors import PublicKeyError, RemoteProtocolError, SignatureError
from protocol.codec.values import Value, changed
from protocol.records.public_keys import check_wrap_key
from protocol.records.record_signatures import (
    SIGNATURE_SIZE,
    RecordTree,
    SignatureCache,
    verify_leaf,
)
from protocol.records.records import (
    ACCESS,
    DELETE,
    MOVE,
    PURGE,
    REENCRYPT,
    WRAP_SIZES,
    FileRecord,
    ReaderEntry,
    Statement,
    carried_content,
    record_hash,
)
from protocol.records.signatures import Label
from protocol.wire.messages import FileView
from protocol.wire.messages.base import GenerationSignature, SignedRecord, Wrap
from protocol.wire.messages.session import Notice
from sfsd.errors import (
    DamagedError,
    OperationError,
    Refused,
    SfsdError,
    Stale,
    outcome_of,
    require,
)
from sfsd.log.journal import Journal
from sfsd.rules.reader_wishes import ReaderWishes
from sfsd.rules.users import User, UserRegistry, signing_key_id, write_block
from sfsd.state.documents import Document
from sfsd.state.file_index import OwnerFiles
from sfsd.storage.json_files import Sidecar, cached_record
from sfsd.storage.paths import VersionPaths, statements_path

SKEW: Final = 600
"""Seconds by which the clocks of client and server may differ."""
_CACHED_SIGNATURES: Final = 1024
"""Signatures cached so that records that were signed together cost one verification."""


class FileHead(Value):
    """A file's newest version number (0: no file) and that version's sidecar (None: no file).

    In the first `at` entries of the log, this is the file's newest state.
    """

    files: OwnerFiles
    file_id: str
    version: int
    document: Document[Sidecar] | None
    at: int

    @classmethod
    def load(cls, files: OwnerFiles, file_id: str) -> FileHead:
        """Read the head of `file_id`. Raises `DamagedError` if the newest sidecar is damaged."""
        (head,) = cls.load_all(files, (file_id,))
        return head

    @classmethod
    def load_all(
        cls, files: OwnerFiles, file_ids: Sequence[str], *, cached: bool = False
    ) -> list[FileHead]:
        """Batch version of `load`; results in input order. With `cached`, a sidecar that was
        verified or written here is not read again: see `Documents.cached_sidecar`."""
        at = files.published_size()  # before reading: what is read may be newer, never older
        versions = [files.newest(file_id) for file_id in file_ids]
        places = [one for one in zip(file_ids, versions, strict=True) if one[1]]
        documents = iter(files.sidecars(places, cached=cached))
        heads = list[FileHead]()
        for file_id, version in zip(file_ids, versions, strict=True):
            document = next(documents) if version else None
            known = at if document is None else max(at, document.value.seq + 1)
            heads.append(cls(files, file_id, version, document, known))
        return heads

    @classmethod
    def load_for_changes(
        cls, files: OwnerFiles, file_ids: Sequence[str]
    ) -> dict[str, FileHead | OperationError]:
        """Return the head of each file, or its error. The committer compares cached sidecars with
        the disk's."""
        try:
            heads = cls.load_all(files, file_ids, cached=True)
        except (SfsdError, OSError):  # of one of them: each is read by itself
            return {one: outcome_of(partial(cls.load, files, one)) for one in file_ids}
        return {head.file_id: head for head in heads}

    @property
    def newest(self) -> Document[Sidecar]:
        """The newest version's sidecar. Raises `Refused` (not-found) if there is no file."""
        if self.document is None:
            raise not_found()
        return self.document

    @property
    def record(self) -> FileRecord | None:
        """The last record, None if there is no file."""
        return None if self.document is None else self.document.value.head_record

    @property
    def hash(self) -> bytes:
        """Hash of the last record, which the next record's `prev` must equal; empty if no file."""
        return b"" if self.document is None else record_hash(self.document.value.last.record)

    @property
    def next_version(self) -> int:
        """The number that a new version gets."""
        return self.version + 1

    def paths(self, version: int) -> VersionPaths:
        """Return the paths of one version's stored files."""
        return VersionPaths.for_version(self.files.owner, self.file_id, version)

    def view(self, user: str) -> FileView | None:
        """Return what `user` is shown of the newest version, None if there is no file. Raises
        `StoreFailedError` if it is being published, and that fails."""
        if self.document is None:
            return None
        self.files.await_published(self.at)
        return self.document.value.view(user, self.document.value.last, self.at)

    def without_wraps(
        self, users: set[str], most: int
    ) -> dict[int, tuple[Document[Sidecar], Sidecar]]:
        """Return {version: (sidecar, the same without wraps of `users`)}, at most `most`.

        Versions that have no such wraps, and damaged ones, are left out. The newest come first.
        """
        found: dict[int, tuple[Document[Sidecar], Sidecar]] = {}
        for version in range(self.version if users else 0, 0, -1):
            document = self.files.undamaged_sidecar(self.file_id, version)
            if document is None:
                continue  # nobody can read it
            wraps = tuple(wrap for wrap in document.value.wraps if wrap.user not in users)
            if wraps != document.value.wraps:
                found[version] = document, changed(document.value, wraps=wraps)
            if len(found) == most:
                break
        return found

    def expect(self) -> dict[str, bytes | None]:
        """Return the expectation that no newer version exists and the sidecar is unchanged."""
        expected: dict[str, bytes | None] = {self.paths(self.next_version).sidecar: None}
        if self.document is not None:
            expected[self.document.path] = self.document.digest
        return expected


class Signer(Value):
    """The user who signs the records of a request, and why they may only remove things, if so."""

    user: User
    blocked: Notice | None


class SignedLeaf(Value):
    """Leaf `index` of a request's tree, whose packed signature is `packed`."""

    tree: RecordTree
    index: int
    packed: bytes


class AdmittedRecord(Value):
    """A record that may be appended to `head` while the documents in `expect` are unchanged."""

    record: FileRecord
    signed: SignedRecord
    sigs: dict[str, bytes]
    user: User
    head: FileHead
    expect: dict[str, bytes | None]

    @property
    def accounts(self) -> tuple[str, ...]:
        """Users whose account log has the entry: owner, actor, readers added or dropped."""
        record = self.record
        toggled = reader_names(self.head.record) ^ reader_names(record)
        return tuple(sorted({record.owner, record.actor} | toggled))


def reader_names(record: FileRecord | None) -> set[str]:
    """Return the names of a record's readers; none without a record."""
    return set() if record is None else {reader[0] for reader in record.readers}


def not_found() -> Refused:
    """Return the one error for a missing file and for a file that the user may not see."""
    return Refused("not-found", "no such file")


def parse_record(body: bytes) -> FileRecord:
    """Parse an encoded file record. Raises `Refused` (bad-request)."""
    try:
        return cached_record(body)
    except RemoteProtocolError as exc:
        raise Refused("bad-request", f"not a file record: {exc}") from exc


class Admission:
    """Checks records against the users' identity chains and the server's log."""

    def __init__(
        self,
        server_id: bytes,
        users: UserRegistry,
        wishes: ReaderWishes,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        self._server_id = server_id
        self._users = users
        self._wishes = wishes
        self._journal = journal
        self._clock = clock
        self._signatures = SignatureCache(_CACHED_SIGNATURES)

    def signer(self, name: str) -> Signer:
        """Return the user whose records a request has. Raises `Refused` (denied), `DamagedError`"""
        user = self._users.require_active(name)
        return Signer(user, write_block(user, self._clock()))

    def admit(
        self, record: FileRecord, body: bytes, signed: SignedLeaf, head: FileHead, signer: Signer
    ) -> AdmittedRecord:
        """Check the rules for records of every op. The caller has checked that the owner asks.

        The signature of a request's tree is verified once.

        Raises `Refused`: `stale-generation`, `conflict` with the head, `rotation-required`, ….
        """
        require(record.server == self._server_id, "the record is for another server")
        require(record.actor == record.owner, "only an owner signs records of a file")
        require(record.writer is None, "the owner has no writers")
        user = signer.user
        self._check_generation(record, user)
        public = user.chain.signing_keys.get(record.generation, b"")
        try:
            verify_leaf(
                Label.RECORDS,
                signed.tree,
                signed.index,
                signed.packed[:SIGNATURE_SIZE],
                record_hash(body),
                public,
                server=self._server_id,
                owner_first=user.chain.first_hash,
                generation=record.generation,
                cache=self._signatures,
            )
        except SignatureError as exc:
            raise Refused("refused", "the record is not signed by its generation's key") from exc
        if signer.blocked is not None and not only_removes(record, head.record):
            raise Refused("rotation-required", f"rotate the key first: {signer.blocked.reason}")
        self._check_place(record, head, user.name)
        return AdmittedRecord(
            record,
            SignedRecord(body, (GenerationSignature(record.generation, signed.packed),)),
            {signing_key_id(public): signed.packed},
            user,
            head,
            {**user.expect, **head.expect()},
        )

    def check_wraps(
        self, admitted: AdmittedRecord, wraps: Sequence[Wrap], *, shared_as: str = ""
    ) -> dict[str, bytes | None]:
        """Check that `wraps` are for the owner and every reader, to their current keys.

        Return the documents that the check relied on. A wrap may be missing for a reader whose
        grant or key has expired, or whose account is disabled or damaged: clients do not wrap to
        those, and one account's damage must not stop other users. It may be missing for a reader
        who has left the file, or blocks the owner; `shared_as` is the file that readers may have
        left, if it is another than that of the record. If an
        older version than the newest is encrypted again, it may be missing for any reader: a reader
        has only the versions since they were added, unless the owner gave older ones too. Raises
        `Refused`.
        """
        record = admitted.record
        current = {record.owner: admitted.user.chain.head}
        required = {record.owner}
        is_older = record.op == REENCRYPT and record.version != admitted.head.version
        shared_as = shared_as or (record.file_id if admitted.head.version else "")
        expect: dict[str, bytes | None] = {}
        for reader in record.readers:
            user = self._find_reader(reader, current, expect)
            if user is None or is_older or not self._wants_wrap(reader, user):
                continue
            if shared_as and not self._wishes.takes(user.name, record.owner, shared_as):
                continue
            required.add(user.name)
        for wrap in wraps:
            check_wrap(wrap, current.get(wrap.user))
        check_distinct(wraps)
        if missing := required - {wrap.user for wrap in wraps}:
            raise Refused("stale-recipient", f"no wrap for {', '.join(sorted(missing))}")
        return expect

    def check_readers(
        self, admitted: AdmittedRecord, wraps: Sequence[Wrap]
    ) -> dict[str, bytes | None]:
        """Check that added readers are users and that `wraps` are for current keys of readers.

        `wraps` may belong to several versions. Return the documents that the check relied on.
        Raises `Refused`.
        """
        record, before = admitted.record, admitted.head.record
        old = set() if before is None else {reader[:2] for reader in before.readers}
        for_whom = {wrap.user for wrap in wraps}
        current: dict[str, Statement] = {}
        expect: dict[str, bytes | None] = {}
        for reader in record.readers:
            if reader[:2] not in old or reader[0] in for_whom:
                self._find_reader(reader, current, expect)
        for wrap in wraps:
            check_wrap(wrap, current.get(wrap.user))
        return expect

    def _check_generation(self, record: FileRecord, user: User) -> None:
        present = user.chain.head.generation
        if record.generation < present:
            raise Refused("stale-generation", f"the current key generation is {present}")
        require(record.generation == present, "the record's generation does not exist yet")

    def _check_place(self, record: FileRecord, head: FileHead, user: str) -> None:
        before = head.record
        if record.rev != (1 if before is None else before.rev + 1) or record.prev != head.hash:
            raise Refused("conflict", "the file has changed", head=head.view(user))
        carried = b"" if before is None else carried_content(before, head.newest.value.last.record)
        require(record.content in (b"", carried), "the record names another content")
        size, root = record.seen
        require(size <= self._journal.size, "the record quotes a longer log than the server's")
        # Every reader asks the server to prove this checkpoint and treats a failed proof as a lying
        # server. No user may cause that with a false checkpoint.
        same = not size or root == self._journal.root_at(size)
        require(same, "the record quotes a different log than the server's")
        if before is not None and record.op not in (ACCESS, MOVE):
            require(record.readers == before.readers, "only an access record changes readers")

    def _find_reader(
        self, reader: ReaderEntry, current: dict[str, Statement], expect: dict[str, bytes | None]
    ) -> User | None:
        """Return a reader, adding their newest statement to `current` and its file to `expect`.
        Return None if the account is damaged: access compares the first statement again."""
        name, first_hash, _ = reader
        try:
            found = self._users.chain(name)
        except DamagedError:
            return None
        if found is None or found[0].first_hash != first_hash:
            raise Refused("bad-request", f"no user {name} with that first statement")
        current[name] = found[0].head
        expect[statements_path(name)] = found[1]
        try:
            return self._users.find(name)
        except DamagedError:
            return None  # only the settings are damaged: a wrap may still be made

    def _wants_wrap(self, reader: ReaderEntry, user: User) -> bool:
        # A client whose clock is ahead omits readers who are about to expire.
        soon, expires = self._clock() + SKEW, reader[2]
        granted = expires == 0 or soon < expires
        head = user.chain.head
        if not granted or soon >= head.expires or user.account.value.disabled:
            return False
        try:
            check_wrap_key(head.wrap_alg, head.wrap_pub)
        except PublicKeyError:
            return False  # nobody can make that wrap
        return True


def only_removes(record: FileRecord, before: FileRecord | None) -> bool:
    """Return whether the record only deletes, purges or drops readers.

    A user whose keys must be rotated may do this: it makes room, which the rotation may need, and
    gives nobody access.
    """
    if record.op == ACCESS:
        return before is not None and set(record.readers) <= set(before.readers)
    return record.op == PURGE or (record.op == DELETE and record.to is None)


def check_content(
    admitted: AdmittedRecord,
    *,
    size: int,
    root: bytes,
    metadata: bytes,
    content_ids: dict[int, bytes],
) -> None:
    """Check that the record describes this ciphertext and metadata. Raises `Refused`, `Stale`.

    A `reencrypt` record describes an existing version and keeps `current`; any other record
    describes the next version, which becomes the current one.
    """
    record, before = admitted.record, admitted.head.record
    if record.op != REENCRYPT:
        version = admitted.head.next_version
        require(record.version == version, f"the next version is {version}")
        require(record.current == version, "a new version is the current one")
    elif before is not None:
        require(record.current == before.current, "reencryption keeps the current version")
    require(size > 0, "the ciphertext is empty")  # its content would not count against the quota
    require(record.ciphertext_size == size, f"the ciphertext has {size} bytes")
    require(record.segments_root == root, "segments_root does not match the ciphertext")
    digest = hashlib.sha256(metadata).digest()
    require(record.metadata_sha256 == digest, "metadata_sha256 does not match")
    require(bool(metadata), "a version needs metadata")
    used = [version for version, one in content_ids.items() if one == record.content_id]
    if any(version > admitted.head.version for version in used):
        # A version was added after the head was read, perhaps by this very request: decide again.
        raise Stale((admitted.head.paths(admitted.head.next_version).sidecar,))
    require(not used, "the content_id was used before")


def check_distinct(wraps: Sequence[Wrap]) -> None:
    """Check that one version's `wraps` have distinct users and keys. Raises `Refused`."""
    require(len({wrap.user for wrap in wraps}) == len(wraps), "duplicate user among the wraps")
    require(len({wrap.key_id for wrap in wraps}) == len(wraps), "duplicate key among the wraps")


def check_wrap(wrap: Wrap, statement: Statement | None, key_id: bytes = b"") -> None:
    """Check that `wrap` is for the wrapping key of `statement`. Raises `Refused`.

    A caller that already knows the id of that key passes it as `key_id`.
    """
    if statement is None:
        raise Refused("bad-request", f"{wrap.user} is not a reader of this file")
    if wrap.key_id != (key_id or statement.key_id) or wrap.algorithm != statement.wrap_alg:
        raise Refused("stale-recipient", f"the wrap is not for {wrap.user}'s current key")
    size = WRAP_SIZES[wrap.algorithm].wrapped
    require(len(wrap.wrapped) == size, f"the wrap is not {size} bytes")
