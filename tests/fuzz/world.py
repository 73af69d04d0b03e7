"""A daemon with two users and real files, from which a fuzzer takes its valid inputs."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import sfsc
from protocol.log.auditlog import LogEntry, parse
from protocol.wire.messages import Message
from protocol.wire.messages.session import Welcome
from sfsc.keys.home import unlock_home
from sfsc.keys.keyring import Keyring
from sfsc.store import Store
from sfsd.rules.context import Principal
from tests.lying_server import LyingServer

LARGE = 1_300_000
"""Bytes of a file of two segments, whose contents are not sent inline."""

_RENEWED_EVERY = 500


class World:
    """`server` runs while `running_world` does. `messages` are those that were exchanged, by type,
    and `sessions` the last session of each user. `home`, `keyring`, `link` and the recovery `code`
    are ada's. `generations` are all keys that the account had."""

    def __init__(self, server: LyingServer) -> None:
        self.server = server
        self.messages: dict[type[Message], list[Message]] = defaultdict(list)
        self.sessions: dict[str, Principal] = {}
        server.tamper = self._note
        server.welcome = self._note_welcome
        self.code = sfsc.new_recovery_code()
        self.home = server.enrol("ada")
        self.other = server.enrol("bob")
        enrolled = unlock_home(self.home, None).contents.generations
        self._work()
        server.honest()
        self.keyring: Keyring = unlock_home(self.home, None).contents
        self.generations = (*enrolled, *self.keyring.generations)

    @property
    def lines(self) -> list[bytes]:
        """All lines of the log."""
        return list(self.server.journal.lines(0))

    @property
    def entries(self) -> list[LogEntry]:
        return [parse(line) for line in self.lines]

    def stored(self, pattern: str) -> list[bytes]:
        """Return the files of the daemon's store whose names match."""
        users = self.server.root / "store" / "users"
        return [path.read_bytes() for path in sorted(users.glob(pattern))]

    def _work(self) -> None:
        with connected(self.home) as ada:
            ada.put(io.BytesIO(b"first"), name="a")
            ada.put(io.BytesIO(b"second" * 20_000), name="a")
            ada.put(io.BytesIO(bytes(LARGE)), name="folder/large")
            ada.put(io.BytesIO(b""), name="folder/empty")
            ada.person("bob")
            ada.share("a", "bob", trust_first_use=True)
            ada.mv("folder/empty", "moved")
            ada.put(io.BytesIO(b"gone"), name="gone")
            ada.rm("gone")
            ada.set_recovery(self.code)
            self.link = ada.link
            self.vkey = ada.status().log_vkey
            list(ada.audit_log())
            ada.audit_verify()
        with connected(self.home) as ada:
            ada.rotate()
            ada.history("a")
            ada.status()
            with ada.open("folder/large") as reader:
                reader.read()
        with connected(self.other) as bob:
            bob.inbox()
            bob.get_shared("ada", "a", io.BytesIO(), trust_first_use=True)

    def _note(self, who: Principal | None, request: Message, reply: Message) -> Message:
        if who is not None:
            self.sessions[who.user] = who
        for one in (request, reply):
            kept = self.messages[type(one)]
            if len(kept) < 8:
                kept.append(one)
        return reply

    def _note_welcome(self, welcome: Welcome) -> Welcome:
        self.messages[Welcome].append(welcome)
        return welcome


@contextlib.contextmanager
def connected(home: Path) -> Iterator[Store]:
    with sfsc.connect(home) as store:
        yield store


@contextlib.contextmanager
def running_world(folder: Path) -> Iterator[World]:
    """Run a world below `folder`."""
    with LyingServer(folder / "root") as server:
        yield World(server)


class RenewedWorld:
    """A world of a target's own that is replaced every 500 inputs, so that its log does not grow
    with the run, and what an input has spoiled ends. Call `renew` before each input."""

    def __init__(self) -> None:
        self.current: World
        self._stack = ExitStack()
        self._inputs = 0

    def renew(self) -> bool:
        """Count an input. Return whether `current` is a new world."""
        self._inputs += 1
        if self._inputs % _RENEWED_EVERY != 1:
            return False
        self.close()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self.current = self._stack.enter_context(running_world(Path(folder)))
        return True

    def close(self) -> None:
        """Stop the daemon. Raises what its hooks have raised."""
        self._stack.close()


def fresh_copy(home: Path, name: str) -> Path:
    """Copy a home with its state, in the place of an earlier copy of that name."""
    copy = home.with_name(name)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(home, copy)
    return copy
