"""The log verified from its files alone, be a daemon running or not: chain, tree, checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol import auditlog, checkpoint, merkle
from protocol.auditlog import Entry
from protocol.checkpoint import Verifier
from protocol.errors import LogError
from protocol.records import ServerStatement
from sfsd import certificates
from sfsd.errors import ConfigError, JournalDamagedError
from sfsd.logreplay import stored_checkpoint

_POLL: Final = 0.25
"""Seconds between looks at a log that is followed."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A log that holds: its complete lines, the size that is signed for, and the root there.

    `cache_differs` is the first entry whose leaf the cached tree has otherwise, None for none.
    """

    entries: int
    signed: int
    root: bytes
    cache_differs: int | None


def verify_log(root: Path, each: Callable[[Entry], None] = lambda _entry: None) -> Verified:
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
        raise damaged(exc) from exc
    if frontier.size and not signed.size:
        raise JournalDamagedError("there is a log, and no checkpoint vouches for it", seq=0)
    if frontier.size < signed.size:
        raise JournalDamagedError("signed for, and not there", seq=frontier.size)
    if signed_root != signed.root:
        # Every line chains: the log was rewritten. The cached tree still knows from where on.
        seq = 0 if differs is None else differs
        raise JournalDamagedError("rewritten after it was signed for, here or later", seq=seq)
    return Verified(frontier.size, signed.size, signed_root, differs)


class _Leaves:
    """The leaves that the daemon cached when it wrote the log; all unknown where there are none."""

    def __init__(self, path: Path) -> None:
        try:
            self._nodes = path.read_bytes()
        except OSError:
            self._nodes = b""

    def may_be(self, seq: int, leaf: bytes) -> bool:
        start = merkle.node_position(0, seq) * merkle.HASH_SIZE
        known = self._nodes[start : start + merkle.HASH_SIZE]
        return len(known) < merkle.HASH_SIZE or known == leaf


def damaged(exc: LogError) -> JournalDamagedError:
    """The same as an error of this package."""
    return JournalDamagedError(str(exc).partition(": ")[2], seq=exc.seq)


def _signed(root: Path) -> checkpoint.Checkpoint:
    """The stored checkpoint, of size 0 where there is none."""
    vkey = ServerStatement.parse(certificates.read_statement(root / "keys")[0]).log_vkey
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
