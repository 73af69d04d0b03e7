"""Envelope of a file's ciphertext: the wraps of its key, its sealed metadata, its signed record.

A version of a file has one `ContentKey`: a fresh DEK (data encryption key) and a content_id. The
rest derives from it::

    ciphertext    Encryptor under the DEK, bound to the content_id
    metadata      nonce[12] ‖ AES-256-GCM(metadata key, `Metadata`), bound to the content_id; the
                  signed record holds its SHA-256
    commitment    in the signed record, so that a wrap cannot open to another DEK
    wraps         the DEK for each reader, bound to server, owner, content_id, commitment and the
                  reader's key

Files that are sent together share a *wrap batch* for each reader: one random KEK (key encryption
key), encrypted once to the reader's key. A wrap holds all that opens it::

    wrapped       batch_id[16] ‖ encrypted KEK ‖ item[60]
    item          nonce[12] ‖ AES-256-GCM(key derived from the KEK and the item's info, DEK)
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, ClassVar, Final

from protocol.codec.encoding import Buffer
from protocol.codec.errors import EncodingError, MessageError
from protocol.codec.fields import AtMost, Between, Bytes32, Count, EntryName, OneOf, Struct
from protocol.codec.names import check_entry_name, check_file_name
from protocol.codec.values import Value, field
from protocol.records.records import (
    BATCH_ID_SIZE,
    CONTENT_OPS,
    MAX_VERSION,
    PUT,
    WRAP_ITEM_SIZE,
    FileRecord,
    ReaderEntry,
    carried_content,
    record_hash,
)
from protocol.wire.messages.base import MAX_METADATA, Wrap
from protocol.wire.messages.changes import WrapBatch
from sfsc.crypto.padding import padded_size
from sfsc.crypto.primitives import (
    commitment,
    metadata_key,
    new_batch_id,
    new_content_id,
    new_key,
    open_sealed,
    seal,
    wrap_batch_info,
    wrap_item_info,
    wrap_item_key,
)
from sfsc.crypto.segments import Decryptor, Encryptor, open_small, plaintext_size
from sfsc.crypto.wrap import PrivateKey, PublicKey
from sfsc.errors import BadRecord, KeyringError, NotFound, Tampered, UsageError

Nanoseconds = Annotated[int, Between(-(2**63), 2**63 - 1)]
_Mode = Annotated[int, Between(0, 0o7777)]
BATCH_SIZE: Final = 256
"""Most wraps of one batch: as many as a rotation sends in one request."""


FILE, FOLDER, LINK = KINDS = "file", "folder", "link"
MAX_TARGET = 2048
"""Longest target of a symbolic link in bytes."""
MAX_PADDING = 512


class Metadata(Struct):
    """Metadata of a file, readable only with its DEK. `size` is in bytes of plaintext,
    without the padding that may follow it (`sfsc.crypto.padding`). `mtime`
    (nanoseconds since 1970) and `mode` (POSIX permission bits) are None if the source has none, as
    a pipe.

    `kind` is `FILE`, `FOLDER` or `LINK`. A folder's name, and no other, ends with a slash. Folders
    and links have no content. `target` is what a symbolic link points to, None for the others.
    `sha256` is the hash of the plaintext, None if it was not computed: it tells whether a local
    file has changed; the content is verified without it.
    `padding` is zero bytes that hide the length of the rest, or None. `sparse` says that the source
    had holes: a download makes holes of pages of zero bytes."""

    AS_MAP: ClassVar[bool] = True
    LIMIT: ClassVar[int] = MAX_METADATA

    name: EntryName
    size: Count
    mtime: Nanoseconds | None
    mode: _Mode | None
    kind: Annotated[str, OneOf(KINDS)] = FILE
    target: Annotated[str, AtMost(MAX_TARGET)] | None = None
    sha256: Bytes32 | None = None
    padding: Annotated[bytes, AtMost(MAX_PADDING)] | None = None
    sparse: bool = False

    def __post_init__(self) -> None:
        if (self.kind == FOLDER) != self.name.endswith("/"):
            raise MessageError("Metadata.name ends with a slash if it is a folder's, and only then")
        if self.kind != FILE and (self.size or self.sparse):
            raise MessageError("Metadata of a folder or a link with a content")
        if (self.kind == LINK) != (self.target is not None):
            raise MessageError("Metadata.target belongs to a link")
        if self.target is not None and (not self.target or "\0" in self.target):
            raise MessageError("Metadata.target is no path")
        if self.padding is not None and (not self.padding or any(self.padding)):
            raise MessageError("Metadata.padding is not zero bytes")


def check_name(name: str) -> None:
    """Raise `UsageError` unless `name` is a valid name of a file or a link (rules in
    `protocol.codec.names`)."""
    try:
        check_file_name(name)
    except MessageError as exc:
        raise UsageError(str(exc)) from exc


def check_any_name(name: str) -> None:
    """Raise `UsageError` unless `name` is a valid name of a file, a link or a folder, which ends
    with a slash."""
    try:
        check_entry_name(name)
    except MessageError as exc:
        raise UsageError(str(exc)) from exc


def requested_version(version: int | None) -> int:
    """Return the version number to send to a server: 0, the current version, for None. Raises
    `UsageError` below 1, and `NotFound` above the highest number that a version can have."""
    if version is None:
        return 0
    if version < 1:
        raise UsageError(f"no version {version}", "version numbers start at 1")
    if version > MAX_VERSION:
        raise NotFound(f"no version {version}", "see `sfsc history`")
    return version


VersionWrap = tuple[int, WrapBatch, bytes]
"""A version, a batch, and the item (60 bytes) that wraps the version's DEK by the batch's KEK."""


class Recipient(Value):
    """A user who may open a file, and that user's current key."""

    user: str
    key: PublicKey


