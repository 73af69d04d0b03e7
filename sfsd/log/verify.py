"""Verifies the log from its files, also beside a running daemon: chain, tree, checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
from binascii import hexlify
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

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

_PART_SIZE: Final = 16 * 1024 * 1024
"""Bytes of the log that are verified at a time."""
_MAX_SEQUENTIAL: Final = 6
"""Most parts that are verified in this process: for so few, starting others would take longer."""
_COVERED: Final = -75
"""A line ends in ``,"prev":"…","hash":"…"}``: its hash covers the bytes before ``,"hash"``."""
_PREV: Final = slice(-140, -76)
_HASH: Final = slice(-66, -2)
SEQ: Final = re.compile(rb'\{"v":2,"seq":(0|[1-9][0-9]{0,15}),')
"""How a line begins; its group is the seq."""


class VerifiedLog(Value):
    """An intact log: its complete lines, the signed size, and the root of that size.
    `cache_differs` is the first entry whose leaf differs in the cached tree, or None."""

    entries: int
    signed: int
    root: bytes
    cache_differs: int | None


def verify_links(root: Path) -> VerifiedLog:
    """Check every line's hash, place and link to the line before, and the signed root, on all
    cores. The spelling of a line is not checked: its bytes are those that were signed. If anything
    is wrong, `verify_log` finds out what. Raises as `verify_log`."""
    signed = signed_checkpoint(root)
    frontier, last, signed_root = merkle.Frontier(), auditlog.GENESIS, merkle.EMPTY_ROOT
    in_set: tuple[int, int] | None = None
    try:
        for part in _verify_parts(root, signed.size):
            if part is None:
                continue
            if part.first != frontier.size or part.prev != last:
                raise ValueError("a part does not continue the previous one")
            frontier.extend(part.signed)
            if frontier.size == signed.size:
                signed_root = frontier.root()
            frontier.extend(part.beyond)
            last, in_set = part.last, part.in_set
        holds = frontier.size >= signed.size and bool(signed.size or not frontier.size)
    except ValueError:
        holds = False
    is_whole = in_set is None or sum(in_set) == frontier.size
    if not holds or not is_whole or signed_root != signed.root:
        return verify_log(root)
    return VerifiedLog(frontier.size, signed.size, signed_root, None)


class _VerifiedPart(Value):
    """Consecutive lines with valid hashes and links. `first` is the seq of the first line, `prev`
    the hash before it, `last` the hash of the last line and `in_set` its atomic set. `signed` and
    `beyond` are subtrees of the leaves up to the signed size, and of those past it."""

    first: int
    prev: bytes
    last: bytes
    in_set: tuple[int, int] | None
    signed: list[tuple[int, bytes]]
    beyond: list[tuple[int, bytes]]


def _verify_parts(root: Path, signed: int) -> Iterator[_VerifiedPart | None]:
    path = root / "logs" / "audit.jsonl"
    ranges = list(_part_ranges(path))
    if len(ranges) <= _MAX_SEQUENTIAL:
        yield from (_verify_part(path, start, end, signed) for start, end in ranges)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Hashing small inputs holds the interpreter lock: threads would take turns.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_verify_part, path, start, end, signed) for start, end in ranges]
        yield from (one.result() for one in waiting)


def _part_ranges(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of parts of about `_PART_SIZE` bytes, of whole lines but for the last."""
    try:
        with path.open("rb") as file:
            size, start = file.seek(0, os.SEEK_END), 0
            while start + _PART_SIZE < size:
                file.seek(start + _PART_SIZE)
                file.readline(auditlog.MAX_LINE + 1)
                yield start, file.tell()
                start = file.tell()
            yield start, size
    except FileNotFoundError as exc:
        raise ConfigError(
            f"no log in {path.parent.absolute()}", "has this root ever been served?"
        ) from exc
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _verify_part(path: Path, start: int, end: int, signed: int) -> _VerifiedPart | None:
    """Verify the lines between two offsets; return None if there are none. Data past the last
    newline is being written, or torn, and is left out. Raises ValueError."""
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(end - start)
    whole = data.rfind(b"\n") + 1
    if len(data) - whole > auditlog.MAX_LINE:
        raise ValueError("a line is too long")
    lines = data[:whole].split(b"\n")[:-1]
    if not lines:
        return None
    begins = SEQ.match(lines[0])
    if begins is None or max(map(len, lines)) > auditlog.MAX_LINE:
        raise ValueError("malformed log lines")
    first = int(begins[1])
    prev = lines[0][_PREV]
    leaves = _verify_lines(lines, first, prev)
    cut = max(0, min(signed - first, len(leaves)))
    return _VerifiedPart(
        first,
        bytes.fromhex(prev.decode()),
        bytes.fromhex(lines[-1][_HASH].decode()),
        auditlog.set_of(lines[-1]),
        merkle.subtrees(first, leaves[:cut]),
        merkle.subtrees(first + cut, leaves[cut:]),
    )


def _verify_lines(lines: list[bytes], first: int, prev: bytes) -> list[bytes]:
    """Verify lines from seq `first` and hex hash `prev` on; return their leaf hashes. A line's hash
    covers everything before it; the rest of the line is compared."""
    sha256, leaves = hashlib.sha256, []
    for seq, line in enumerate(lines, first):
        digest = sha256(line[:_COVERED]).digest()
        stated = hexlify(digest)
        if (
            line[_COVERED:] != b',"hash":"%b"}' % stated
            or line[_PREV] != prev
            or not line.startswith(b'{"v":2,"seq":%d,' % seq)
        ):
            raise ValueError("malformed log lines")
        leaves.append(sha256(b"\0" + digest + auditlog.tags_of(line)).digest())
        prev = stated
    return leaves


