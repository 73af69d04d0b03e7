"""The JSON files of the store: their content and their one canonical form.

Each file is compact, has its keys in a fixed order and states the `seq` of the log entry that last
wrote it; that entry's `detail.paths` has the digest of its bytes. A file whose parsed content does
not encode to exactly its bytes is damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final, TypeVar

from protocol.codec import json_text
from protocol.codec.errors import RemoteProtocolError
from protocol.codec.json_text import JsonDecoder, JsonObject
from protocol.codec.names import check_user_name
from protocol.codec.values import Value, field
from protocol.log.tags import TAG_KEY_SIZE
from protocol.records.records import FileRecord, Statement
from protocol.wire.messages import FileView
from protocol.wire.messages.base import GenerationSignature, SignedRecord, Wrap
from sfsd.errors import DamagedError

INLINE_LEAVES: Final = 64
"""Most leaf hashes kept in the sidecar; more are in a file of their own, 32 bytes each."""
_PARSED: Final = 16 * 1024
"""Records kept parsed, about 2 KB each."""
_LONG: Final = 2048
"""Bytes from which a record counts as one with many readers."""
_LONG_PARSED: Final = 256
"""Records with many readers kept parsed, up to 100 KB each."""
_Parsed = TypeVar("_Parsed")
_Stored = TypeVar("_Stored", bound=JsonObject)


class Sidecar(Value):
    """The file beside a ciphertext. `content` is the record that made this version. `head` is the
    file's last record if that is another one (in the newest version's sidecar only). A purged
    version has `metadata` None and no wraps, and so has a `lost` one, whose bytes are gone without
    a record that removed them. `leaves` are the ciphertext's concatenated leaf hashes, None if they
    are in a file of their own."""

    seq: int
    content: SignedRecord
    head: SignedRecord | None
    metadata: bytes | None
    wraps: tuple[Wrap, ...]
    leaves: bytes | None
    lost: bool = False

    @property
    def content_record(self) -> FileRecord:
        """The parsed form of `content`."""
        return cached_record(self.content.record)

    @property
    def head_record(self) -> FileRecord:
        """The parsed form of `last`."""
        return cached_record(self.last.record)

    @property
    def last(self) -> SignedRecord:
        """The last record in this sidecar: in the newest version's, the file's head."""
        return self.content if self.head is None else self.head

    def encode(self, seq: int) -> bytes:
        """Return the file's bytes, written by entry `seq`."""
        wraps = {
            one.key_id.hex(): _StoredWrap(user=one.user, alg=one.algorithm, wrap=one.wrapped)
            for one in self.wraps
        }
        return json_text.encode(
            _StoredSidecar(
                seq=seq,
                record=self.content.record,
                signatures=_stored_signatures(self.content),
                head=None if self.head is None else _stored_record(self.head),
                metadata=self.metadata,
                wraps=wraps,
                segments=self.leaves,
                lost=self.lost,
            )
        )

    def view(self, user: str, last: SignedRecord, at: int) -> FileView:
        """Return the view of `user`: only their own wrap, and the file's `last` record, which is
        the newest in the first `at` entries of the log."""
        own = tuple(wrap for wrap in self.wraps if wrap.user == user)
        head = None if last.record == self.content.record else last
        return FileView(self.seq, at, self.content, head, self.metadata or b"", own)


def cached_record(body: bytes) -> FileRecord:
    """Parse a record, or return the cached one for the same bytes. A rotation, which reads every
    record, needs few of them parsed. Raises `EncodingError` or `MessageError`."""
    return _record_of(body) if len(body) < _LONG else _long_record_of(body)


_record_of = lru_cache(_PARSED)(FileRecord.parse)
_long_record_of = lru_cache(_LONG_PARSED)(FileRecord.parse)


def parse_sidecar(path: str, raw: bytes) -> Sidecar:
    """Parse a sidecar strictly. Raises `DamagedError`."""
    return _parse(path, raw, _SIDECARS, _whole_sidecar, lambda found: found.encode(found.seq))


