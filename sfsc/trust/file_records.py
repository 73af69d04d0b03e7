"""Whose files are whose, and every decision about what a server says of files, without I/O: is a
record one that its owner's keys signed, is it about the file we asked for, is it the newest we have
seen, do its key and its name belong to it. What a method returns was verified, unless it says
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar, Final

from protocol.codec import encoding
from protocol.codec.errors import EncodingError, MessageError
from protocol.codec.fields import Count, FileId, Struct
from protocol.codec.names import check_file_name
from protocol.codec.values import Value, field
from protocol.records.chain import standing
from protocol.records.records import (
    CONTENT_OPS,
    DELETE,
    REENCRYPT,
    FileRecord,
    Statement,
    record_hash,
)
from protocol.records.signatures import Label
from protocol.wire.messages import FileView
from protocol.wire.messages.base import SignedRecord, Wrap
from sfsc.crypto.envelope import ContentKey, Metadata, Recipient, open_wraps
from sfsc.crypto.primitives import PrivateKey, PublicKey, file_id
from sfsc.errors import BadRecord, Fork, NotFound, Rollback, Tampered
from sfsc.keys.bundle import private_keys
from sfsc.keys.keyring import Keyring
from sfsc.trust.signature_cache import SignatureCheck, signature_is_valid

SETTINGS: Final = "\0settings"
"""What the id of the account's settings is made of; no file can have this name (DESIGN 6)."""
SETTINGS_NAME: Final = "settings"
"""What stands as a name in the settings' metadata."""
_PARSE_CACHE_SIZE: Final = 8192
"""Records that are kept parsed, about 2 KB each."""
_REPORT = "keep what you have, and ask the server's operator"
_VOIDED_HINT = "somebody else had your keys then: see `sfsc history`"


class KnownRevision(Value):
    """A record of a file that is known, which an answer must not fall behind: its `rev`, and its
    `hash` (32 bytes). With `vouched`, whoever holds this account's keys has found its signature
    good before, or made it, so that it needs no second look."""

    rev: int
    hash: bytes
    verified: bool = False


class VerifiedFile(Value):
    """One version of a file, every signature verified.

    `content` made the version, `head` is the file's last record, often the same one; what ends in
    `_body` are their exact bytes. `metadata` and `wraps` are as stored: `OwnAccount.open` has yet
    to judge them. A `content` of a voided generation is shown, so that records can stand upon it,
    and never opened.
    """

    content: FileRecord
    content_body: bytes
    head: FileRecord
    head_body: bytes
    metadata: bytes
    wraps: tuple[Wrap, ...]

    @property
    def file_id(self) -> str:
        return self.head.file_id

    @property
    def version(self) -> int:
        """The version that `content` made."""
        return self.content.version or 0

    @property
    def deleted(self) -> bool:
        return self.head.current == 0

    def check_not_older(self, known: KnownRevision | None) -> None:
        """Raise `Rollback` or `Fork` where this is older than `known`, the newest record that was
        known *before* the server was asked, or leads there another way."""
        if known is None:
            return
        rev, digest = known.rev, known.hash
        head = self.head
        if head.rev < rev:
            raise Rollback(
                f"the server shows revision {head.rev} of a file, after {rev} was seen",
                _REPORT,
            )
        if head.rev == rev and record_hash(self.head_body) != digest:
            raise Fork(f"the server shows another revision {rev} of a file than was seen", _REPORT)
        if head.rev == rev + 1 and head.prev != digest:
            raise Fork(f"revision {head.rev} of a file does not follow what was seen", _REPORT)


class Entry(Struct):
    """A file as a listing shows it: its current version. Sizes in bytes, times in unix seconds.

    `revision` counts all that was ever recorded of the file, `version` its contents; `created` is
    when this version was stored, `mtime` when its source was last changed; `mode` is None where
    the source had none.
    """

    AS_MAP: ClassVar[bool] = True

    name: Annotated[str, check_file_name]
    file_id: FileId
    version: Count
    revision: Count
    size: Count
    ciphertext_size: Count
    mtime: int
    mode: int | None
    created: Count

    @classmethod
    def from_record(cls, head: FileRecord, content: FileRecord, metadata: Metadata) -> Entry:
        mtime = None if metadata.mtime is None else metadata.mtime // 1_000_000_000
        return cls(
            metadata.name,
            head.file_id,
            content.version or 0,
            head.rev,
            metadata.size,
            content.ciphertext_size or 0,
            content.created if mtime is None else mtime,
            metadata.mode,
            content.created,
        )

    def pack(self) -> bytes:
        """Bytes for a cache."""
        return encoding.pack(self.to_map())

    @classmethod
    def unpack(cls, packed: bytes) -> Entry:
        """The inverse. Raises `EncodingError` or `MessageError`."""
        return cls.from_map(encoding.unpack(packed))


