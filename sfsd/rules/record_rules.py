"""Whether a signed record may go onto a file's head.

Every rule of DESIGN section 4 that a server can check, in the order in which an honest client that
was overtaken wants to hear of them: who he is, what is the head, then everything else. What was
relied on is collected in `expect`, and the committer checks it again when the record is appended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from protocol.codec.errors import RemoteProtocolError, SignatureError
from protocol.codec.values import Value
from protocol.records.records import (
    ACCESS,
    MOVE,
    REENCRYPT,
    WRAPPED_SIZES,
    FileRecord,
    ReaderEntry,
    Statement,
    record_hash,
)
from protocol.records.signatures import Label, verify_signature
from protocol.wire.messages import FileView
from protocol.wire.messages.base import GenerationSignature, SignedRecord, Wrap
from sfsd.errors import Refused, Stale, require
from sfsd.rules.users import Accounts, User, block_of, signing_key_id
from sfsd.state.documents import Document
from sfsd.state.file_index import OwnerFiles
from sfsd.storage.json_files import Sidecar, record_of
from sfsd.storage.paths import VersionPaths, statements_path

SKEW: Final = 600
"""Seconds by which clocks of clients and server may differ."""


class Head(Value):
    """A file as it stands: its newest version and that version's sidecar, None where no file is."""

    files: OwnerFiles
    file_id: str
    version: int
    document: Document[Sidecar] | None

    @classmethod
    def of(cls, files: OwnerFiles, file_id: str) -> Head:
        """Raises `DamagedError`."""
        version = files.newest(file_id)
        document = files.sidecar(file_id, version) if version else None
        return cls(files, file_id, version, document)

    @property
    def record(self) -> FileRecord | None:
        return None if self.document is None else self.document.value.head_record

    @property
    def hash(self) -> bytes:
        """Hash of the last record, what the next one's `prev` must be; empty for no file."""
        return b"" if self.document is None else record_hash(self.document.value.last.record)

    @property
    def next_version(self) -> int:
        return self.version + 1

    def paths(self, version: int) -> VersionPaths:
        return VersionPaths.of(self.files.owner, self.file_id, version)

    def view(self, user: str) -> FileView | None:
        if self.document is None:
            return None
        return self.document.value.view(user, self.document.value.last)

    def expect(self) -> dict[str, bytes | None]:
        """That the newest version is still the newest, and its sidecar as it was read."""
        expected: dict[str, bytes | None] = {self.paths(self.next_version).sidecar: None}
        if self.document is not None:
            expected[self.document.path] = self.document.digest
        return expected


class Admitted(Value):
    """A record that may go onto `head`. `expect` is what that relies on."""

    record: FileRecord
    signed: SignedRecord
    sigs: dict[str, bytes]
    user: User
    head: Head
    expect: dict[str, bytes | None]

    @property
    def accounts(self) -> tuple[str, ...]:
        """Whose history the entry belongs to: the owner, the actor, readers added or dropped."""
        before = self.head.record
        old = set() if before is None else {reader[0] for reader in before.readers}
        new = {reader[0] for reader in self.record.readers}
        return tuple(sorted({self.record.owner, self.record.actor} | (old ^ new)))


def parse_record(body: bytes) -> FileRecord:
    """Raises `Refused`."""
    try:
        return record_of(body)
    except RemoteProtocolError as exc:
        raise Refused("bad-request", f"not a file record: {exc}") from exc