def parse_sidecar_lenient(path: str, raw: bytes) -> Sidecar:
    """Parse valid sidecar bytes as `parse_sidecar` does, in a third of the time. Raises
    `DamagedError`. Invalid bytes may be accepted: the caller compares their hash with what was
    written, and uses the sidecar only if it is equal."""
    return _read(path, raw, _SIDECARS, _sidecar)


def _whole_sidecar(stored: _StoredSidecar) -> Sidecar:
    """Build a sidecar; malformed records in it raise too, and values that no reply may have."""
    found = _sidecar(stored)
    found.view("", found.last, found.seq)
    for signed in (found.content, found.last):
        FileRecord.parse(signed.record)
    return found


def _sidecar(stored: _StoredSidecar) -> Sidecar:
    head = stored.head
    return Sidecar(
        stored.seq,
        _signed(stored.record, stored.signatures),
        None if head is None else _signed(head.record, head.signatures),
        stored.metadata,
        tuple(
            [
                Wrap(one.user, bytes.fromhex(key_id), one.alg, one.wrap)
                for key_id, one in stored.wraps.items()
            ]
        ),
        stored.segments,
        stored.lost,
    )


class _StoredRecord(JsonObject, kw_only=True):
    record: bytes
    signatures: dict[int, bytes]


class _StoredWrap(JsonObject, kw_only=True):
    user: str
    alg: str
    wrap: bytes


class _StoredSidecar(JsonObject, kw_only=True):
    """The members of a sidecar, in order; `wraps` are by key id in hex."""

    seq: int
    record: bytes
    signatures: dict[int, bytes]
    head: _StoredRecord | None
    metadata: bytes | None
    wraps: dict[str, _StoredWrap]
    segments: bytes | None
    lost: bool = False


_SIDECARS: Final = JsonDecoder(_StoredSidecar)


def _stored_record(signed: SignedRecord) -> _StoredRecord:
    return _StoredRecord(record=signed.record, signatures=_stored_signatures(signed))


def _stored_signatures(signed: SignedRecord) -> dict[int, bytes]:
    return {one.generation: one.signature for one in signed.signatures}


def _signed(record: bytes, signatures: Mapping[int, bytes]) -> SignedRecord:
    return SignedRecord(record, tuple([GenerationSignature(*one) for one in signatures.items()]))


class StoredAccount(Value):
    """The operator's settings for a user, and the state of the invitation.

    `token_sha256` is 32 bytes, None if never invited; `token_expires` is unix seconds; `used_by` is
    the hash of the statement that used it. `quota` is bytes, 0 for none. `forced` is why only reads
    and rotation are allowed until the user has rotated, or None. `fell_due` is the last generation
    whose expiry is logged, 0 for none. `tag_key` is the secret of the account's tags in the log,
    32 bytes, None before the enrolment. `blocked` are the users whose files the user is not shown,
    by name. `revoked` is the last statement whose devices are refused, 0 for none. `removal` is
    when the files of the account are removed, in unix seconds, 0 for never; `removed` whether they
    were.
    """

    seq: int
    token_sha256: bytes | None
    token_expires: int
    used_by: bytes | None
    disabled: bool
    quota: int
    forced: str | None
    fell_due: int = 0
    tag_key: bytes | None = field(default=None, repr=False)
    blocked: tuple[str, ...] = ()
    revoked: int = 0
    removal: int = 0
    removed: bool = False

    def encode(self, seq: int) -> bytes:
        """Return the file's bytes, written by entry `seq`."""
        return json_text.encode(
            _Account(
                seq=seq,
                token=_optional_hex(self.token_sha256),
                expires=self.token_expires,
                used_by=_optional_hex(self.used_by),
                disabled=self.disabled,
                quota=self.quota,
                forced=self.forced,
                tag_key=_optional_hex(self.tag_key),
                fell_due=self.fell_due,
                blocked=self.blocked,
                revoked=self.revoked,
                removal=self.removal,
                removed=self.removed,
            )
        )


def parse_account(path: str, raw: bytes) -> StoredAccount:
    """Parse an account. Raises `DamagedError`."""
    return _parse(path, raw, _ACCOUNTS, _account, lambda found: found.encode(found.seq))


