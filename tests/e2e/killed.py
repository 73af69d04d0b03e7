"""Runs `sfsd serve` or a rotation in a process that kills itself (SIGKILL) at a given step.

``python -m tests.e2e.killed POINT serve …`` runs `sfsd serve …`; ``POINT rotate HOME
[compromised]`` rotates. While the file POINT holds ``KIND NUMBER``, the process is killed when it
reaches the step KIND for the NUMBERth time. While it holds ``count``, each step is written to
POINT.seen.

Steps are before and after calls of the product's own functions; nothing else in it changes. Batches
are small, each change is a separate group and the store is settled at once, so that a few files
make many steps, the same ones each time.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import sfsc
import sfsc.account.rewrap
import sfsd.storage.committer
from protocol.wire.messages.log import LogProof, LogProven
from sfsc.keys.keyring import KeyringFile
from sfsc.session.transport import Transport
from sfsc.trust.state import ClientState
from sfsd import cli
from sfsd.log.file import LogFile
from sfsd.log.journal import Journal
from sfsd.storage.committer import Committer
from sfsd.storage.store import DirectoryStore

BATCH = 3
SETTLE_AFTER = 0.005


class Steps:
    """Counts the steps of each kind since the point was set."""

    def __init__(self, point: Path) -> None:
        self._point = point
        self._wanted = ""
        self._taken: Counter[str] = Counter()

    def begin(self) -> None:
        """Move POINT.next to POINT, so that no process is killed before it has a session."""
        self._point.with_suffix(".next").replace(self._point)

    def take(self, kind: str) -> None:
        try:
            wanted = self._point.read_text()
        except FileNotFoundError:
            return
        if wanted != self._wanted:
            self._wanted = wanted
            self._taken.clear()
        self._taken[kind] += 1
        if wanted == f"{kind} {self._taken[kind]}":
            os.kill(os.getpid(), signal.SIGKILL)
        if wanted == "count":
            with self._point.with_suffix(".seen").open("a") as seen:
                seen.write(f"{kind}\n")

    def around(
        self,
        owner: type,
        name: str,
        before: str | None,
        after: str | None,
        but: tuple[type, ...] = (),
    ) -> None:
        """Wrap a method of `owner` with a step before and a step after it.

        Calls with an argument or result of the types `but` take no step.
        """
        method: Callable[..., object] = getattr(owner, name)

        def stepping(*args: object, **named: object) -> object:
            counts = not any(isinstance(one, but) for one in args)
            if before is not None and counts:
                self.take(before)
            done = method(*args, **named)
            if after is not None and counts and not isinstance(done, but):
                self.take(after)
            return done

        setattr(owner, name, stepping)


def serve(steps: Steps, arguments: list[str]) -> None:
    setattr(sfsd.storage.committer, "MAX_GROUP", 1)  # noqa: B010 - mypy sees a constant
    (Committer.__init__.__kwdefaults__ or {})["settle_after"] = SETTLE_AFTER
    steps.around(DirectoryStore, "prepare", "prepare", "prepared")
    steps.around(LogFile, "append", "append", "appended")
    steps.around(DirectoryStore, "publish", "publish", "published")
    steps.around(Journal, "checkpoint", None, "signed")
    steps.around(DirectoryStore, "settle", "settle", "settled")
    sys.argv[1:] = ["serve", *arguments]
    cli.main()


def rotate(steps: Steps, home: str, compromised: bool) -> None:
    setattr(sfsc.account.rewrap, "MAX_BATCH", BATCH)  # noqa: B010 - mypy sees a constant
    replace = Path.replace

    def replacing(path: Path, target: Path) -> Path:
        """Take steps around the rename of a keyring, whose new content is already synced."""
        if target.name != "keyring":
            return replace(path, target)
        steps.take("rename")
        done = replace(path, target)
        steps.take("renamed")
        return done

    with sfsc.connect(home, auto_rotate=False) as store:
        steps.begin()
        setattr(Path, "replace", replacing)  # noqa: B010
        # The number of receipts per checkpoint depends on timing, and so does the number of
        # consistency proofs requested. "remember" comes after the last of them.
        steps.around(Transport, "submit", "send", "sent", but=(LogProof,))
        steps.around(Transport, "result", None, "received", but=(LogProven,))
        steps.around(KeyringFile, "save", "save", "saved")
        steps.around(ClientState, "save_followed", "remember", "remembered")
        store.rotate(compromised=compromised)
    sys.stdout.write("done\n")


def main() -> None:
    point, program, *arguments = sys.argv[1:]
    steps = Steps(Path(point))
    if program == "serve":
        serve(steps, arguments)
    else:
        rotate(steps, arguments[0], arguments[1:] == ["compromised"])


if __name__ == "__main__":
    main()
