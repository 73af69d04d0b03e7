"""Other people: their identity chains, who may read a file, what is shared with the asker."""

from __future__ import annotations

from typing import Annotated, ClassVar

from protocol.codec.fields import AtMost, Between, Count, FileId, Signature, Struct, UserName
from protocol.log.auditlog import MAX_LINE
from protocol.records.records import Version
from protocol.wire.messages.base import (
    CheckpointNote,
    Done,
    FileView,
    Proof,
    RecordBytes,
    Reply,
    Request,
    Wrap,
    message,
)

MAX_SHARED_PAGE = 256
"""Entries in one page of an inbox."""
MAX_ACCESS_WRAPS = 256
"""Wraps that one change of a file's readers brings."""


class SignedStatement(Struct):
    """A statement's exact bytes, its signatures (own key first), and the proof of its log entry."""

    statement: RecordBytes
    signatures: Annotated[tuple[Signature, ...], AtMost(2)]
    index: Count
    line: Annotated[bytes, AtMost(MAX_LINE)]
    inclusion: Proof


@message(81)
class Identity(Reply):
    """A user's statements in order from `first` on, each proven in `checkpoint`."""

    statements: Annotated[tuple[SignedStatement, ...], AtMost(8)]
    checkpoint: CheckpointNote
    consistency: Proof
    next: Count


@message(80)
class Lookup(Request):
    """The identity chain of `user` from statement number `first` (≥ 1) on."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Identity,)

    user: UserName
    first: Count


class VersionWrap(Struct):
    """The DEK of one version, wrapped to a reader."""

    version: Version
    wrap: Wrap


@message(82)
class SetReaders(Request):
    """Who may read one of the asker's files from now on: a record of op access, and wraps of
    versions for its readers, each to a reader's current key.

    In the same change go the wraps of all who are no readers any more.
    """

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Done,)

    record: RecordBytes
    signature: Signature
    wraps: Annotated[tuple[VersionWrap, ...], AtMost(MAX_ACCESS_WRAPS)]


class SharedFile(Struct):
    """A file that `owner` lets the asker read; `view` of its current version, None where nothing
    of it has changed since what was asked for."""

    owner: UserName
    file_id: FileId
    view: FileView | None


@message(85)
class InboxPage(Reply):
    """By owner and file_id; `next` is the next page's `after`, "" at the end. A page may be short,
    with more to come."""

    files: Annotated[tuple[SharedFile, ...], AtMost(MAX_SHARED_PAGE)]
    next: Annotated[str, AtMost(80)]


@message(84)
class Inbox(Request):
    """What others share with the asker at present, after `after` ("": from the start), with views
    of those that changed at or after log entry `since_seq`."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (InboxPage,)

    after: Annotated[str, AtMost(80)]
    limit: Annotated[int, Between(1, MAX_SHARED_PAGE)]
    since_seq: Count
