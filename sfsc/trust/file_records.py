"""Every decision about what a server says of files, without I/O: whether a record is signed by its
owner's keys, describes the requested file, is the newest one seen, and has the right key and name.
What a method returns was verified, unless it says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar, Final

from protocol.codec.errors import EncodingError, MessageError, SignatureError
from protocol.codec.fields import AtMost, Bytes32, Count, EntryName, FileId, OneOf, Struct
from protocol.codec.values import Value, field
from protocol.records.chain import split_voided
from protocol.records.record_signatures import unpack_signature
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
from sfsc.crypto.envelope import (
    FILE,
    KINDS,
    MAX_TARGET,
    ContentKey,
    Metadata,
    Nanoseconds,
    WrapBatches,
    open_wraps,
)
from sfsc.crypto.primitives import file_id
from sfsc.crypto.wrap import PrivateKey, PublicKey
from sfsc.errors import BadRecord, Damaged, Fork, NotFound, Rollback, Tampered
from sfsc.keys.bundle import private_keys
from sfsc.keys.keyring import Keyring
from sfsc.times import as_datetime
from sfsc.trust.signature_cache import signature_is_valid

SETTINGS: Final = "\0settings"
"""Name from which the id of the account's settings is derived. No file can have it."""
SETTINGS_NAME: Final = "settings"
"""Name in the metadata of the settings."""
_PARSE_CACHE_SIZE: Final = 8192
"""Number of parsed records kept, about 2 KB each."""
_REPORT = "keep what you have, and ask the server's operator"
_VOIDED_HINT = "an attacker had your keys at that time: see `sfsc history`"


class KnownRevision(Value):
    """The known record of a file, by `rev` and `hash` (32 bytes). No answer may be older. If
    `verified`, a holder of this account's keys has checked or made its signature, so that it is not
    verified again."""

    rev: int
    hash: bytes
    verified: bool = False


class VerifiedFile(Value):
    """One version of a file, every signature verified.

    `content` is the record that made the version; `head` is the file's last record, often the same.
    Fields ending in `_body` are their exact bytes. `metadata` and `wraps` are as stored;
    `OwnAccount.open_version` checks them. A `content` of a voided generation is shown, so that
    records can be based on it, and never opened. Nor is one that the head does not name, unless it
    is `confirmed` to be the last record of its version on the chain that leads to the head.
    """

    content: FileRecord
    content_body: bytes
    head: FileRecord
    head_body: bytes
    metadata: bytes
    wraps: tuple[Wrap, ...]
    confirmed: bool = False

    @property
    def file_id(self) -> str:
        return self.head.file_id

    @property
    def is_confirmed(self) -> bool:
        """Whether the head is the content's record, or names it, or the chain of records does."""
        return self.confirmed or _names(self.head, self.head_body, self.content_body)

    @property
    def version(self) -> int:
        """Number of the version that `content` made."""
        return self.content.version or 0

    @property
    def deleted(self) -> bool:
        return self.head.current == 0

    def check_not_older(self, known: KnownRevision | None) -> None:
        """Raise `Rollback` or `Fork` if this is older than `known`, or does not follow from it.
        `known` is the newest record known *before* the server was asked."""
        if known is None:
            return
        rev, digest = known.rev, known.hash
        head = self.head
        if head.rev < rev:
            raise Rollback(
                f"the server shows revision {head.rev} of a file after revision {rev}", _REPORT
            )
        if head.rev == rev and record_hash(self.head_body) != digest:
            raise Fork(f"the server shows a different revision {rev} of a file", _REPORT)
        if head.rev == rev + 1 and head.prev != digest:
            raise Fork(f"revision {head.rev} of a file does not follow the one before", _REPORT)


