"""Base classes of messages, the registry of message types, and parts that several messages use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, ClassVar, TypeVar

import msgspec
from msgspec import structs

from protocol.codec import encoding
from protocol.codec.encoding import VIEW_FROM, Buffer
from protocol.codec.errors import LocalProtocolError, MessageError, UnknownMessage
from protocol.codec.fields import (
    AtMost,
    Bytes16,
    Bytes32,
    Count,
    FileId,
    OneOf,
    Struct,
    Text,
    UserName,
)
from protocol.codec.merkle import HASH_SIZE, MAX_PROOF, PIECE_SIZE
from protocol.log.auditlog import MAX_LINE
from protocol.log.checkpoint import MAX_CHECKPOINT
from protocol.records.record_signatures import MAX_PACKED
from protocol.records.records import (
    MAX_RECORD,
    MAX_WRAPPED_KEY,
    Generation,
    Version,
    WrapAlgorithm,
)

PIECE = PIECE_SIZE
"""Bytes of a segment, of a Data message, of the longest Read, and under a leaf of segments_root."""
MAX_SMALL = 256 * 1024
"""Longest ciphertext in bytes that is sent with its record."""
MAX_METADATA = 4096
MAX_WRAPS = 257
MAX_BUNDLE = 64 * 1024
LEAVES_PER_PAGE = 16 * 1024
MAX_REQUEST = 512 * 1024
"""Longest body of a request in bytes, beside its bulk."""

Metadata = Annotated[bytes, AtMost(MAX_METADATA)]
RecordBytes = Annotated[bytes, AtMost(MAX_RECORD)]
RecordSignature = Annotated[bytes, AtMost(MAX_PACKED)]
"""A packed signature of `protocol.records.record_signatures`."""
Proof = Annotated[tuple[Bytes32, ...], AtMost(MAX_PROOF)]
CheckpointNote = Annotated[bytes, AtMost(MAX_CHECKPOINT)]
Leaves = Annotated[bytes, AtMost(LEAVES_PER_PAGE * HASH_SIZE)]
"""Concatenated leaf hashes of a blob, 32 bytes each."""
UploadId = Bytes16
Handle = Bytes16


class Message(Struct):
    """Base of messages: ``[TYPE, request_id, fields…]``. `BULK` names a last field of raw bytes."""

    TYPE: ClassVar[int] = 0
    BULK: ClassVar[str | None] = None


class Request(Message):
    """Base of messages from a client. `REPLIES` may answer it besides `Error`."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = ()


class Reply(Message):
    """Base of messages from a server."""


_REGISTRY: dict[int, type[Message]] = {}
_AnyMessage = TypeVar("_AnyMessage", bound=Message)


def message(
    number: int, *, replies: tuple[type[Reply], ...] = (), bulk: str | None = None
) -> Callable[[type[_AnyMessage]], type[_AnyMessage]]:
    """Register a message class under its wire number and set its `REPLIES` and `BULK`."""

    def register(cls: type[_AnyMessage]) -> type[_AnyMessage]:
        if number in _REGISTRY:
            raise LocalProtocolError(f"two messages have the number {number}")
        cls.TYPE, cls.BULK = number, bulk
        if issubclass(cls, Request):
            cls.REPLIES = replies
        _REGISTRY[number] = cls
        return cls

    return register


def registered() -> dict[int, type[Message]]:
    """Return all imported message classes by wire number."""
    return dict(_REGISTRY)


def encode(request_id: int, item: Message) -> list[Buffer]:
    """Return the frame body of `item` in pieces; bulk bytes are a separate piece, uncopied."""
    elements = [item.TYPE, request_id, *structs.astuple(item)]
    if item.BULK is None:
        return encoding.pack_message(elements)
    return encoding.pack_message(elements[:-1], bulk=elements[-1])


def decode(body: memoryview) -> tuple[int, Message]:
    """Parse a frame body to (request id, message). A large bulk field is a view into `body`.

    A writable `body` of `VIEW_FROM` bytes or more is used up: its head is overwritten. Raises
    `EncodingError`, `MessageError`, or `UnknownMessage` with the request id to answer. Nothing
    behind the head of an unknown or too long message is read.
    """
    head = encoding.unpack(encoding.array_start(body, 2), _Head)
    cls = _REGISTRY.get(head.number)
    if cls is None:
        raise UnknownMessage(head.number, head.request_id)
    whole, header = _headers(cls)
    start = whole + encoding.pack(head)[1:]
    if body[: len(start)] != start:
        raise MessageError(f"{cls.__name__}: another number of fields, or not the shortest head")
    is_request = issubclass(cls, Request)
    if is_request and cls.BULK is None:
        _check_request_size(cls, len(body))
    # What follows the head becomes an array of its own, which is decoded into the class.
    if len(body) >= VIEW_FROM and not body.readonly:
        fields = body[len(start) - len(header) :]
        fields[: len(header)] = header
        message = encoding.unpack(fields.toreadonly(), cls)
    else:
        message = encoding.unpack(header + body[len(start) :], cls)
    if is_request and cls.BULK is not None:
        _check_request_size(cls, len(body) - len(getattr(message, cls.BULK)))
    return head.request_id, message