class FileOwner(Value):
    """A user whose files these are, as his identity chain shows him: `first` is the hash of his
    first statement, `signers` are the public keys, by generation, whose signatures count, `former`
    those that ever did, `voided` those that somebody else brought and a recovery has undone;
    `voided_wraps` the ids of the keys that he had wraps made to."""

    server_id: bytes
    user: str
    first: bytes
    signers: Mapping[int, bytes]
    former: Mapping[int, bytes]
    voided: Mapping[int, bytes]
    voided_wraps: frozenset[bytes]

    def verify_newest(
        self, view: FileView, wanted: str | None, known: KnownRevision | None
    ) -> VerifiedFile:
        """What Stat, List or a conflict shows: the newest version of the file `wanted`.

        `wanted` None stands for any file of his; for `known` see `VerifiedFile.check_not_older`.
        Raises `BadRecord`, `Rollback` or `Fork`.
        """
        file = self._verify_view(view, wanted, known)
        # Another record that made content would have made a version newer than this one.
        made = file.head.op in CONTENT_OPS - {REENCRYPT}  # which may be of an older version
        older = made and file.head_body != file.content_body
        # Any other says which is current, and of a file that is there that is the newest.
        if older or file.head.current not in (0, file.version):
            raise Rollback("the server shows an older version of the file as its newest", _REPORT)
        return file

    def verify_version(
        self, view: FileView, wanted: str, version: int, known: KnownRevision | None
    ) -> VerifiedFile:
        """What GetOpen shows: `version` of the file, or with 0 the current one.

        Raises as `newest` does, and `NotFound` for the current version of a deleted file.
        """
        file = self._verify_view(view, wanted, known)
        if version == 0 and file.deleted:
            raise NotFound("the file was deleted")
        if file.version != (version or file.head.current):
            raise Rollback(
                f"the server shows version {file.version} of the file for another one", _REPORT
            )
        return file

    def is_voided(self, record: FileRecord) -> bool:
        """Whether it is of a generation that a recovery has undone."""
        return record.generation in self.voided

    def verify_voidable(self, view: FileView, wanted: str) -> VerifiedFile:
        """As `newest`, but of a file whose last record may be of a voided generation: for who puts
        another upon it. Raises `BadRecord`."""
        return self._verify_view(view, wanted, None, historic=True)

    def _verify_view(
        self,
        view: FileView,
        wanted: str | None,
        known: KnownRevision | None,
        *,
        historic: bool = False,
    ) -> VerifiedFile:
        # What a thief has stored stays there below the record that ended it.
        below = historic or view.head is not None
        passes = below and self.is_voided_signed(view.content)
        read = parse_record(view.content, _parse_cached)
        content = self.verify_parsed(view.content, read, wanted, known, historic=passes)
        if content.op not in CONTENT_OPS:
            raise BadRecord(f"a version of the file was made by a record of {content.op}")
        head, head_body = content, view.content.record
        if view.head is not None:
            passes = historic and self.is_voided_signed(view.head)
            read = parse_record(view.head, _parse_cached)
            head = self.verify_parsed(view.head, read, content.file_id, known, historic=passes)
            head_body = view.head.record
            _check_follows(content, view.content.record, head)
        body = view.content.record
        file = VerifiedFile(content, body, head, head_body, view.metadata, view.wraps)
        file.check_not_older(known)
        return file

    def verify_record(
        self, signed: SignedRecord, wanted: str | None, *, historic: bool = False
    ) -> FileRecord:
        """A record of his file `wanted` (None: of any), signed with a key of his that counts; one
        of a generation that counts no more must be endorsed by one that does.

        A `historic` one need not, and may be of a generation that was voided: it is linked by
        hashes to one that was judged without. Raises `BadRecord`.
        """
        return self.verify_parsed(signed, parse_record(signed), wanted, historic=historic)

    def verify_parsed(
        self,
        signed: SignedRecord,
        record: FileRecord,
        wanted: str | None,
        known: KnownRevision | None = None,
        *,
        historic: bool = False,
    ) -> FileRecord:
        """As `record`, of a record that is parsed; `known` of the same file may vouch for it."""
        if (record.server, record.owner, record.actor) != (self.server_id, self.user, self.user):
            raise BadRecord("a file's record is of another server or user", _REPORT)
        if wanted is not None and record.file_id != wanted:
            raise BadRecord("the server shows the record of another file", _REPORT)
        self._check_signed(signed, record, known, historic=historic)
        _check_current(record)
        return record

    def signature_checks(self, views: Iterable[FileView]) -> list[SignatureCheck]:
        """Of most of these the signatures that `newest` will ask about, for `verifying`: a hint,
        and no judgement."""
        found = []
        for view in views:
            for one in (view.content,) if view.head is None else (view.content, view.head):
                # Of several, one is the record's own; which, only the record says.
                if len(one.signatures) == 1 and one.signatures[0].generation in self.signers:
                    own = one.signatures[0]
                    public = self.signers[own.generation]
                    found.append((Label.RECORD, one.record, own.signature, public))
        return found

    def is_voided_signed(self, signed: SignedRecord) -> bool:
        """As `is_voided`, of a record that was not parsed yet. Raises `BadRecord`."""
        return bool(self.voided) and self.is_voided(parse_record(signed))

    def _check_signed(
        self,
        signed: SignedRecord,
        record: FileRecord,
        known: KnownRevision | None,
        *,
        historic: bool,
    ) -> None:
        by_generation = {one.generation: one.signature for one in signed.signatures}
        if len(by_generation) != len(signed.signatures):
            raise BadRecord("a file's record has two signatures of one generation", _REPORT)
        own = by_generation.pop(record.generation, None)
        keys = {**self.former, **self.voided} if historic else self.signers
        # Which keys count may have changed since then, so that is asked all the same; whose a
        # signature is may not: a generation has one key for ever.
        vouched = known is not None and known.verified and known.hash == record_hash(signed.record)

        def is_by(public: bytes | None) -> bool:
            if vouched:
                return public is not None
            return signature_is_valid(Label.RECORD, signed.record, own, public)

        if is_by(keys.get(record.generation)):
            return
        # Of older keys an old record stays; that it is old, a key that counts has vouched for.
        digest = record_hash(signed.record)
        former = is_by(self.former.get(record.generation))
        for generation, signature in by_generation.items():
            public = self.signers.get(generation) if generation > record.generation else None
            if former and signature_is_valid(Label.ENDORSE, digest, signature, public):
                return
        raise BadRecord("a file's record is not validly signed with a key that counts", _REPORT)


