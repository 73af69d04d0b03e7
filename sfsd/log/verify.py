"""The log verified from its files alone, be a daemon running or not: chain, tree, checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import time
from binascii import hexlify
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from protocol.codec import merkle
from protocol.codec.errors import LogError
from protocol.codec.values import Value
from protocol.log import auditlog, checkpoint
from protocol.log.auditlog import LogEntry
from protocol.log.checkpoint import Verifier
from protocol.records.records import ServerStatement
from sfsd import server_keys
from sfsd.errors import ConfigError, JournalDamagedError
from sfsd.log.replay import stored_checkpoint

_PART: Final = 16 * 1024 * 1024
"""Bytes of the log that are verified at a time."""
_FEW: Final = 6
"""Parts for which starting processes would take longer than the work."""
_COVERED: Final = -75
"""A line ends in ``,"prev":"…","hash":"…"}``: its hash covers it up to ``,"hash"``."""
_PREV: Final = slice(-140, -76)
_HASH: Final = slice(-66, -2)
_SEQ: Final = re.compile(rb'\{"seq":(0|[1-9][0-9]{0,15}),')
_POLL: Final = 0.25
"""Seconds between looks at a log that is followed."""


class VerifiedLog(Value):
    """A log that holds: its complete lines, the size that is signed for, and the root there.

    `cache_differs` is the first entry whose leaf the cached tree has otherwise, None for none.
    """

    entries: int
    signed: int
    root: bytes
    cache_differs: int | None


def verify_links(root: Path) -> VerifiedLog:
    """Check the log of `root`: every line's hash, its place and its link to the line before, and
    that the signed root is over these hashes, on all processors.

    That a line is spelled as `sfsd` spells it is not looked at: its bytes are those that were
    signed for. Where anything is wrong, `verify_log` finds out what. Raises as that does.
    """
    signed = _signed(root)
    frontier, last, signed_root = merkle.Frontier(), auditlog.GENESIS, merkle.EMPTY_ROOT
    try:
        for part in _parts(root, signed.size):
            if part is None:
                continue
            if part.first != frontier.size or part.prev != last:
                raise ValueError("a part that does not follow")
            frontier.extend(part.signed)
            if frontier.size == signed.size:
                signed_root = frontier.root()
            frontier.extend(part.beyond)
            last = part.last
        holds = frontier.size >= signed.size and bool(signed.size or not frontier.size)
    except ValueError:
        holds = False
    if not holds or signed_root != signed.root:
        return verify_log(root)
    return VerifiedLog(frontier.size, signed.size, signed_root, None)


class _Part(Value):
    """Consecutive lines whose hashes hold and that link: `first` is the seq of the first, `prev`
    what that follows, `last` the hash of the last. `signed` and `beyond` are subtrees of the
    leaves up to the signed size, and of those behind it."""

    first: int
    prev: bytes
    last: bytes
    signed: list[tuple[int, bytes]]
    beyond: list[tuple[int, bytes]]


def _parts(root: Path, signed: int) -> Iterator[_Part | None]:
    path = root / "logs" / "audit.jsonl"
    ranges = list(_ranges(path))
    if len(ranges) <= _FEW:
        yield from (_part(path, start, end, signed) for start, end in ranges)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Hashing small things holds the interpreter lock: threads would take turns.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_part, path, start, end, signed) for start, end in ranges]
        yield from (one.result() for one in waiting)


def _ranges(path: Path) -> Iterator[tuple[int, int]]:
    """(start, end) of parts of about `_PART` bytes, each of whole lines but perhaps the last."""
    try:
        with path.open("rb") as file:
            size, start = file.seek(0, os.SEEK_END), 0
            while start + _PART < size:
                file.seek(start + _PART)
                file.readline(auditlog.MAX_LINE + 1)
                yield start, file.tell()
                start = file.tell()
            yield start, size
    except FileNotFoundError as exc:
        raise ConfigError(f"no log in {path.parent}", "has this root ever been served?") from exc
    except OSError as exc:
        raise ConfigError(f"the log cannot be read: {exc.strerror}") from exc


def _part(path: Path, start: int, end: int, signed: int) -> _Part | None:
    """The lines between two offsets, None for none; what follows the last newline is being
    written, or torn, and left out. Raises ValueError for lines that are not right."""
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(end - start)
    whole = data.rfind(b"\n") + 1
    if len(data) - whole > auditlog.MAX_LINE:
        raise ValueError("no end of a line for longer than a line is")
    lines = data[:whole].split(b"\n")[:-1]
    if not lines:
        return None
    begins = _SEQ.match(lines[0])
    if begins is None or max(map(len, lines)) > auditlog.MAX_LINE:
        raise ValueError("not lines of the log")
    first = int(begins[1])
    prev = lines[0][_PREV]
    leaves = _linked(lines, first, prev)
    cut = max(0, min(signed - first, len(leaves)))
    return _Part(
        first,
        bytes.fromhex(prev.decode()),
        bytes.fromhex(lines[-1][_HASH].decode()),
        merkle.subtrees(first, leaves[:cut]),
        merkle.subtrees(first + cut, leaves[cut:]),
    )


def _linked(lines: list[bytes], first: int, prev: bytes) -> list[bytes]:
    """The leaf hashes of lines that count from `first` and link from `prev`, a hash in hex.

    A line's hash covers all that is ahead of it; what it does not cover is compared.
    """
    sha256, leaves = hashlib.sha256, []
    for seq, line in enumerate(lines, first):
        digest = sha256(line[:_COVERED]).digest()
        stated = hexlify(digest)
        if (
            line[_COVERED:] != b',"hash":"%b"}' % stated
            or line[_PREV] != prev
            or not line.startswith(b'{"seq":%d,' % seq)
        ):
            raise ValueError("not lines of the log")
        leaves.append(sha256(b"\0" + digest).digest())
        prev = stated
    return leaves


def verify_log(root: Path, each: Callable[[LogEntry], None] = lambda _entry: None) -> VerifiedLog:
    """Check the log of `root`, and hand every entry on to `each`.

    Raises `JournalDamagedError` with the first seq that is wrong.

    The checkpoint is read before the log: while a daemon appends, the log is the longer one.
    """
    signed = _signed(root)
    leaves = _Leaves(root / "logs" / "tree" / "nodes")
    frontier = merkle.Frontier()
    signed_root = merkle.EMPTY_ROOT
    differs: int | None = None
    try:
        for entry in auditlog.verify_chain(complete_lines(root)):
            leaf = merkle.leaf_hash(entry.hash)
            frontier.append(leaf)
            each(entry)
            if differs is None and entry.seq < signed.size and not leaves.may_be(entry.seq, leaf):
                differs = entry.seq
            if frontier.size == signed.size:
                signed_root = frontier.root()
    except LogError as exc:
        if differs is not None and differs < exc.seq:
            # Changed with its hash made anew: the chain breaks only at the next one.
            raise JournalDamagedError("not what was written", seq=differs) from exc
        raise JournalDamagedError.from_log_error(exc) from exc
    if frontier.size and not signed.size:
        raise JournalDamagedError("there is a log, and no checkpoint vouches for it", seq=0)
    if frontier.size < signed.size:
        raise JournalDamagedError("signed for, and not there", seq=frontier.size)
    if signed_root != signed.root:
        # Every line chains: the log was rewritten. The cached tree still knows from where on.
        seq = 0 if differs is None else differs
        raise JournalDamagedError("rewritten after it was signed for, here or later", seq=seq)
    return VerifiedLog(frontier.size, signed.size, signed_root, differs)


class _Leaves:
    """The leaves that the daemon cached when it wrote the log; all unknown where there are none."""

    def __init__(self, path: Path) -> None:
        self._nodes: bytes | mmap.mmap = b""
        with contextlib.suppress(OSError, ValueError), path.open("rb") as file:  # ValueError: empty
            self._nodes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def may_be(self, seq: int, leaf: bytes) -> bool:
        start = merkle.node_position(0, seq) * merkle.HASH_SIZE
        known = self._nodes[start : start + merkle.HASH_SIZE]
        return len(known) < merkle.HASH_SIZE or known == leaf


def _signed(root: Path) -> checkpoint.Checkpoint:
    """The stored checkpoint, of size 0 where there is none."""
    vkey = ServerStatement.parse(server_keys.read_server_statement(root / "keys")[0]).log_vkey
    try:
        return stored_checkpoint(root / "logs" / "checkpoint", Verifier.parse(vkey))
    except OSError as exc:
        raise ConfigError(f"logs/checkpoint cannot be read: {exc.strerror}") from exc


def complete_lines(root: Path, *, follow: bool = False) -> Iterator[bytes]:
    """The log's lines; what follows the last newline is being written, or torn, and left out.

    With `follow` this waits for more and does not end by itself.
    """
    try:
        with (root / "logs" / "audit.jsonl").open("rb") as file:
            while True:
                line = file.readline(auditlog.MAX_LINE + 1)
                if line.endswith(b"\n"):
                    yield line[:-1]
                elif len(line) > auditlog.MAX_LINE:
                    yield line
                    return
                elif follow:
                    file.seek(-len(line), os.SEEK_CUR)
                    time.sleep(_POLL)
                else:
                    return
    except FileNotFoundError as exc:
        raise ConfigError(f"no log in {root / 'logs'}", "has this root ever been served?") from exc
    except OSError as exc:
        raise ConfigError(f"the log cannot be read: {exc.strerror}") from exc