class _Account(JsonObject, kw_only=True):
    """The members of an account, in order. Bytes are in hex."""

    seq: int
    token: str | None
    expires: int
    used_by: str | None
    disabled: bool
    quota: int
    forced: str | None
    tag_key: str | None
    fell_due: int = 0
    blocked: tuple[str, ...] = ()
    revoked: int = 0
    removal: int = 0
    removed: bool = False


_ACCOUNTS: Final = JsonDecoder(_Account)


def _account(stored: _Account) -> StoredAccount:
    if (
        min(stored.seq, stored.expires, stored.quota, stored.fell_due, stored.removal) < 0
        or stored.revoked < 0
    ):
        raise ValueError("a negative number")
    tag_key = _optional_bytes(stored.tag_key)
    if (tag_key is None) is not (stored.used_by is None):
        raise ValueError("an account has a tag key from its enrolment on")
    if tag_key is not None and len(tag_key) != TAG_KEY_SIZE:
        raise ValueError("not a tag key")
    for name in stored.blocked:
        check_user_name(name)
    if list(stored.blocked) != sorted(set(stored.blocked)):
        raise ValueError("the blocked users are not sorted and unique")
    return StoredAccount(
        seq=stored.seq,
        token_sha256=_optional_bytes(stored.token),
        token_expires=stored.expires,
        used_by=_optional_bytes(stored.used_by),
        disabled=stored.disabled,
        quota=stored.quota,
        forced=stored.forced,
        fell_due=stored.fell_due,
        tag_key=tag_key,
        blocked=stored.blocked,
        revoked=stored.revoked,
        removal=stored.removal,
        removed=stored.removed,
    )


def _optional_hex(data: bytes | None) -> str | None:
    return None if data is None else data.hex()


def _optional_bytes(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


class StoredStatement(Value):
    """One link of an identity chain: exact bytes, signatures (own key first), its log entry, and
    the signature by the recovery key that it introduces, if any."""

    body: bytes
    signatures: tuple[bytes, ...]
    seq: int
    statement: Statement
    possession: bytes = b""


def encode_statements(statements: Iterable[StoredStatement]) -> bytes:
    """Return the bytes of statements.json; the last statement's seq is the entry that writes it."""
    links = [
        _Link(
            statement=item.body,
            signatures=item.signatures,
            possession=item.possession,
            seq=item.seq,
        )
        for item in statements
    ]
    return json_text.encode(_Chain(statements=tuple(links)))


def parse_statements(path: str, raw: bytes) -> tuple[StoredStatement, ...]:
    """Parse a chain of at least one statement. Raises `DamagedError`."""
    return _parse(path, raw, _CHAINS, _statements, encode_statements)


class _Link(JsonObject, kw_only=True):
    statement: bytes
    signatures: tuple[bytes, ...]
    possession: bytes
    seq: int


class _Chain(JsonObject, kw_only=True):
    statements: tuple[_Link, ...]


_CHAINS: Final = JsonDecoder(_Chain)


def _statements(stored: _Chain) -> tuple[StoredStatement, ...]:
    found = tuple(
        StoredStatement(
            item.statement,
            item.signatures,
            item.seq,
            Statement.parse(item.statement),
            item.possession,
        )
        for item in stored.statements
    )
    if [item.statement.n for item in found] != list(range(1, len(found) + 1)) or not found:
        raise ValueError("the statements are not numbered from 1")
    if min(item.seq for item in found) < 0:
        raise ValueError("a negative number")
    return found


def _parse(
    path: str,
    raw: bytes,
    decoder: JsonDecoder[_Stored],
    build: Callable[[_Stored], _Parsed],
    encode: Callable[[_Parsed], bytes],
) -> _Parsed:
    found = _read(path, raw, decoder, build)
    # Each content has one form: white space, key order and spellings of base64 hide nothing.
    if encode(found) != raw:
        raise DamagedError("the file is not in its canonical form", path=path)
    return found


def _read(
    path: str, raw: bytes, decoder: JsonDecoder[_Stored], build: Callable[[_Stored], _Parsed]
) -> _Parsed:
    try:
        return build(decoder.decode(raw))
    except (ValueError, RecursionError, RemoteProtocolError) as exc:
        raise DamagedError("the file cannot be parsed", path=path) from exc