class Entry(Struct):
    """A listing entry: the current version of a file. Sizes in bytes, times in unix seconds.

    `revision` counts all records of the file, `version` its contents. `created` is when this
    version was stored, `mtime` when its source was last changed (`created` if unknown). `mode` is
    None if the source had none. `kind` is ``file``, ``folder`` (its name ends with a slash) or
    ``link``, which points to `target`. `mtime_ns` is the time of the source in nanoseconds, and
    `sha256` the hash of the plaintext (32 bytes); each is None if the metadata have none.
    """

    AS_MAP: ClassVar[bool] = True

    name: EntryName
    file_id: FileId
    version: Count
    revision: Count
    size: Count
    ciphertext_size: Count
    mtime: int
    mode: int | None
    created: Count
    kind: Annotated[str, OneOf(KINDS)] = FILE
    target: Annotated[str, AtMost(MAX_TARGET)] | None = None
    mtime_ns: Nanoseconds | None = None
    sha256: Bytes32 | None = None

    @property
    def mtime_at(self) -> datetime | None:
        """Time of the source's last change, in UTC."""
        return as_datetime(self.mtime)

    @property
    def created_at(self) -> datetime | None:
        """Time at which this version was stored, in UTC."""
        return as_datetime(self.created)

    @classmethod
    def from_record(cls, head: FileRecord, content: FileRecord, metadata: Metadata) -> Entry:
        """Build from the file's last record, the record of the version, and its metadata."""
        mtime = None if metadata.mtime is None else metadata.mtime // 1_000_000_000
        return cls.of_checked(
            metadata.name,
            head.file_id,
            content.version or 0,
            head.rev,
            metadata.size,
            content.ciphertext_size or 0,
            content.created if mtime is None else mtime,
            metadata.mode,
            content.created,
            metadata.kind,
            metadata.target,
            metadata.mtime,
            metadata.sha256,
        )

    def pack(self) -> bytes:
        """Encode for a cache."""
        return self.encode()

    @classmethod
    def unpack(cls, packed: bytes) -> Entry:
        """Decode the output of `pack`. Raises `EncodingError` or `MessageError`."""
        return cls.parse(packed)


class FileOwner(Value):
    """A user who owns files, as shown by the user's identity chain.

    `first` is the hash of the first statement. `signers` are the public keys whose signatures are
    valid, by generation; `former` those that ever were; `voided` those that an attacker introduced
    and a recovery undid; `voided_wraps` the ids of the attacker's wrap keys.
    """

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
        """Verify the answer to Stat or List, or a conflict: the newest version of the file
        `wanted`. If `wanted` is None, any file of the owner; for `known` see
        `VerifiedFile.check_not_older`. Raises `BadRecord`, `Rollback` or `Fork`."""
        file = self._verify_view(view, wanted, known)
        # If the last record is another one that made content, it made a newer version.
        made = file.head.op in CONTENT_OPS - {REENCRYPT}  # REENCRYPT may be of an older version
        older = made and file.head_body != file.content_body
        # Any other record names the current version, which is the newest unless deleted.
        if older or file.head.current not in (0, file.version):
            raise Rollback("the server shows an older version of the file as its newest", _REPORT)
        return file

    def verify_version(
        self, view: FileView, wanted: str, version: int, known: KnownRevision | None
    ) -> VerifiedFile:
        """Verify the answer to Open: `version` of the file, or the current one for 0. Raises as
        `verify_newest` does, and `NotFound` for the current version of a deleted file."""
        file = self._verify_view(view, wanted, known)
        if version == 0 and file.deleted:
            raise NotFound("the file was deleted")
        if file.version != (version or file.head.current):
            raise Rollback(
                f"the server shows version {file.version} of the file instead of another", _REPORT
            )
        return file

    def is_voided(self, record: FileRecord) -> bool:
        """Return whether a recovery has undone the record's generation."""
        return record.generation in self.voided

    def verify_voidable(self, view: FileView, wanted: str) -> VerifiedFile:
        """Verify as `verify_newest` does, but allow a last record of a voided generation. For
        callers that base another record on it. Raises `BadRecord`."""
        return self._verify_view(view, wanted, None, historic=True)

    def _verify_view(
        self,
        view: FileView,
        wanted: str | None,
        known: KnownRevision | None,
        *,
        historic: bool = False,
    ) -> VerifiedFile:
        # Records of an attacker stay below the owner's record that ended them.
        """Verify a content record and, if shown, the last record; `historic` allows voided
        generations."""
        below = historic or view.head is not None
        passes = below and self.is_voided_signed(view.content)
        read = parse_record(view.content, parse_cached)
        content = self.verify_record(
            view.content, wanted, record=read, known=known, historic=passes
        )
        if content.op not in CONTENT_OPS:
            raise BadRecord(f"a version of the file was made by a record of {content.op}")
        head, head_body = content, view.content.record
        if view.head is not None:
            passes = historic and self.is_voided_signed(view.head)
            read = parse_record(view.head, parse_cached)
            head = self.verify_record(
                view.head, content.file_id, record=read, known=known, historic=passes
            )
            head_body = view.head.record
            _check_follows(content, view.content.record, head)
            check_names_content(head, head_body, content, view.content.record)
        body = view.content.record
        file = VerifiedFile(content, body, head, head_body, view.metadata, view.wraps)
        file.check_not_older(known)
        return file

    def verify_record(
        self,
        signed: SignedRecord,
        wanted: str | None,
        *,
        record: FileRecord | None = None,
        known: KnownRevision | None = None,
        historic: bool = False,
    ) -> FileRecord:
        """Verify a record of the file `wanted` (None: any), signed with a valid key of the owner.

        A record of a former generation must be endorsed by a valid one. A `historic` record need
        not, and may be of a voided generation: it is linked by hashes to one verified without
        `historic`. `record` is the parsed record, if the caller has it. A matching `known` replaces
        checking its signature. Raises `BadRecord`.
        """
        record = parse_record(signed) if record is None else record
        if (record.server, record.owner, record.actor) != (self.server_id, self.user, self.user):
            raise BadRecord("a file's record names another server or user", _REPORT)
        if wanted is not None and record.file_id != wanted:
            raise BadRecord("the server shows the record of another file", _REPORT)
        if record.writer is not None:
            raise BadRecord("a file's record names a writer that its owner does not have", _REPORT)
        self._check_signed(signed, record, known, historic=historic)
        _check_current(record)
        return record

    def _is_signed(
        self,
        label: Label,
        packed: bytes | None,
        digest: bytes,
        generation: int,
        public: bytes | None,
    ) -> bool:
        """Return whether `public`, the key of `generation`, signed or endorsed a record."""
        if packed is None or public is None:
            return False
        try:
            body, signature = unpack_signature(
                packed,
                digest,
                server=self.server_id,
                owner_first=self.first,
                generation=generation,
            )
        except SignatureError:
            return False
        return signature_is_valid(label, body, signature, public)

    def is_voided_signed(self, signed: SignedRecord) -> bool:
        """Return whether a recovery has undone an unparsed record's generation. Raises
        `BadRecord`."""
        return bool(self.voided) and self.is_voided(parse_record(signed))

    def _check_signed(
        self,
        signed: SignedRecord,
        record: FileRecord,
        known: KnownRevision | None,
        *,
        historic: bool,
    ) -> None:
        """Raise `BadRecord` unless the record is signed, or endorsed, by a generation
        that counts."""
        by_generation = {one.generation: one.signature for one in signed.signatures}
        if len(by_generation) != len(signed.signatures):
            raise BadRecord("a file's record has two signatures of one generation", _REPORT)
        own = by_generation.pop(record.generation, None)
        keys = {**self.former, **self.voided} if historic else self.signers
        # Safe to reuse: a generation's key never changes, so a valid signature stays valid. Which
        # generations count may have changed, so that is checked below every time.
        digest, made = record_hash(signed.record), record.generation
        vouched = known is not None and known.verified and known.hash == digest

        def is_by(public: bytes | None) -> bool:
            if vouched:
                return public is not None
            return self._is_signed(Label.RECORDS, own, digest, made, public)

        if is_by(keys.get(made)):
            return
        # A record of a former key is accepted if a valid key endorsed it, which proves its age.
        former = is_by(self.former.get(made))
        for generation, packed in by_generation.items():
            public = self.signers.get(generation) if generation > made else None
            if former and self._is_signed(Label.ENDORSEMENTS, packed, digest, generation, public):
                return
        raise BadRecord("a file's record is not signed with a valid key of its owner", _REPORT)


