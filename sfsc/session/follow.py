"""Asks the server for the parts of its log that `sfsc.trust.followed_log` needs.

Every session follows the log to the checkpoint of its login before it shows, signs or encrypts
anything, and to the checkpoints of its own changes before it reports success.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from protocol.wire.messages.log import (
    MAX_LEAVES,
    MAX_LINES,
    LogLeaves,
    LogLeavesPage,
    LogLines,
    LogLinesPage,
)
from sfsc.errors import BadReceipt, ProtocolFailure
from sfsc.session.limits import Ticket
from sfsc.session.progress import NoProgress, Progress
from sfsc.session.server_errors import expect_reply
from sfsc.trust.followed_log import FollowedLog
from sfsc.trust.follower import LogFollower, TagSequence
from sfsc.trust.server_log import REPORT, TreeHead

if TYPE_CHECKING:
    from sfsc.session.transport import Transport

_AHEAD: Final = 4
"""Requests for pages of leaves that are sent before the first is answered."""


def follow_log(
    transport: Transport, log: FollowedLog, head: TreeHead, progress: Progress | None = None
) -> None:
    """Follow `log` to the signed checkpoint `head`, or check an earlier one. `progress` is told of
    the entries. Raises as `FollowedLog`, and `NetworkError`."""
    shown = progress or NoProgress()
    shown.expect_items(max(0, head.size - log.size))
    for first, page in _leaves(transport, lambda: log.size, head.size):
        before = log.size
        log.add_leaves(first, page)
        shown.advance_items(log.size - before)
        # Line by line, so that memory stays flat however long the log is.
        _fetch_lines(transport, log)
    _fetch_lines(transport, log)
    log.confirm(head.size, head.root)


def search_statements(transport: Transport, sequence: TagSequence, head: TreeHead) -> None:
    """Find the tags of `sequence` from the first entry of the log up to `head`. Raises as
    `LogFollower`, and `NetworkError`."""
    follower = LogFollower()
    follower.watch(sequence)
    for first, page in _leaves(transport, lambda: follower.size, head.size):
        follower.feed(first, page)
    follower.check_root(head.size, head.root)


def check_signed_to(size: int, end: int) -> None:
    """Raise `BadReceipt` if leaves up to `size` were shown with a checkpoint of `end` entries: no
    signature covers the rest, so the server could show it to one machine only."""
    if size > end:
        raise BadReceipt("the server shows more of its log than it has signed", REPORT)


def _fetch_lines(transport: Transport, log: FollowedLog) -> None:
    while wanted := log.wanted_lines(MAX_LINES):
        reply = expect_reply(transport.call(LogLines(tuple(wanted))), LogLinesPage)
        log.add_lines(shown_lines(reply, wanted))


def shown_lines(page: LogLinesPage, wanted: Sequence[int]) -> list[tuple[int, bytes]]:
    """Return (seq, line) of what a page shows of the `wanted` lines: the first of them, at least
    one. Nothing of the lines is verified. Raises `ProtocolFailure`."""
    shown = [(item.seq, item.data) for item in page.lines]
    if not shown or [seq for seq, _ in shown] != list(wanted[: len(shown)]):
        raise ProtocolFailure("the server returned other log lines than were asked for")
    return shown


def _leaves(
    transport: Transport, size: Callable[[], int], end: int
) -> Iterator[tuple[int, memoryview]]:
    """Yield (seq of the first leaf, page) for the leaves up to `end`. `size` returns how many were
    read, which grows with each page."""
    asked: deque[tuple[int, int, Ticket]] = deque()
    following = size()
    try:
        while size() < end:
            while following < end and len(asked) < _AHEAD:
                limit = min(MAX_LEAVES, end - following)
                asked.append((following, limit, transport.submit(LogLeaves(following, limit))))
                following += limit
            first, limit, ticket = asked.popleft()
            yield first, memoryview(expect_reply(transport.result(ticket), LogLeavesPage).leaves)
            if size() == first:
                raise BadReceipt("the server shows less of its log than it has signed", REPORT)
            check_signed_to(size(), end)
            if size() < first + limit:  # a frame held no more
                _abandon(transport, asked)
                following = size()
    finally:
        _abandon(transport, asked)


def _abandon(transport: Transport, asked: deque[tuple[int, int, Ticket]]) -> None:
    while asked:
        transport.abandon(asked.popleft()[-1])