class ContentKey(Value, dict=True):  # for a cached property
    """The DEK (32 bytes) and content_id (16 bytes) of one version's content. `generate` makes a new
    one, `open_wraps` opens a stored one."""

    content_id: bytes
    dek: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> ContentKey:
        """Return a fresh random key."""
        return cls(new_content_id(), new_key())

    @cached_property
    def commitment(self) -> bytes:
        """The `dek_commit` of signed records, 32 bytes."""
        return commitment(self.dek)

    def encryptor(self) -> Encryptor:
        """Return the encryptor of this content's one ciphertext. A restarted upload needs a fresh
        key."""
        return Encryptor(self.dek, self.content_id)

    def resume_encryptor(self, header: bytes, leaves: Sequence[bytes]) -> Encryptor:
        """Return the encryptor of a ciphertext with this 40-byte header, of which the pieces with
        these leaf hashes exist: see `Encryptor.resume`."""
        return Encryptor.resume(self.dek, self.content_id, header, leaves)

    def decryptor(self, header: Buffer, ciphertext_size: int) -> Decryptor:
        """Return the decryptor of a blob with this 40-byte header and signed size. Raises
        `Tampered`."""
        return Decryptor(self.dek, self.content_id, header, ciphertext_size)

    def open_small(self, ciphertext: bytes) -> bytes:
        """Return the plaintext of a whole ciphertext of one segment. Raises `Tampered`."""
        return open_small(self.dek, self.content_id, ciphertext)

    def seal_metadata(self, metadata: Metadata) -> bytes:
        """Encrypt the metadata. The record holds the SHA-256 of the bytes returned."""
        return seal(metadata_key(self.dek), metadata.encode(), self.content_id)

    def open_metadata(self, record: FileRecord, sealed: bytes) -> Metadata:
        """Decrypt metadata after checking that it is what `record` was signed over. Raises
        `Tampered` if it is not, and `BadRecord` for a name or size that no honest client writes: a
        user who shares a file must not choose where it is written."""
        digest = hashlib.sha256(sealed).digest()
        if record.metadata_sha256 is None or not hmac.compare_digest(
            record.metadata_sha256, digest
        ):
            raise Tampered("the file's metadata is not what was signed")
        body = open_sealed(metadata_key(self.dek), sealed, self.content_id)
        try:
            metadata = Metadata.parse(body)
        except (EncodingError, MessageError) as exc:
            raise BadRecord(f"the file's metadata is malformed: {exc}") from exc
        content = plaintext_size(record.ciphertext_size or 0)
        if content not in (metadata.size, padded_size(metadata.size)):
            raise BadRecord("the size in the file's metadata is not the size of its content")
        return metadata


class _OpenBatch:
    """One KEK for one recipient: used for at most `BATCH_SIZE` wraps, and never stored."""

    __slots__ = ("_context", "_kek", "batch", "left")

    def __init__(self, server: bytes, owner_first: bytes, recipient: Recipient) -> None:
        batch_id, self._kek, public = new_batch_id(), new_key(), recipient.key
        self._context = server, owner_first, batch_id, public.key_id
        enc = public.wrap(self._kek, wrap_batch_info(*self._context))
        self.batch = WrapBatch(batch_id, recipient.user, public.key_id, public.alg, enc)
        self.left = BATCH_SIZE

    def wrap(self, key: ContentKey) -> bytes:
        self.left -= 1
        info = wrap_item_info(*self._context, key.content_id, key.commitment)
        return seal(wrap_item_key(self._kek, info), key.dek, info)


