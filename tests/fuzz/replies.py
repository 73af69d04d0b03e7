"""Target for the replies of a server: clients work with a daemon whose replies are changed.

The daemon is a real one and does what it is asked. One reply on its way back is changed. The client
must refuse it by an `SfscError`, or show something that an honest server could have said. Once the
lies end, it must work as before.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import sfsc
from protocol.codec.errors import RemoteProtocolError
from protocol.wire.messages import Message, decode, encode
from sfsc.errors import Distrusted, SfscError
from sfsc.session.limits import Timeouts
from sfsc.store import Store
from tests.fuzz.mutations import Mutator
from tests.fuzz.world import LARGE, RenewedWorld, fresh_copy

_QUICK = Timeouts(connect=20.0, opening=20.0, idle=20.0)
_HONEST_EVERY = 25
_Message = TypeVar("_Message", bound=Message)


def _read(store: Store) -> None:
    with store.open("folder/large") as reader:
        reader.seek(LARGE - 10)
        reader.read()


def _put_and_rm(store: Store) -> None:
    store.put(io.BytesIO(b"small"), name="new")
    store.rm("new")


Operations = dict[str, Callable[[Store], object]]
OWNER: Operations = {
    "ls": lambda store: list(store.ls()),
    "stat": lambda store: store.stat("a"),
    "get": lambda store: store.get("a", io.BytesIO()),
    "get an old version": lambda store: store.get("a", io.BytesIO(), version=1),
    "read": _read,
    "history": lambda store: store.history("a"),
    "readers": lambda store: store.readers("a"),
    "status": lambda store: store.status(),
    "put and rm": _put_and_rm,
    "share": lambda store: store.share("a", "bob", trust_first_use=True),
    "person": lambda store: store.person("bob"),
    "folders": lambda store: store.shared_folders(),
    "log": lambda store: list(store.audit_log()),
    "verify log": lambda store: store.audit_verify(),
    "verify rotation": lambda store: store.verify_rotation(),
    "devices": lambda store: store.devices(),
}
"""What an owner does, by name."""
READER: Operations = {
    "inbox": lambda store: store.inbox(),
    "get shared": lambda store: store.get_shared("ada", "a", io.BytesIO(), trust_first_use=True),
    "person": lambda store: store.person("ada"),
}
"""What a reader does, by name."""


class Replies:
    """Target that lies to `user`, ada or bob, who does `operations`. `changed` counts the changed
    replies by type, `distrusted` the states in which the client would sign nothing any more."""

    def __init__(self, name: str, user: str, operations: Operations) -> None:
        self.name = name
        self.last = b""
        self.changed: Counter[str] = Counter()
        self.distrusted = 0
        self._user = user
        self._operations = operations
        self._renewed = RenewedWorld()
        self._store: Store | None = None
        self._tries = 0

    def run(self, mutator: Mutator) -> bool:
        if self._renewed.renew():
            self._store = None
            world = self._renewed.current
            self._first_home = world.home if self._user == "ada" else world.other
            self._home = fresh_copy(self._first_home, "lied to")
        self._tries += 1
        if self._tries % _HONEST_EVERY == 0:
            self._work_honestly()
        if self._store is None or mutator.random.random() < 0.1:
            self._disconnect()
            return self._lie(mutator, self._connect)
        store, operation = self._store, mutator.random.choice(list(self._operations.values()))
        return self._lie(mutator, lambda: operation(store))

    def close(self) -> None:
        """Stop the daemon. Raises what its hooks have raised."""
        self._disconnect()
        self._renewed.close()

    def _disconnect(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _connect(self) -> None:
        self._store = sfsc.connect(self._home, timeouts=_QUICK, auto_rotate=False)

    def _work_honestly(self) -> None:
        """Connect and work without lies; whatever fails is a defect. A client that has seen leaves
        that its server did not sign distrusts it for good, so it starts from its first state."""
        try:
            self._work_through()
        except Distrusted:
            self._disconnect()
            self.distrusted += 1
            self._home = fresh_copy(self._first_home, self._home.name)
            self._work_through()

    def _work_through(self) -> None:
        """Connect, and do everything once."""
        self._disconnect()
        self._connect()
        for operation in self._operations.values():
            assert self._store is not None
            operation(self._store)

    def _lie(self, mutator: Mutator, work: Callable[[], object]) -> bool:
        """Work while one reply is changed; return whether the client noticed nothing."""
        server, wait = self._renewed.current.server, mutator.random.choice((0, 0, 0, 0, 1, 2))

        def lie(reply: _Message) -> _Message:
            nonlocal wait
            wait -= 1
            return reply if wait != -1 else self._change(mutator, reply)

        server.welcome = lie
        server.tamper = lambda _who, _request, reply: lie(reply)
        try:
            work()
        except SfscError:
            return False
        finally:
            server.honest()
        return True

    def _change(self, mutator: Mutator, reply: _Message) -> _Message:
        """Return a changed reply of the same type, or the reply itself if no change decodes."""
        body = b"".join(encode(1, reply))
        others = [
            b"".join(encode(1, one)) for one in self._renewed.current.messages[type(reply)][:2]
        ]
        for _ in range(6):
            with contextlib.suppress(RemoteProtocolError):
                self.last = mutator.change(body, others)
                _, found = decode(memoryview(self.last))
                if isinstance(found, type(reply)) and found != reply:
                    self.changed[type(reply).__name__] += 1
                    return found
        return reply