class OwnAccount(FileOwner, dict=True):  # for cached properties
    """This account: its private keys, and the verification of its own files."""

    name_key: bytes = field(repr=False)
    private_keys: dict[bytes, PrivateKey] = field(repr=False)

    @classmethod
    def from_keyring(cls, keyring: Keyring) -> OwnAccount:
        """Build from a keyring. Raises `UnsupportedKey` if a key does not load."""
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
        """Current public key to which this account's wraps are made."""
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
        """Return the key and the metadata of a version, checked against its record.

        The file is shared by `owner`, or our own if that is None. Raises `Tampered` or `BadRecord`
        if they are not what was signed, and `KeyringError` if this machine has no key for it. A
        name of our own that does not match the file's id is refused; otherwise the server could
        substitute another file.
        """
        key = self.open_content_key(file, owner)
        return key, self.open_metadata(key, file, owner)

    def open_content_key(self, file: VerifiedFile, owner: FileOwner | None = None) -> ContentKey:
        """Return the key of a version; the first half of `open_version`."""
        whose = self if owner is None else owner
        if whose.is_voided(file.content):
            raise BadRecord("this version was signed with a voided key", _VOIDED_HINT)
        if not file.is_confirmed:
            raise BadRecord(f"the file's records do not name this version {file.version}", _REPORT)
        if not file.metadata:
            cause = f"the content of version {file.version} is not on the server any more"
            raise Damaged(cause, file_id=file.file_id, version=file.version)
        return open_wraps(file.content, whose.first, file.wraps, self.private_keys)

    def open_metadata(
        self, key: ContentKey, file: VerifiedFile, owner: FileOwner | None = None
    ) -> Metadata:
        """Return the metadata of a version; the second half of `open_version`."""
        metadata = key.open_metadata(file.content, file.metadata)
        if owner is None and not self._belongs(metadata.name, file.file_id):
            raise Tampered("the file's name does not match its id", _REPORT)
        return metadata

    def _belongs(self, name: str, wanted: str) -> bool:
        """Whether `wanted` is the id of a file of ours whose metadata has this `name`."""
        return self.file_id(name) == wanted or (name == SETTINGS_NAME and self.is_settings(wanted))

    def wrap_batches(self, owner: FileOwner | None = None) -> WrapBatches:
        """Return fresh wrap batches for files of `owner`, or for our own if that is None."""
        return WrapBatches(self.server_id, (self if owner is None else owner).first)

    def listing_entry(self, file: VerifiedFile, owner: FileOwner | None = None) -> Entry:
        """Return the listing entry of a version. Raises as `open_version` does."""
        _, metadata = self.open_version(file, owner)
        return Entry.from_record(file.head, file.content, metadata)

    def is_lost(self, wraps: Sequence[Wrap]) -> bool:
        """Return whether an attacker has rewrapped this version to the attacker's own key."""
        return any(wrap.user == self.user and wrap.key_id in self.voided_wraps for wrap in wraps)


