"""`sfsd serve` and a rotation, in processes that SIGKILL themselves at a point of their work.

``python -m tests.e2e.killed POINT serve …`` is `sfsd serve …`, and ``POINT rotate HOME
[compromised]`` rotates. While the file POINT holds ``KIND NUMBER``, the process that comes to the
step KIND for the NUMBERth time ends there. While it holds ``count``, each step is written to
POINT.seen.

Nothing is changed but that: steps are ahead of and behind calls of the product's own. Batches are
small, each change is a group of its own and the store is settled at once, so that a few files make
many steps, and the same ones each time.
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
    """How often which step was come to since the point was set."""

    def __init__(self, point: Path) -> None:
        self._point = point
        self._wanted = ""
        self._taken: Counter[str] = Counter()

    def begin(self) -> None:
        """What POINT.next holds is the point from now on: who has no session yet is not cut."""
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
        """Have a method of `owner` take a step ahead of it and one behind it; none where it is
        given or gives something of the types `but`."""
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
        """Of the keyring, whose next content is complete and synced under another name."""
        if target.name != "keyring":
            return replace(path, target)
        steps.take("rename")
        done = replace(path, target)
        steps.take("renamed")
        return done

    with sfsc.connect(home, auto_rotate=False) as store:
        steps.begin()
        setattr(Path, "replace", replacing)  # noqa: B010
        # How many receipts share a checkpoint, and so how many proofs are asked for that one
        # continues another, is a matter of time. Behind the last of them is "remember".
        steps.around(Transport, "submit", "send", "sent", but=(LogProof,))
        steps.around(Transport, "result", None, "received", but=(LogProven,))
        steps.around(KeyringFile, "save", "save", "saved")
        steps.around(ClientState, "remember_checkpoint", "remember", "remembered")
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
