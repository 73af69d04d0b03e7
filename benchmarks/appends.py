"""Group commit: 64 clients that each wait for their log entry, beside a bare loop.

The loop repeats exactly the writes and syncs that the committer made, in the same groups, and
nothing else. Here the committer runs alone, in this process: what is measured is the commit point.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from benchmarks.measure import Work
from protocol.log.auditlog import EntryDraft
from protocol.log.checkpoint import origin_of
from protocol.records.signatures import SigningKey
from sfsd.fs.files import Files
from sfsd.log.journal import Journal
from sfsd.storage.change import Change
from sfsd.storage.committer import Committer
from sfsd.storage.store import DirectoryStore

CLIENTS: Final = 64
ENTRIES: Final = 20_000
RATE: Final = 5000
"""Entries a second that are wanted."""


class Recording(Files):
    """Remembers what was written and then synced with `sync_data`: the log's groups."""

    def __init__(self) -> None:
        self.groups: list[bytes] = []
        self._written: dict[int, bytes] = {}

    def write(self, handle: int, data: bytes | bytearray | memoryview) -> int:
        self._written[handle] = bytes(data)
        return super().write(handle, data)

    def sync_data(self, handle: int) -> None:
        super().sync_data(handle)
        self.groups.append(self._written.pop(handle, b""))


class Appends:
    """A log in `folder`, and the groups of its last run."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._files = Recording()
        self._key = SigningKey.generate()

    def work(self) -> Work:
        return Work(
            f"log append, {CLIENTS} clients",
            ENTRIES,
            "entries",
            self.append,
            self.repeat,
            "bare loop",
            limit=ENTRIES / RATE,
        )

    def append(self, turn: int) -> None:
        root = self._folder / str(turn)
        store = DirectoryStore(root)
        self._files.groups.clear()
        journal = Journal(root / "logs", self._key, origin_of(bytes(32)), files=self._files)
        committer = Committer(store, journal)
        try:
            _Clients(committer).run()
        finally:
            committer.close()
            journal.close()

    def repeat(self, turn: int) -> None:
        handle = os.open(self._folder / f"{turn}.bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for group in self._files.groups:
                os.write(handle, group)
                os.fdatasync(handle)
        finally:
            os.close(handle)


class _Clients:
    """`CLIENTS` clients, each of which asks again as soon as it was answered."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._left = ENTRIES
        self._lock = threading.Lock()
        self._answered = 0
        self._done = threading.Event()

    def run(self) -> None:
        for number in range(CLIENTS):
            self._ask(f"user{number}")
        self._done.wait()

    def _ask(self, user: str) -> None:
        with self._lock:
            if not self._left:
                return
            self._left -= 1
        draft = EntryDraft(
            op="download",
            actor=user,
            owner=user,
            session=0,
            detail={"items": [["0123456789abcdef0123456789abcdef", 1]]},
            accounts=(user,),
            tag_keys={user: bytes(32)},
        )
        self._committer.submit(Change(draft)).add_done_callback(
            lambda made: self._answer(user, made)
        )

    def _answer(self, user: str, made: Future[int]) -> None:
        made.result()
        with self._lock:
            self._answered += 1
            last = self._answered == ENTRIES
        if last:
            self._done.set()
        self._ask(user)
