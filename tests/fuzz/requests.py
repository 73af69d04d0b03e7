"""Target for the requests of a hostile client: a session of a real daemon sends changed requests.

The daemon must reply to each one. An exception that it does not turn into an `Error` is a defect,
and would cost the client its connection.
"""

from __future__ import annotations

import contextlib

from protocol.codec.errors import RemoteProtocolError
from protocol.wire.messages import Error, Request, decode
from sfsd.rules.context import OPERATIONS, Access, Principal
from tests.fuzz.mutations import Mutator
from tests.fuzz.wire_targets import bodies_of
from tests.fuzz.world import RenewedWorld, World, connected


class Requests:
    """Target that sends changed requests in the session of a user, or of the operator."""

    def __init__(self, name: str, access: Access) -> None:
        self.name = name
        self.last = b""
        self._access = access
        self._renewed = RenewedWorld()
        self._types = [one for one in OPERATIONS if access in OPERATIONS[one].access]

    def run(self, mutator: Mutator) -> bool:
        if self._renewed.renew():
            world = self._renewed.current
            self._bodies = {cls: bodies_of(world, cls) for cls in self._types}
            self._who = self._session(world)
        message = self._changed(mutator, self._bodies[mutator.random.choice(self._types)])
        if message is None:
            return False
        return not isinstance(self._renewed.current.server.ask(self._who, message), Error)

    def close(self) -> None:
        """Stop the daemon. Raises what its hooks have raised."""
        self._renewed.close()

    def _session(self, world: World) -> Principal:
        """Return a session with this access; a user's is one of ada's."""
        if self._access is Access.OPERATOR:
            return Principal("operator", 1, Access.OPERATOR, -1, 0, "127.0.0.1")
        with connected(world.home):
            who = world.sessions["ada"]
        world.server.context.read_handles.open_session(who.session)
        return who

    def _changed(self, mutator: Mutator, bodies: list[bytes]) -> Request | None:
        """Return a changed request, or None if no change decodes."""
        body = mutator.random.choice(bodies)
        for _ in range(6):
            self.last = mutator.change(body, bodies)
            with contextlib.suppress(RemoteProtocolError):
                _, message = decode(memoryview(self.last))
                if isinstance(message, Request):
                    return message
        return None