class Admission:
    """The rules, on what is known of users. `log_size` says how long the log is, `log_root` under
    which root its first so many lines are."""

    def __init__(
        self,
        server_id: bytes,
        accounts: Accounts,
        log_size: Callable[[], int],
        log_root: Callable[[int], bytes],
        clock: Callable[[], float],
    ) -> None:
        self._server_id = server_id
        self._accounts = accounts
        self._log_size = log_size
        self._log_root = log_root
        self._clock = clock

    def admit(self, record: FileRecord, body: bytes, signature: bytes, head: Head) -> Admitted:
        """Every rule that holds for a record of any op. Its owner is who asks.

        Raises `Refused`: `stale-generation`, `conflict` with the head, `rotation-required`, ….
        """
        require(record.server == self._server_id, "the record is for another server")
        require(record.actor == record.owner, "only an owner signs records of a file")
        user = self._accounts.acting(record.owner)
        self._check_generation(record, user)
        public = user.chain.signing_keys.get(record.generation, b"")
        try:
            verify_signature(Label.RECORD, body, signature, public)
        except SignatureError as exc:
            raise Refused("refused", "the record is not signed by its generation's key") from exc
        if (blocked := block_of(user, self._clock())) is not None:
            raise Refused("rotation-required", f"rotate the key first: {blocked.reason}")
        self._check_place(record, head, user.name)
        return Admitted(
            record,
            SignedRecord(body, (GenerationSignature(record.generation, signature),)),
            {signing_key_id(public): signature},
            user,
            head,
            {**user.expect, **head.expect()},
        )

    def check_wraps(self, admitted: Admitted, wraps: Sequence[Wrap]) -> dict[str, bytes | None]:
        """Raise `Refused` unless `wraps` are for the owner and every reader, to the current keys.

        Returns what this relies on. A reader whose grant or key has expired, or who is disabled,
        may be left out: clients do not wrap to such.
        """
        record = admitted.record
        current = {record.owner: admitted.user.chain.head}
        required = {record.owner}
        expect: dict[str, bytes | None] = {}
        for reader in record.readers:
            user = self._reader(reader)
            current[user.name] = user.chain.head
            if self._wants_wrap(reader, user):
                required.add(user.name)
            expect[statements_path(user.name)] = user.expect[statements_path(user.name)]
        for wrap in wraps:
            check_wrap(wrap, current.get(wrap.user))
        check_distinct(wraps)
        users = [wrap.user for wrap in wraps]
        if missing := required - set(users):
            raise Refused("stale-recipient", f"no wrap for {', '.join(sorted(missing))}")
        return expect

    def check_readers(self, admitted: Admitted, wraps: Sequence[Wrap]) -> dict[str, bytes | None]:
        """Raise `Refused` unless all who are readers anew are users, and `wraps`, of one version or
        several, are for readers, to their current keys. Returns what this relies on."""
        record, before = admitted.record, admitted.head.record
        old = set() if before is None else {reader[:2] for reader in before.readers}
        for_whom = {wrap.user for wrap in wraps}
        current: dict[str, Statement] = {}
        expect: dict[str, bytes | None] = {}
        for reader in record.readers:
            if reader[:2] in old and reader[0] not in for_whom:
                continue
            user = self._reader(reader)
            current[user.name] = user.chain.head
            expect[statements_path(user.name)] = user.expect[statements_path(user.name)]
        for wrap in wraps:
            check_wrap(wrap, current.get(wrap.user))
        return expect

    def _check_generation(self, record: FileRecord, user: User) -> None:
        present = user.chain.head.generation
        if record.generation < present:
            raise Refused("stale-generation", f"the key's generation is {present} by now")
        require(record.generation == present, "a generation that is not there yet")

    def _check_place(self, record: FileRecord, head: Head, user: str) -> None:
        before = head.record
        if record.rev != (1 if before is None else before.rev + 1) or record.prev != head.hash:
            raise Refused("conflict", "the file has changed", head=head.view(user))
        size, root = record.seen
        require(size <= self._log_size(), "the record has seen a log longer than ours")
        # Whoever reads the file has it proven, and takes us for a liar where it is not so: that is
        # not for a user to bring about.
        holds = not size or root == self._log_root(size)
        require(holds, "the record has seen another log than ours")
        if before is not None and record.op not in (ACCESS, MOVE):
            require(record.readers == before.readers, "only an access record changes the readers")

    def _reader(self, reader: ReaderEntry) -> User:
        name, first_hash, _ = reader
        user = self._accounts.find(name)
        if user is None or user.chain.first_hash != first_hash:
            raise Refused("bad-request", f"no user {name} with that first statement")
        return user

    def _wants_wrap(self, reader: ReaderEntry, user: User) -> bool:
        # A client whose clock is a little ahead leaves out who is about to expire.
        soon, expires = self._clock() + SKEW, reader[2]
        granted = expires == 0 or soon < expires
        return granted and soon < user.chain.head.expires and not user.account.value.disabled


def check_content(
    admitted: Admitted, *, size: int, root: bytes, metadata: bytes, content_ids: dict[int, bytes]
) -> None:
    """Raise `Refused` unless the record describes this ciphertext and metadata: as a new version,
    or where it encrypts one anew, as that one, with nothing else current than before."""
    record, before = admitted.record, admitted.head.record
    if record.op != REENCRYPT:
        version = admitted.head.next_version
        require(record.version == version, f"the next version is {version}")
        require(record.current == version, "a new version is the current one")
    elif before is not None:
        require(record.current == before.current, "what is current stays as it is")
    require(size > 0, "a ciphertext is never empty")  # it would count as no quota
    require(record.ciphertext_size == size, f"{size} bytes of ciphertext are here")
    require(record.segments_root == root, "the ciphertext has another segments_root")
    require(record.metadata_sha256 == hashlib.sha256(metadata).digest(), "not the metadata's hash")
    require(bool(metadata), "a version needs metadata")
    used = [version for version, one in content_ids.items() if one == record.content_id]
    if any(version > admitted.head.version for version in used):
        # Made since the head was read, perhaps from this very request: to be decided again.
        raise Stale((admitted.head.paths(admitted.head.next_version).sidecar,))
    require(not used, "the content_id was used before")


def check_distinct(wraps: Sequence[Wrap]) -> None:
    """Raise `Refused` unless each of a version's `wraps` is another user's, for another key."""
    require(len({wrap.user for wrap in wraps}) == len(wraps), "a user has two wraps")
    require(len({wrap.key_id for wrap in wraps}) == len(wraps), "two users have one key")


def check_wrap(wrap: Wrap, statement: Statement | None, key_id: bytes = b"") -> None:
    """Raise `Refused` unless `wrap` is for the key that `statement` makes current, whose id is
    `key_id` where the caller knows it already."""
    if statement is None:
        raise Refused("bad-request", f"{wrap.user} is no reader of this file")
    if wrap.key_id != (key_id or statement.key_id) or wrap.algorithm != statement.wrap_alg:
        raise Refused("stale-recipient", f"the wrap is not for {wrap.user}'s current key")
    require(len(wrap.wrapped) == WRAPPED_SIZES[wrap.algorithm], "a wrap of a wrong length")
