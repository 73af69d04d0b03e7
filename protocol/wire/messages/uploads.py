"""Storing a file: small ones in one message, large ones in pieces of 1 MiB.

Data messages are pipelined. Each carries exactly one whole piece (1,048,576 bytes at a multiple of
that offset); only the last may be shorter. The server hashes and writes pieces as they come.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from protocol.codec.encoding import Buffer
from protocol.codec.fields import AtMost, Between, Count, FileId, Signature, UserName
from protocol.wire.messages.base import (
    MAX_SMALL,
    PIECE,
    Done,
    Metadata,
    RecordBytes,
    Reply,
    Request,
    UploadId,
    Wraps,
    message,
)


@message(32)
class PutSmall(Request):
    """A whole new version: record (op put), signature, metadata, wraps, ≤ 256 KiB ciphertext."""

    BULK: ClassVar[str | None] = "ciphertext"
    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Done,)

    record: RecordBytes
    signature: Signature
    metadata: Metadata
    wraps: Wraps
    ciphertext: Annotated[Buffer, AtMost(MAX_SMALL)]


@message(34)
class UploadState(Reply):
    """Where an upload stands: all bytes below `offset` are kept across connections."""

    upload: UploadId
    offset: Count


@message(33)
class PutOpen(Request):
    """Begin an upload to a file; `size` is the ciphertext's (0: not known) and counts as quota.

    With `version` it is to encrypt that version anew: `size` is what that has, nothing more counts
    as quota, and nothing but such a record can be committed with it. Of three the one that had no
    bytes for longest is dropped.
    """

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (UploadState,)

    owner: UserName
    file_id: FileId
    size: Count
    version: Annotated[int, Between(0, 2**31)] = 0


@message(35)
class Data(Request):
    """One piece of ciphertext, at `offset`, a multiple of 1 MiB and the next one expected."""

    BULK: ClassVar[str | None] = "data"
    REPLIES: ClassVar[tuple[type[Reply], ...]] = (UploadState,)

    upload: UploadId
    offset: Count
    data: Annotated[Buffer, AtMost(PIECE)]


@message(36)
class PutResume(Request):
    """After a dropped connection: how far did it come? `upload-lost` where it is gone."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (UploadState,)

    upload: UploadId


@message(37)
class PutCommit(Request):
    """Make the uploaded ciphertext a version. After `conflict`, `stale-recipient` or
    `stale-generation` the ciphertext is kept and this may be sent again with another record."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Done,)

    upload: UploadId
    record: RecordBytes
    signature: Signature
    metadata: Metadata
    wraps: Wraps


@message(38)
class Aborted(Reply):
    """The upload is gone."""


@message(39)
class PutAbort(Request):
    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Aborted,)

    upload: UploadId
