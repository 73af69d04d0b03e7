"""Uploads of large contents in pieces of 1 MiB, before the change that stores them.

Data messages are pipelined. Each holds exactly one piece (1,048,576 bytes at a multiple of that
offset); only the last may be shorter. The server hashes and writes pieces as they arrive.
"""

from __future__ import annotations

from typing import Annotated, Final

from protocol.codec.encoding import Buffer
from protocol.codec.fields import AtMost, Between, Count, FileId, UserName
from protocol.wire.messages.base import (
    PIECE,
    Reply,
    Request,
    UploadId,
    message,
)

ALL_UPLOADS: Final = bytes(16)
"""Upload id in PutAbort for all uploads that this session opened or resumed. A client that is
interrupted does not know the upload whose PutOpen has no reply yet."""


@message(34)
class UploadState(Reply):
    """Progress of an upload: all bytes below `offset` are kept, also if the connection drops."""

    upload: UploadId
    offset: Count


@message(33, replies=(UploadState,))
class PutOpen(Request):
    """Begin an upload to a file; `size` is the ciphertext's (0: unknown) and counts as quota.

    If `version` is given, the upload re-encrypts it: `size` is that version's size, no quota is
    reserved, and only a record of op reencrypt can commit it. A third upload of this kind drops the
    one that received no bytes for longest.
    """

    owner: UserName
    file_id: FileId
    size: Count
    version: Annotated[int, Between(0, 2**31)] = 0


@message(35, bulk="data", replies=(UploadState,))
class Data(Request):
    """Send one piece of ciphertext at `offset`, the next multiple of 1 MiB."""

    upload: UploadId
    offset: Count
    data: Annotated[Buffer, AtMost(PIECE)]


@message(36, replies=(UploadState,))
class PutResume(Request):
    """Get an upload's progress after a dropped connection; `upload-lost` if it no longer exists."""

    upload: UploadId


@message(38)
class Aborted(Reply):
    """The upload is dropped."""


@message(39, replies=(Aborted,))
class PutAbort(Request):
    """Drop an upload; with `ALL_UPLOADS`, every upload of this session that is not being
    committed."""

    upload: UploadId