def _check_request_size(cls: type[Message], size: int) -> None:
    if size > MAX_REQUEST:
        raise MessageError(f"{cls.__name__} has more than {MAX_REQUEST} bytes beside its bulk")


@cache
def _headers(cls: type[Message]) -> tuple[bytes, bytes]:
    """Return the headers of two arrays: of a whole message, and of its fields."""
    count = len(cls.__struct_fields__)
    return encoding.array_header(count + 2), encoding.array_header(count)


class _Head(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The first two elements of any message."""

    number: int
    request_id: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class GenerationSignature(Struct):
    """A packed signature of a file record: its own generation's, or an endorsement by a later
    one."""

    generation: Generation
    signature: RecordSignature


class SignedRecord(Struct):
    """A file record's exact bytes with its signatures."""

    record: RecordBytes
    signatures: Annotated[tuple[GenerationSignature, ...], AtMost(64)]


class Wrap(Struct):
    """A DEK wrapped for one user's key; `key_id` is records.key_id(algorithm, public key)."""

    user: UserName
    key_id: Bytes32
    algorithm: WrapAlgorithm
    wrapped: Annotated[bytes, AtMost(MAX_WRAPPED_KEY)]


Wraps = Annotated[tuple[Wrap, ...], AtMost(MAX_WRAPS)]


MAX_RECEIPT_LEAVES = 512 * 1024
"""Most bytes of leaf data in a receipt."""


class FileView(Struct):
    """One version of a file: the part of its sidecar that the requesting user may see.

    `content` is the record that created the version, `head` the file's last record, or None if it
    is the same. `wraps` has only the user's own. `seq` is the log entry that last changed the
    sidecar. `at` is a log size: in the first `at` entries, `head` is the file's newest record.
    `metadata` is encrypted, and empty for a purged version.
    """

    seq: Count
    at: Count
    content: SignedRecord
    head: SignedRecord | None
    metadata: Metadata
    wraps: Wraps


class Receipt(Struct):
    """A log entry and what the session has not seen of the log up to it.

    `line` is the entry's exact line without newline, and `checkpoint` a C2SP signed note of a log
    that has it. `leaves` is the leaf data from entry `first` up to that checkpoint, as in
    `LogLeavesPage`, or empty if that is too much: the client asks for it.
    """

    line: Annotated[bytes, AtMost(MAX_LINE)]
    checkpoint: CheckpointNote
    first: Count
    leaves: Annotated[bytes, AtMost(MAX_RECEIPT_LEAVES)]


ERROR_CODES = (
    "bad-request",
    "unknown-request",
    "not-allowed",
    "refused",
    "token",
    "clock",
    "not-found",
    "denied",
    "conflict",
    "set-refused",
    "quota",
    "damaged",
    "changed",
    "stale-recipient",
    "share-refused",
    "stale-generation",
    "rotation-required",
    "upload-lost",
    "busy",
    "unavailable",
    "shutting-down",
)


MAX_REFUSING = 64
"""Most readers whom one error names."""


class DamagedVersion(Struct):
    """A version of which the server has lost bytes: its sidecar, ciphertext or leaf hashes."""

    owner: UserName
    file_id: FileId
    version: Version


@message(1)
class Error(Reply):
    """A refused or failed request; nothing changed.

    `code` is for programs, `text` for users. A `conflict` carries the file's current head if the
    user may see it, so that a put to an existing name takes one more round trip only. `damaged`
    names the version that the code `damaged` is about. `readers` are those that the code
    `share-refused` is about.
    """

    code: Annotated[str, OneOf(ERROR_CODES)]
    text: Text
    head: FileView | None = None
    damaged: DamagedVersion | None = None
    readers: Annotated[tuple[UserName, ...], AtMost(MAX_REFUSING)] = ()


@message(2)
class Done(Reply):
    """The change is made and durable; the receipt proves it."""

    receipt: Receipt
