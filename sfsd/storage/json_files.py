"""The JSON files of the store: their content and their one canonical form.

Each file is compact, has its keys in a fixed order and states the `seq` of the log entry that last
wrote it; that entry's `detail.paths` has the digest of its bytes. A file whose parsed content does
not encode to exactly its bytes is damaged.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeVar

from protocol.codec import json_text
from protocol.codec.base64text import to_text
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

_OTHER_FORM: Final = "the file is not in its canonical form"
_Parsed = TypeVar("_Parsed")
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False)


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
    found = parse_sidecar_lenient(path, raw)
    try:
        found.view("", found.last, found.seq)  # refuses values that no reply may have
        for signed in (found.content, found.last):
            FileRecord.parse(signed.record)
    except RemoteProtocolError as exc:
        raise DamagedError("the file cannot be parsed", path=path) from exc
    if found.encode(found.seq) != raw:
        raise DamagedError(_OTHER_FORM, path=path)
    return found


def parse_sidecar_lenient(path: str, raw: bytes) -> Sidecar:
    """Parse valid sidecar bytes as `parse_sidecar` does, in half of the time. Raises
    `DamagedError`. Invalid bytes may be accepted: the caller compares their hash with what was
    written, and uses the sidecar only if it is equal."""
    try:
        found = _SIDECARS.decode(raw)
        return Sidecar(
            found.seq,
            _signed(found.record, found.signatures),
            None if found.head is None else _signed(found.head.record, found.head.signatures),
            found.metadata,
            tuple(
                [
                    Wrap(one.user, bytes.fromhex(key_id), one.alg, one.wrap)
                    for key_id, one in found.wraps.items()
                ]
            ),
            found.segments,
            found.lost,
        )
    except (ValueError, RecursionError, RemoteProtocolError) as exc:
        raise DamagedError("the file cannot be parsed", path=path) from exc


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
    by name.
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

    def encode(self, seq: int) -> bytes:
        """Return the file's bytes, written by entry `seq`."""
        # Omitted if empty: most accounts have neither.
        fell_due = {"fell_due": self.fell_due} if self.fell_due else {}
        blocked = {"blocked": list(self.blocked)} if self.blocked else {}
        return _dump(
            {
                "seq": seq,
                "token": None if self.token_sha256 is None else self.token_sha256.hex(),
                "expires": self.token_expires,
                "used_by": None if self.used_by is None else self.used_by.hex(),
                "disabled": self.disabled,
                "quota": self.quota,
                "forced": self.forced,
                "tag_key": None if self.tag_key is None else self.tag_key.hex(),
                **fell_due,
                **blocked,
            }
        )


def parse_account(path: str, raw: bytes) -> StoredAccount:
    """Parse an account. Raises `DamagedError`."""
    return _parse(path, raw, _account, lambda found: found.encode(found.seq))


def _account(value: dict[str, Any]) -> StoredAccount:
    if type(value["disabled"]) is not bool:
        raise ValueError("disabled is not a boolean")
    if not isinstance(value["forced"], str | None):
        raise ValueError("forced is not a text")
    tag_key = None if value["tag_key"] is None else bytes.fromhex(value["tag_key"])
    if (tag_key is None) is not (value["used_by"] is None):
        raise ValueError("an account has a tag key from its enrolment on")
    if tag_key is not None and len(tag_key) != TAG_KEY_SIZE:
        raise ValueError("not a tag key")
    blocked = tuple(value.get("blocked", ()))
    for name in blocked:
        check_user_name(name)
    if list(blocked) != sorted(set(blocked)):
        raise ValueError("the blocked users are not sorted and unique")
    return StoredAccount(
        seq=_number(value["seq"]),
        token_sha256=None if value["token"] is None else bytes.fromhex(value["token"]),
        token_expires=_number(value["expires"]),
        used_by=None if value["used_by"] is None else bytes.fromhex(value["used_by"]),
        disabled=value["disabled"],
        quota=_number(value["quota"]),
        forced=value["forced"],
        fell_due=_number(value.get("fell_due", 0)),
        tag_key=tag_key,
        blocked=blocked,
    )


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
    return _dump(
        {
            "statements": [
                {
                    "statement": to_text(item.body),
                    "signatures": [to_text(signature) for signature in item.signatures],
                    "possession": to_text(item.possession),
                    "seq": item.seq,
                }
                for item in statements
            ]
        }
    )


def parse_statements(path: str, raw: bytes) -> tuple[StoredStatement, ...]:
    """Parse a chain of at least one statement. Raises `DamagedError`."""
    return _parse(path, raw, _statements, encode_statements)


def _statements(value: dict[str, Any]) -> tuple[StoredStatement, ...]:
    found = tuple(
        StoredStatement(
            body := _bytes(item["statement"]),
            tuple(_bytes(signature) for signature in item["signatures"]),
            _number(item["seq"]),
            Statement.parse(body),
            _bytes(item["possession"]),
        )
        for item in value["statements"]
    )
    if [item.statement.n for item in found] != list(range(1, len(found) + 1)) or not found:
        raise ValueError("the statements are not numbered from 1")
    return found


def _parse(
    path: str,
    raw: bytes,
    build: Callable[[dict[str, Any]], _Parsed],
    encode: Callable[[_Parsed], bytes],
) -> _Parsed:
    found = _read(path, raw, build)
    # Each content has one form: white space, key order and spellings of base64 hide nothing.
    if encode(found) != raw:
        raise DamagedError(_OTHER_FORM, path=path)
    return found


def _read(path: str, raw: bytes, build: Callable[[dict[str, Any]], _Parsed]) -> _Parsed:
    try:
        return build(json.loads(raw.decode("ascii")))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        RemoteProtocolError,
    ) as exc:
        raise DamagedError("the file cannot be parsed", path=path) from exc


def _dump(value: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(value).encode()


def _bytes(text: str) -> bytes:
    """Decode base64 as `base64text.from_text`, without checking for the canonical spelling. Callers
    check it for the whole file at once, or by its hash."""
    return binascii.a2b_base64(text, strict_mode=True)


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a non-negative integer")
    return value