class WrapBatches:
    """Wraps the DEKs of one owner's files that are sent together, with one batch for each recipient
    and another one after `BATCH_SIZE` wraps. A KEK never serves two recipients: shared, it would
    give each the other's files. Use a fresh object for each command, so that nothing connects the
    KEKs of one with those of another.

    `owner_first` is the hash of the first statement of the files' owner, also if a reader wraps
    what was shared with them.
    """

    __slots__ = ("_batches", "_owner_first", "_server")

    def __init__(self, server: bytes, owner_first: bytes) -> None:
        self._server = server
        self._owner_first = owner_first
        self._batches: dict[tuple[str, bytes], _OpenBatch] = {}

    def wrap(self, key: ContentKey, recipients: Iterable[Recipient]) -> tuple[Wrap, ...]:
        """Wrap the DEK for each recipient, in input order. Each wrap has the KEK of its batch."""
        return tuple(
            Wrap(one.user, one.key_id, one.algorithm, one.batch_id + one.enc + item)
            for _, one, item in self.wrap_version(key, 0, recipients)
        )

    def wrap_version(
        self, key: ContentKey, version: int, recipients: Iterable[Recipient]
    ) -> list[VersionWrap]:
        """Like `wrap`, for a changeset, which has each batch once."""
        opened = map(self._batch_for, recipients)
        return [(version, one.batch, one.wrap(key)) for one in opened]

    def _batch_for(self, recipient: Recipient) -> _OpenBatch:
        who = recipient.user, recipient.key.key_id
        opened = self._batches.get(who)
        if opened is None or not opened.left:
            opened = _OpenBatch(self._server, self._owner_first, recipient)
            self._batches[who] = opened
        return opened


def open_wraps(
    record: FileRecord, owner_first: bytes, wraps: Iterable[Wrap], keys: Mapping[bytes, PrivateKey]
) -> ContentKey:
    """Return the content key of `record` (a put, restore, move or reencrypt). Raises `KeyringError`
    if no wrap is for one of `keys`, and `Tampered` if the wrap does not open, or opens to another
    key than the one the record commits to."""
    if record.op not in CONTENT_OPS or record.content_id is None or record.dek_commit is None:
        raise BadRecord(f"a record of {record.op} describes no content")
    wrap = next((wrap for wrap in wraps if wrap.key_id in keys), None)
    if wrap is None:
        raise KeyringError(
            "the file is not encrypted for any key of this machine",
            "its owner must share it again, or this machine needs the account's newer keys",
        )
    private, wrapped = keys[wrap.key_id], wrap.wrapped
    context = record.server, owner_first, wrapped[:BATCH_ID_SIZE], wrap.key_id
    encrypted, item = wrapped[BATCH_ID_SIZE:-WRAP_ITEM_SIZE], wrapped[-WRAP_ITEM_SIZE:]
    kek = private.unwrap_kek(encrypted, wrap_batch_info(*context))
    info = wrap_item_info(*context, record.content_id, record.dek_commit)
    dek = open_sealed(wrap_item_key(kek, info), item, info)
    if not hmac.compare_digest(commitment(dek), record.dek_commit):
        raise Tampered("the wrapped key is not the one that was signed")
    return ContentKey(record.content_id, dek)


class RecordAuthor(Value):
    """Signer of records: the fields that all records of one session share."""

    server: bytes
    owner: str
    actor: str
    generation: int


def content_record(
    author: RecordAuthor,
    key: ContentKey,
    *,
    file_id: str,
    head: bytes | None,
    version: int,
    ciphertext_size: int,
    segments_root: bytes,
    metadata: bytes,
    readers: tuple[ReaderEntry, ...],
    seen: tuple[int, bytes],
    created: int,
    op: str = PUT,
    origin: tuple[str, int] | None = None,
    current: int | None = None,
) -> FileRecord:
    """Build the record that adds `version` to a file, on top of its record `head` (exact bytes;
    None for a new file).

    `metadata` is the output of `seal_metadata`, `seen` the newest proven (size, root) of the log,
    `created` unix seconds, `origin` the (file_id, version) that a restore copies, `current` the
    version that becomes current, by default this one. If the head has moved on, the record is built
    again with the same key.
    """
    rev, content, current = 1, b"", version if current is None else current
    if head is not None:
        before = FileRecord.parse(head)
        rev = before.rev + 1
        if current not in (0, version):  # an older version is encrypted again
            content = carried_content(before, head)
    return FileRecord(
        server=author.server,
        owner=author.owner,
        actor=author.actor,
        generation=author.generation,
        file_id=file_id,
        rev=rev,
        op=op,
        prev=b"" if head is None else record_hash(head),
        seen=seen,
        created=created,
        readers=readers,
        current=current,
        content=content,
        content_id=key.content_id,
        version=version,
        ciphertext_size=ciphertext_size,
        segments_root=segments_root,
        dek_commit=key.commitment,
        metadata_sha256=hashlib.sha256(metadata).digest(),
        from_=origin,
    )