class OwnAccount(FileOwner):
    """Who we are."""

    __slots__ = ("__dict__",)  # for what is worked out once

    name_key: bytes = field(repr=False)
    private_keys: dict[bytes, PrivateKey] = field(repr=False)

    @classmethod
    def from_keyring(cls, keyring: Keyring) -> OwnAccount:
        """As this keyring knows it. Raises `UnsupportedKey` for keys that do not load."""
        return cls(
            keyring.server_id,
            keyring.user,
            keyring.first,
            *_signing_keys(keyring.statements),
            keyring.name_keys[0],
            private_keys(keyring.generations),
        )

    @cached_property
    def own_key(self) -> PublicKey:
        """The key that others, and we, wrap to for us."""
        return next(reversed(self.private_keys.values())).public

    def file_id(self, name: str) -> str:
        """Return the id under which the server stores our file `name` (checked, or `SETTINGS`)."""
        return file_id(self.name_key, name)

    @cached_property
    def settings_id(self) -> str:
        """Id of the file that holds this account's settings; listings hide it."""
        return self.file_id(SETTINGS)

    def is_settings(self, wanted: str) -> bool:
        return wanted == self.settings_id

    def open_version(
        self, file: VerifiedFile, owner: FileOwner | None = None
    ) -> tuple[ContentKey, Metadata]:
        """The key and the metadata of a version, checked against its record; of a file that its
        `owner` shares with us, else of our own.

        Raises `Tampered` or `BadRecord` where they are not what was signed, and `KeyringError`
        where this machine has no key for it. A name of ours that does not belong to the file's id
        is refused: else one file could be given for another.
        """
        key = self.open_content_key(file, owner)
        return key, self.open_metadata(key, file, owner)

    def open_content_key(self, file: VerifiedFile, owner: FileOwner | None = None) -> ContentKey:
        """The first half of `open`."""
        whose = self if owner is None else owner
        if whose.is_voided(file.content):
            raise BadRecord("this version was made with a key that was undone", _VOIDED_HINT)
        return open_wraps(file.content, whose.first, file.wraps, self.private_keys)

    def open_metadata(
        self, key: ContentKey, file: VerifiedFile, owner: FileOwner | None = None
    ) -> Metadata:
        """The second half of `open`."""
        metadata = key.open_metadata(file.content, file.metadata)
        if owner is None and not self._belongs(metadata.name, file.file_id):
            raise Tampered("the file's name does not belong to it", _REPORT)
        return metadata

    def _belongs(self, name: str, wanted: str) -> bool:
        """Whether `wanted` is the id of a file of ours whose metadata has this `name`."""
        return self.file_id(name) == wanted or (name == SETTINGS_NAME and self.is_settings(wanted))

    def wrap_for_readers(
        self, key: ContentKey, readers: Iterable[Recipient] = ()
    ) -> tuple[Wrap, ...]:
        """The DEK of a version of ours, for all who shall open it: ourselves, and `readers`."""
        own = Recipient(self.user, self.own_key)
        return key.wrap_for(self.server_id, self.first, [own, *readers])

    def listing_entry(self, file: VerifiedFile, owner: FileOwner | None = None) -> Entry:
        """What a listing shows of a version; raises as `open` does."""
        _, metadata = self.open_version(file, owner)
        return Entry.from_record(file.head, file.content, metadata)

    def is_lost(self, wraps: Sequence[Wrap]) -> bool:
        """Whether our wrap among these was made anew by somebody else, for himself."""
        return any(wrap.user == self.user and wrap.key_id in self.voided_wraps for wrap in wraps)


