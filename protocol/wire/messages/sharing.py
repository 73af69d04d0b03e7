"""Other users: their identity chains, the readers of a file, and files shared with the user."""

from __future__ import annotations

from typing import Annotated

from protocol.codec.fields import (
    AtMost,
    Between,
    Count,
    FileId,
    Possession,
    Signature,
    Struct,
    UserName,
)
from protocol.log.auditlog import MAX_LINE
from protocol.wire.messages.base import (
    DamagedVersion,
    Done,
    FileView,
    RecordBytes,
    Reply,
    Request,
    message,
)

MAX_SHARED_PAGE = 256
"""Most entries in a page of an inbox."""
MAX_BLOCKED = 256
"""Most owners that a user can block."""


class SignedStatement(Struct):
    """A statement's exact bytes, its signatures (own key first), and its log entry.

    `possession` is the signature by the recovery key that the statement introduces, if any.
    """

    statement: RecordBytes
    signatures: Annotated[tuple[Signature, ...], AtMost(2)]
    index: Count
    line: Annotated[bytes, AtMost(MAX_LINE)]
    possession: Possession = b""


@message(81)
class Identity(Reply):
    """A user's statements from `first` on; `next` is 0 at the end. `removed` tells whether the
    operator has removed the account with its files."""

    statements: Annotated[tuple[SignedStatement, ...], AtMost(8)]
    next: Count
    removed: bool = False


@message(80, replies=(Identity,))
class Lookup(Request):
    """Get the identity chain of `user` from statement number `first` (≥ 1) on."""

    user: UserName
    first: Count


class SharedFile(Struct):
    """A file that `owner` shares with the user.

    `view` is its current version, None if it has not changed since the requested entry.
    """

    owner: UserName
    file_id: FileId
    view: FileView | None


@message(85)
class InboxPage(Reply):
    """Shared files by owner and file_id; `next` is the next page's `after`, "" at the end.

    A short page need not be the last one. `damaged` are files of this page whose newest sidecar is
    damaged: nothing else is known of them, not even whether they are still shared.
    """

    files: Annotated[tuple[SharedFile, ...], AtMost(MAX_SHARED_PAGE)]
    next: Annotated[str, AtMost(80)]
    damaged: Annotated[tuple[DamagedVersion, ...], AtMost(MAX_SHARED_PAGE)] = ()


@message(84, replies=(InboxPage,))
class Inbox(Request):
    """List files currently shared with the user, after `after` ("": from the start).

    Files changed at or after log entry `since_seq` have a view.
    """

    after: Annotated[str, AtMost(80)]
    limit: Annotated[int, Between(1, MAX_SHARED_PAGE)]
    since_seq: Count


@message(86, replies=(Done,))
class LeaveFile(Request):
    """Leave a file that another user shares: a `LeaveRecord` and the user's signature over it.

    From then on the user is shown nothing of the file, although the owner's last record still names
    the user as a reader, and nobody has to wrap its keys for the user.
    """

    record: RecordBytes
    signature: Signature


@message(87, replies=(Done,))
class BlockOwner(Request):
    """Show the user nothing of what `owner` shares, and refuse what they share later.

    With `blocked` false, end that. It says nothing about what the user shares.
    """

    owner: UserName
    blocked: bool


@message(89)
class BlockedOwners(Reply):
    """The owners that the user blocks, by name."""

    owners: Annotated[tuple[UserName, ...], AtMost(MAX_BLOCKED)]


@message(88, replies=(BlockedOwners,))
class ListBlocked(Request):
    """List the owners that the user blocks."""