def verify_log(root: Path, each: Callable[[LogEntry], None] = lambda _entry: None) -> VerifiedLog:
    """Check the log of `root`, and pass every entry to `each`. Raises `JournalDamagedError` with
    the first wrong seq. Reads the checkpoint before the log, which a daemon may extend."""
    signed = signed_checkpoint(root)
    leaves = _CachedLeaves(root / "logs" / "tree" / "nodes")
    frontier = merkle.Frontier()
    signed_root = merkle.EMPTY_ROOT
    differs: int | None = None
    sets = auditlog.SetCheck()
    try:
        for entry in auditlog.verify_chain(complete_lines(root)):
            sets.add(entry)
            leaf = merkle.leaf_hash(entry.leaf_data)
            frontier.append(leaf)
            each(entry)
            if (
                differs is None
                and entry.seq < signed.size
                and not leaves.may_match(entry.seq, leaf)
            ):
                differs = entry.seq
            if frontier.size == signed.size:
                signed_root = frontier.root()
    except LogError as exc:
        if differs is not None and differs < exc.seq:
            # The line was changed together with its hash: the chain breaks only at the next one.
            raise JournalDamagedError("the entry is not what was written", seq=differs) from exc
        raise JournalDamagedError.from_log_error(exc) from exc
    if frontier.size and not signed.size:
        raise JournalDamagedError("there are entries, but no signed checkpoint", seq=0)
    if frontier.size < signed.size:
        raise JournalDamagedError(
            "covered by the signed checkpoint, but missing", seq=frontier.size
        )
    if signed_root != signed.root:
        # Every line chains: the log was rewritten. The cached tree still shows from where on.
        seq = 0 if differs is None else differs
        raise JournalDamagedError(
            "this entry or a later one was rewritten after it was signed", seq=seq
        )
    return VerifiedLog(frontier.size, signed.size, signed_root, differs)


class _CachedLeaves:
    """The leaves that the daemon cached when it wrote the log; all unknown if there is no cache."""

    def __init__(self, path: Path) -> None:
        self._nodes: bytes | mmap.mmap = b""
        with (
            contextlib.suppress(OSError, ValueError),
            path.open("rb") as file,
        ):  # ValueError: empty
            self._nodes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def may_match(self, seq: int, leaf: bytes) -> bool:
        start = merkle.node_position(0, seq) * merkle.HASH_SIZE
        known = self._nodes[start : start + merkle.HASH_SIZE]
        return len(known) < merkle.HASH_SIZE or known == leaf


def signed_checkpoint(root: Path) -> checkpoint.Checkpoint:
    """Return the stored checkpoint, of size 0 if there is none. Raises `CheckpointDamagedError`,
    and `ConfigError` if it cannot be read."""
    vkey = ServerStatement.parse(server_keys.read_server_statement(root / "keys")[0]).log_vkey
    path = root / "logs" / "checkpoint"
    try:
        return stored_checkpoint(path, Verifier.parse(vkey))
    except OSError as exc:
        raise ConfigError(f"{path.absolute()} cannot be read: {exc.strerror}") from exc


def complete_lines(
    root: Path, start: int = 0, *, wait: Callable[[], None] | None = None
) -> Iterator[bytes]:
    """Yield the log's lines from offset `start` on, which begins a line that does not continue an
    atomic set. Data past the last newline is being written, or torn, and left out, and so is the
    beginning of an atomic set whose end is not there. With `wait` this does not end by itself: it
    is called each time that all lines were read, and returns when there may be more. Raises
    `ConfigError`."""
    with opened_log(root) as file:
        file.seek(start)
        begun: list[bytes] = []
        while True:
            line = read_log(file, auditlog.MAX_LINE + 1, line=True)
            if line.endswith(b"\n"):
                line = line[:-1]
                begun.append(line)
                in_set = auditlog.set_of(line)
                begins = in_set is not None and in_set == auditlog.set_of(begun[0])
                if in_set is None or not begins or len(begun) == in_set[1]:
                    yield from begun
                    begun.clear()
            elif len(line) > auditlog.MAX_LINE:
                yield from begun
                yield line
                return
            elif wait is not None:
                # After a crash, a start removes both and writes other lines in their place.
                place = file.tell() - len(line) - sum(len(one) + 1 for one in begun)
                begun.clear()
                wait()
                file.seek(0, os.SEEK_END)  # else the buffer would still have the old bytes
                file.seek(place)
            else:
                return


def opened_log(root: Path) -> BinaryIO:
    """Open the log of `root` for reading. Raises `ConfigError`."""
    path = root / "logs" / "audit.jsonl"
    try:
        return path.open("rb")
    except FileNotFoundError as exc:
        raise ConfigError(
            f"no log in {path.parent.absolute()}", "has this root ever been served?"
        ) from exc
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def read_log(file: BinaryIO, size: int, *, line: bool = False) -> bytes:
    """Read `size` bytes of the opened log, fewer at its end, or with `line` up to a newline. Raises
    `ConfigError`."""
    try:
        return file.readline(size) if line else file.read(size)
    except OSError as exc:
        raise _unreadable(Path(file.name), exc) from exc


def _unreadable(path: Path, exc: OSError) -> ConfigError:
    return ConfigError(f"{path.absolute()} cannot be read: {exc.strerror}")
