"""Reads entries of the log for people: all, those that a filter selects, or the last ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from protocol.codec.errors import LogError
from protocol.codec.values import Value
from protocol.log import auditlog
from protocol.log.auditlog import LogEntry
from sfsd.errors import JournalDamagedError
from sfsd.log.verify import SEQ, complete_lines, opened_log, read_log

_BLOCK: Final = 1 << 20
"""Bytes that are read at a time from the end of the log."""


class EntryFilter(Value):
    """Selects entries; None or an empty tuple selects all. `since` and `until` are times in the
    form of entries, UTC; an entry of the time `until` is not selected."""

    user: str | None = None
    file: str | None = None
    ops: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None

    def matches(self, entry: LogEntry) -> bool:
        """Return whether the filter selects the entry."""
        return (
            (self.user is None or self.user in (entry.actor, entry.owner, *entry.accounts))
            and (self.file is None or any(self.file == file for file, _ in entry.versions))
            and (not self.ops or entry.op in self.ops)
            and (self.since is None or self.since <= entry.time)
            and (self.until is None or entry.time < self.until)
        )


class LogPlace(Value):
    """A place between two entries: the offset in the file, the seq of the next entry, and the hash
    of the one before."""

    offset: int
    seq: int
    prev: bytes


BEGINNING: Final = LogPlace(0, 0, auditlog.GENESIS)


def read_entries(
    root: Path, place: LogPlace = BEGINNING, *, wait: Callable[[], None] | None = None
) -> Iterator[tuple[LogEntry, bytes]]:
    """Yield each entry from `place` on, and its line. The hash and place of each line are checked,
    and that it follows the one before. With `wait` this does not end: it is called each time that
    all lines were read, and returns when there may be more. Raises `JournalDamagedError` and
    `ConfigError`."""
    prev = place.prev
    for seq, line in enumerate(complete_lines(root, place.offset, wait=wait), place.seq):
        entry = _parse(line, seq)
        if entry.prev != prev:
            raise _broken_link(seq)
        prev = entry.hash
        yield entry, line


def last_entries(
    root: Path, is_wanted: Callable[[LogEntry], bool], count: int
) -> tuple[list[tuple[LogEntry, bytes]], LogPlace]:
    """Return the last `count` entries (at least 1) that are wanted, in order, with their
    lines, and the place behind the last entry of the log. Reads the log from its end, no further
    than needed. Raises as `read_entries`."""
    found: list[tuple[LogEntry, bytes]] = []
    place, after = BEGINNING, None
    for offset, line in _complete_lines_reversed(root):
        entry = _parse(line, None if after is None else after.seq - 1)
        if after is None:
            place = LogPlace(offset, entry.seq + 1, entry.hash)
        elif after.prev != entry.hash:
            raise _broken_link(after.seq)
        after = entry
        if is_wanted(entry):
            found.append((entry, line))
            if len(found) == count:
                break
    return found[::-1], place


def _complete_lines_reversed(root: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of `complete_lines` from the last to the first, each with the offset behind
    it."""
    partial = True
    for offset, line in _lines_reversed(root):
        if partial:  # the beginning of an atomic set whose end is not there
            in_set, seq = auditlog.set_of(line), SEQ.match(line)
            partial = in_set is not None and seq is not None and int(seq[1]) + 1 < sum(in_set)
            if partial:
                continue
        yield offset, line


def _lines_reversed(root: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that end in a newline, from the last to the first, each with the offset
    behind its newline. Raises `JournalDamagedError` for a line that is too long."""
    with opened_log(root) as file:
        start = file.seek(0, os.SEEK_END)
        rest: bytes | None = None
        """The beginning of the block, whose line may begin before it; None: no newline was seen."""
        end = 0
        while start:
            stop, start = start, max(0, start - _BLOCK)
            file.seek(start)
            *lines, last = read_log(file, stop - start).split(b"\n")
            if rest is not None:
                last += rest
            elif lines:
                end = stop - len(last)
            if not lines:
                rest = None if rest is None else last
            else:
                if rest is not None:
                    yield end, last
                    end -= len(last) + 1
                for line in reversed(lines[1:]):
                    yield end, line
                    end -= len(line) + 1
                rest = lines[0]
            if rest is not None and len(rest) > auditlog.MAX_LINE:
                raise JournalDamagedError("a line is too long", seq=0)
        if rest is not None:
            yield end, rest


def _broken_link(seq: int) -> JournalDamagedError:
    return JournalDamagedError("does not follow the entry before it", seq=seq)


def _parse(line: bytes, seq: int | None) -> LogEntry:
    try:
        return auditlog.parse(line, seq=seq)
    except LogError as exc:
        raise JournalDamagedError.from_log_error(exc) from exc