def owner_from_chain(chain: Sequence[bytes]) -> FileOwner:
    """Whom a chain of statements, followed from its first, shows."""
    head = Statement.parse(chain[-1])
    return FileOwner(head.server, head.user, record_hash(chain[0]), *_signing_keys(chain))


@lru_cache(_PARSE_CACHE_SIZE)
def _parse_cached(body: bytes) -> FileRecord:
    """Of the same bytes the same: what was listed is often fetched just after."""
    return FileRecord.parse(body)


def parse_record(
    signed: SignedRecord, parse: Callable[[bytes], FileRecord] = FileRecord.parse
) -> FileRecord:
    """What a record says, be it signed by whomever. Raises `BadRecord`."""
    try:
        return parse(signed.record)
    except (EncodingError, MessageError) as exc:
        raise BadRecord(f"a file's record is malformed: {exc}") from exc


_Keys = dict[int, bytes]


def _signing_keys(bodies: Sequence[bytes]) -> tuple[_Keys, _Keys, _Keys, frozenset[bytes]]:
    """The signing key of each generation, by a (trusted) chain: of those whose signatures
    count, of those that ever did, and of those that a recovery has voided; with the ids of the
    latters' wrap keys."""
    stand, undone = standing([Statement.parse(body) for body in bodies])
    former = {one.generation: one.sign_pub for one in stand}
    oldest = stand[-1].oldest if stand else 1
    voided = [one for one in undone if one.generation not in former]
    return (
        {generation: key for generation, key in former.items() if generation >= oldest},
        former,
        {one.generation: one.sign_pub for one in voided},
        # One of ours that he has named as his is ours still.
        frozenset(one.key_id for one in voided) - {one.key_id for one in stand},
    )


def _check_current(record: FileRecord) -> None:
    """What a record says is current must be what its op makes so."""
    made = 0 if record.op == DELETE else record.version
    settled = record.op == DELETE or record.op in CONTENT_OPS - {REENCRYPT}
    if settled and record.current != made:
        raise BadRecord(f"a record of {record.op} makes another version current than it should")


def _check_follows(content: FileRecord, content_body: bytes, head: FileRecord) -> None:
    if head.rev <= content.rev:
        raise BadRecord("the file's last record is not after the one before it", _REPORT)
    if head.rev == content.rev + 1 and head.prev != record_hash(content_body):
        raise BadRecord("the file's last record does not follow from the one before", _REPORT)
