"""`sfsd audit`: the log, read and verified from the files alone, beside a running daemon or not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

import click

from protocol import auditlog, checkpoint, merkle
from protocol.auditlog import Entry
from protocol.checkpoint import Verifier
from protocol.errors import LogError
from protocol.messages.log import LogCheckpoint, LogHead
from protocol.records import ServerStatement
from sfsd import administration, certificates
from sfsd.commands import answer, answer_json, json_option, root_option
from sfsd.errors import ConfigError, JournalDamagedError
from sfsd.logreplay import stored_checkpoint

_FACTS: Final = ("address", "count", "codes", "users", "reason")
_POLL: Final = 0.25
"""Seconds between looks at a log that is followed."""


@click.group()
def command() -> None:
    """Read the log, and verify it."""


def _moment(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """A date or time in ISO 8601, UTC unless it says otherwise, as entries write theirs."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter("not like 2026-11-24 or 2026-11-24T09:30:00Z") from exc
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class _Filter:
    """Which entries are wanted; None or nothing for all."""

    user: str | None
    file: str | None
    ops: tuple[str, ...]
    since: str | None
    until: str | None

    def wants(self, entry: Entry) -> bool:
        return (
            (self.user is None or self.user in (entry.actor, entry.owner, *entry.accounts))
            and (self.file is None or self.file == entry.file)
            and (not self.ops or entry.op in self.ops)
            and (self.since is None or self.since <= entry.time)
            and (self.until is None or entry.time < self.until)
        )


@command.command()
@root_option
@click.option("--json", "as_json", is_flag=True, help="The lines as they are.")
@click.option("--user", metavar="USER", help="Only what USER did, owns or is concerned by.")
@click.option("--file", "file_id", metavar="ID", help="Only what was done to this file id.")
@click.option("--op", "ops", metavar="OP", multiple=True, help="Only this kind (repeatable).")
@click.option(
    "--since", metavar="TIME", callback=_moment, help="Only from this time on (ISO 8601, UTC)."
)
@click.option("--until", metavar="TIME", callback=_moment, help="Only before this time.")
@click.option("--follow", is_flag=True, help="Go on with what is appended, until interrupted.")
def log(
    root: Path,
    as_json: bool,
    user: str | None,
    file_id: str | None,
    ops: tuple[str, ...],
    since: str | None,
    until: str | None,
    follow: bool,
) -> None:
    """Print the log, one entry a line: when, who, what."""
    wanted = _Filter(user, file_id, ops, since, until)
    for seq, line in enumerate(_complete_lines(root, follow=follow)):
        try:
            entry = auditlog.parse(line, seq=seq)
        except LogError as exc:
            raise _damaged(exc) from exc
        if not wanted.wants(entry):
            continue
        if as_json:
            click.echo(line)
        else:
            answer(_shown(entry))


@command.command("checkpoint")
@root_option
def checkpoint_(root: Path) -> None:
    """Print the signed note of the log's present size, for others to keep and compare."""
    head = cast(LogCheckpoint, administration.ask(root, [LogHead()])[0])
    click.echo(head.checkpoint, nl=False)


def _shown(entry: Entry) -> str:
    what = entry.owner or ""
    if entry.file:
        what += f":{entry.file}" + (f" v{entry.version}" if entry.version else "")
    # Of what an entry says besides, people want who was refused and from where.
    facts = {key: entry.detail[key] for key in _FACTS if key in entry.detail}
    said = " ".join(f"{key}={json.dumps(value)}" for key, value in facts.items())
    return f"{entry.seq:>8} {entry.time} {entry.op:<16} {entry.actor:<12} {what} {said}".rstrip()


@command.command()
@root_option
@json_option
def verify(root: Path, as_json: bool) -> None:
    """Check every line: its hash, the chain, the tree, and the signed checkpoint.

    Ends with exit code 5 and the first entry that is wrong.
    """
    found = verify_log(root)
    if as_json:
        answer_json({"entries": found.entries, "signed": found.signed, "root": found.root.hex()})
        return
    answer(f"{found.entries} entries chain, {found.signed} of them under the signed checkpoint")
    answer(f"root {found.root.hex()}")


@dataclass(frozen=True, slots=True)
class Verified:
    """A log that holds: its complete lines, the size that is signed for, and the root there."""

    entries: int
    signed: int
    root: bytes


def verify_log(root: Path) -> Verified:
    """Check the log of `root`. Raises `JournalDamagedError` with the first seq that is wrong.

    The checkpoint is read before the log: while a daemon appends, the log is the longer one.
    """
    signed = _signed(root)
    leaves = _Leaves(root / "logs" / "tree" / "nodes")
    frontier = merkle.Frontier()
    signed_root = merkle.EMPTY_ROOT
    differs: int | None = None
    try:
        for entry in auditlog.verify_chain(_complete_lines(root)):
            leaf = merkle.leaf_hash(entry.hash)
            frontier.append(leaf)
            if differs is None and entry.seq < signed.size and not leaves.may_be(entry.seq, leaf):
                differs = entry.seq
            if frontier.size == signed.size:
                signed_root = frontier.root()
    except LogError as exc:
        if differs is not None and differs < exc.seq:
            # Changed with its hash made anew: the chain breaks only at the next one.
            raise JournalDamagedError("not what was written", seq=differs) from exc
        raise _damaged(exc) from exc
    if frontier.size and not signed.size:
        raise JournalDamagedError("there is a log, and no checkpoint vouches for it", seq=0)
    if frontier.size < signed.size:
        raise JournalDamagedError("signed for, and not there", seq=frontier.size)
    if signed_root != signed.root:
        # Every line chains: the log was rewritten. The cached tree still knows from where on.
        seq = 0 if differs is None else differs
        raise JournalDamagedError("rewritten after it was signed for, here or later", seq=seq)
    return Verified(frontier.size, signed.size, signed_root)


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


def _damaged(exc: LogError) -> JournalDamagedError:
    return JournalDamagedError(str(exc).partition(": ")[2], seq=exc.seq)


def _signed(root: Path) -> checkpoint.Checkpoint:
    """The stored checkpoint, of size 0 where there is none."""
    vkey = ServerStatement.parse(certificates.read_statement(root / "keys")[0]).log_vkey
    try:
        return stored_checkpoint(root / "logs" / "checkpoint", Verifier.parse(vkey))
    except OSError as exc:
        raise ConfigError(f"logs/checkpoint cannot be read: {exc.strerror}") from exc


def _complete_lines(root: Path, *, follow: bool = False) -> Iterator[bytes]:
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
