"""Listing files, and changing them without new ciphertext."""

from __future__ import annotations

from typing import Annotated

from protocol.codec.fields import AtMost, Between, Count, FileId, UserName
from protocol.records.records import Version
from protocol.wire.messages.base import (
    DamagedVersion,
    Done,
    FileView,
    Reply,
    Request,
    SignedRecord,
    message,
)

MAX_PAGE = 256
"""Most entries in a page of a listing; the server sends fewer if they would exceed a frame."""


@message(65)
class Stated(Reply):
    """The requested version of a file."""

    view: FileView


@message(64, replies=(Stated,))
class Stat(Request):
    """Get the sidecar of `version` (0: the newest, deleted or not) of a file."""

    owner: UserName
    file_id: FileId
    version: Annotated[int, Between(0, 2**31)]


@message(67)
class Listing(Reply):
    """Newest version of each file by file_id; `next` is the next page's `after`, "" at the end.

    `damaged` are files of this page whose newest sidecar is damaged: nothing else is known of them.
    """

    views: Annotated[tuple[FileView, ...], AtMost(MAX_PAGE)]
    next: Annotated[str, AtMost(32)]
    damaged: Annotated[tuple[DamagedVersion, ...], AtMost(MAX_PAGE)] = ()


@message(66, replies=(Listing,))
class List(Request):
    """List the user's files after file_id `after` ("": from the start).

    Only files changed at or after log entry `since_seq` are listed, and those whose newest version
    is damaged or lost. Deleted files are included, so that a cache can be kept up to date. With
    `wanted`, only those of these files that there are.
    """

    after: Annotated[str, AtMost(32)]
    limit: Annotated[int, Between(1, MAX_PAGE)]
    since_seq: Count
    wanted: Annotated[tuple[FileId, ...], AtMost(MAX_PAGE)] = ()


@message(69)
class HistoryPage(Reply):
    """A file's records in order of `rev`; `next` is the next page's `first`, 0 at the end."""

    records: Annotated[tuple[SignedRecord, ...], AtMost(MAX_PAGE)]
    next: Count


@message(68, replies=(HistoryPage,))
class History(Request):
    """Get all records of a file from revision `first` on."""

    owner: UserName
    file_id: FileId
    first: Count


@message(72, replies=(Done,))
class GiveUp(Request):
    """Mark a damaged version of one of the user's files as lost, without its content.

    The server builds the sidecar again from the records in its log, without metadata and wraps, so
    that records can follow it. Refused with `conflict` if the version is not damaged.
    """

    file_id: FileId
    version: Version