def owner_from_chain(chain: Sequence[bytes]) -> FileOwner:
    """Return the owner that a verified chain of statements shows."""
    head = Statement.parse(chain[-1])
    return FileOwner(head.server, head.user, record_hash(chain[0]), *_signing_keys(chain))


@lru_cache(_PARSE_CACHE_SIZE)
def parse_cached(body: bytes) -> FileRecord:
    """Parse a record, reusing earlier results: what was listed is often fetched next."""
    return FileRecord.parse(body)


def parse_record(
    signed: SignedRecord, parse: Callable[[bytes], FileRecord] = FileRecord.parse
) -> FileRecord:
    """Parse a record without checking its signatures. Raises `BadRecord`."""
    try:
        return parse(signed.record)
    except (EncodingError, MessageError) as exc:
        raise BadRecord(f"a file's record is malformed: {exc}") from exc


_Keys = dict[int, bytes]


def _signing_keys(bodies: Sequence[bytes]) -> tuple[_Keys, _Keys, _Keys, frozenset[bytes]]:
    """Return the signing keys of a verified chain, by generation: those now valid, those ever
    valid, and those that a recovery voided; and the ids of the voided generations' wrap keys."""
    stand, undone = split_voided([Statement.parse(body) for body in bodies])
    former = {one.generation: one.sign_pub for one in stand}
    oldest = stand[-1].oldest if stand else 1
    voided = [one for one in undone if one.generation not in former]
    return (
        {generation: key for generation, key in former.items() if generation >= oldest},
        former,
        {one.generation: one.sign_pub for one in voided},
        # If the attacker named a key of ours, it is still ours.
        frozenset(one.key_id for one in voided) - {one.key_id for one in stand},
    )


def _check_current(record: FileRecord) -> None:
    """Raise `BadRecord` unless the record makes the version current that its op requires."""
    made = 0 if record.op == DELETE else record.version
    settled = record.op == DELETE or record.op in CONTENT_OPS - {REENCRYPT}
    if settled and record.current != made:
        raise BadRecord(f"a record of {record.op} makes the wrong version current")


def check_names_content(
    head: FileRecord, head_body: bytes, content: FileRecord, content_body: bytes
) -> None:
    """Raise `Rollback` if `content` made the current version of `head` and `head` names another
    record for it. `_body` are the exact bytes of both.

    A server could otherwise show a content that was replaced, or one that it had refused: both are
    validly signed, and have the right number.
    """
    if content.version == head.current and not _names(head, head_body, content_body):
        raise Rollback(
            f"the server shows another version {content.version} than the file's last record names",
            _REPORT,
        )


def _names(head: FileRecord, head_body: bytes, content_body: bytes) -> bool:
    return content_body == head_body or head.content == record_hash(content_body)


def _check_follows(content: FileRecord, content_body: bytes, head: FileRecord) -> None:
    if head.rev <= content.rev:
        raise BadRecord("the file's last record is older than the record of its content", _REPORT)
    if head.rev == content.rev + 1 and head.prev != record_hash(content_body):
        raise BadRecord("the file's last record does not follow from the one before", _REPORT)
