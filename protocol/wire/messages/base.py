"""What every message is, the one registry of types, and the parts that several messages carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, TypeVar

from protocol.codec import encoding
from protocol.codec.encoding import Buffer
from protocol.codec.errors import LocalProtocolError, MessageError, UnknownMessage
from protocol.codec.fields import (
    AtMost,
    Bytes16,
    Bytes32,
    Count,
    OneOf,
    Signature,
    Struct,
    Text,
    UserName,
    field_count,
)
from protocol.codec.merkle import HASH_SIZE, MAX_PROOF, PIECE_SIZE
from protocol.log.auditlog import MAX_LINE
from protocol.log.checkpoint import MAX_CHECKPOINT
from protocol.records.records import MAX_RECORD, MAX_WRAPPED_KEY, Generation, WrapAlgorithm

PIECE = PIECE_SIZE
"""Bytes of a segment, of a Data message, of the longest Read, and of a leaf of segments_root."""
MAX_SMALL = 256 * 1024
"""Bytes of the longest ciphertext that a PutSmall carries."""
MAX_METADATA = 4096
MAX_WRAPS = 257
MAX_BUNDLE = 64 * 1024
LEAVES_PER_PAGE = 16 * 1024

Metadata = Annotated[bytes, AtMost(MAX_METADATA)]
RecordBytes = Annotated[bytes, AtMost(MAX_RECORD)]
Proof = Annotated[tuple[Bytes32, ...], AtMost(MAX_PROOF)]
CheckpointNote = Annotated[bytes, AtMost(MAX_CHECKPOINT)]
Leaves = Annotated[bytes, AtMost(LEAVES_PER_PAGE * HASH_SIZE)]
"""Leaf hashes of a blob, 32 bytes each, concatenated."""
UploadId = Bytes16
Handle = Bytes16


class Message(Struct):
    """A frame body: ``[type, request_id, fields…]``. `BULK` names a last field of raw bytes."""

    TYPE: ClassVar[int] = 0
    BULK: ClassVar[str | None] = None


class Request(Message):
    """What a client sends. `REPLIES` are the types that may answer it beside `Error`."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = ()


class Reply(Message):
    """What a server sends."""


_REGISTRY: dict[int, type[Message]] = {}
_AnyMessage = TypeVar("_AnyMessage", bound=Message)


def message(number: int) -> Callable[[type[_AnyMessage]], type[_AnyMessage]]:
    """Enter a message class in the registry under its wire number."""

    def register(cls: type[_AnyMessage]) -> type[_AnyMessage]:
        if number in _REGISTRY:
            raise LocalProtocolError(f"two messages have the number {number}")
        cls.TYPE = number
        _REGISTRY[number] = cls
        return cls

    return register


def registered() -> dict[int, type[Message]]:
    """All message classes that are imported, by wire number."""
    return dict(_REGISTRY)


def encode(request_id: int, item: Message) -> list[Buffer]:
    """The frame body of `item`, in pieces; bulk bytes are a piece of their own, uncopied."""
    elements = [item.TYPE, request_id, *item.to_array()]
    if item.BULK is None:
        return encoding.pack_message(elements)
    return encoding.pack_message(elements[:-1], bulk=elements[-1])


def decode(body: memoryview) -> tuple[int, Message]:
    """(request id, message) of a frame body. A large bulk field is a view into `body`.

    Raises `EncodingError`, `MessageError`, or `UnknownMessage` with the request id to answer.
    """
    elements = encoding.unpack_message(body)
    if len(elements) < 2:
        raise MessageError("a message without type and request id")
    number, request_id = elements[:2]
    if type(number) is not int or type(request_id) is not int or not 0 <= request_id < 2**32:
        raise MessageError("a message whose type or request id is not a number")
    cls = _REGISTRY.get(number)
    if cls is None:
        raise UnknownMessage(number, request_id)
    fields = elements[2:]
    if cls.BULK is not None:
        # Unknown fields of a later version stand ahead of the bulk, which is always last.
        fields = _bulk_behind_known(cls, fields)
    elif fields and isinstance(fields[-1], memoryview):
        fields[-1] = bytes(fields[-1])  # only bulk outlives its frame as a view
    return request_id, cls.from_array(fields)


def _bulk_behind_known(cls: type[Message], fields: list[object]) -> list[object]:
    known = field_count(cls)
    if len(fields) < known:
        raise MessageError(f"{cls.__name__}: {len(fields)} elements of {known}")
    return [*fields[: known - 1], fields[-1]]


class GenerationSignature(Struct):
    """A signature under a file record: its own for its generation, an endorsement above."""

    generation: Generation
    signature: Signature


class SignedRecord(Struct):
    """A file record's exact bytes with the signatures that it has."""

    record: RecordBytes
    signatures: Annotated[tuple[GenerationSignature, ...], AtMost(64)]


class Wrap(Struct):
    """A DEK wrapped to one user's key; `key_id` = records.key_id(algorithm, public key)."""

    user: UserName
    key_id: Bytes32
    algorithm: WrapAlgorithm
    wrapped: Annotated[bytes, AtMost(MAX_WRAPPED_KEY)]


Wraps = Annotated[tuple[Wrap, ...], AtMost(MAX_WRAPS)]


class FileView(Struct):
    """One version of a file as the server answers it: its sidecar, as far as the asker may see it.

    `content` is the record that made the version, `head` the file's last record where that is
    another, `wraps` the asker's own only, `seq` the log entry that last changed the sidecar.
    `metadata` is the encrypted metadata, empty for a purged version.
    """

    seq: Count
    content: SignedRecord
    head: SignedRecord | None
    metadata: Metadata
    wraps: Wraps


class Receipt(Struct):
    """Proof that a change stands in the log.

    `line` is the entry's exact line without its newline, `inclusion` proves it in `checkpoint` (a
    C2SP signed note), `consistency` leads there from the checkpoint that opened the session.
    """

    line: Annotated[bytes, AtMost(MAX_LINE)]
    inclusion: Proof
    checkpoint: CheckpointNote
    consistency: Proof


ERROR_CODES = (
    "bad-request",
    "unknown-request",
    "not-allowed",
    "refused",
    "token",
    "not-found",
    "denied",
    "conflict",
    "quota",
    "damaged",
    "changed",
    "stale-recipient",
    "stale-generation",
    "rotation-required",
    "upload-lost",
    "busy",
    "unavailable",
    "shutting-down",
)


@message(1)
class Error(Reply):
    """A request that was not done; nothing changed.

    `code` is for programs, `text` for people. A `conflict` carries the file's present head, where
    the asker may see it, so that a put to a known name is one round trip.
    """

    code: Annotated[str, OneOf(ERROR_CODES)]
    text: Text
    head: FileView | None = None


@message(2)
class Done(Reply):
    """A change was made and is durable; the receipt proves it."""

    receipt: Receipt
