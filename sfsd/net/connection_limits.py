"""Limits on the number of connections, and counters of those that were rejected.

Connections are counted from the moment they are accepted, before TLS: a flood costs resources
whatever its clients send. Connections before login and sessions have separate places, so that
neither can take those of the other.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from protocol.codec.names import OPERATOR
from sfsd.errors import Refused
from sfsd.settings.config import ConnectionLimits

KEPT_FOR_OPERATOR: Final = 4
"""Places for sessions that users cannot take: during a flood the operator must be able to log in,
look, and disable the accounts that cause it."""
_Connection = TypeVar("_Connection", bound=Hashable)


def normalized_address(host: str) -> str:
    """Return an IP address without its zone, and an IPv4-mapped IPv6 address as IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def source_network(host: str) -> str:
    """Return what a connection counts against: an IPv4 address, or the /64 network of an IPv6 one.

    One subscriber gets a whole /64, so a limit on its single addresses would not limit anything.
    `host` is a `normalized_address`.
    """
    if ":" not in host:
        return host
    return str(ipaddress.IPv6Network((host, 64), strict=False))


class _Stage(Generic[_Connection]):
    """Places of connections that have reached one stage before the login."""

    def __init__(self, total: int, per_source: int) -> None:
        self._total = total
        self._per_source = per_source
        self._sources: dict[str, dict[_Connection, None]] = {}  # each oldest first
        self._count = 0

    def set_limits(self, total: int, per_source: int) -> None:
        """Apply other limits. Those who are here stay until others come."""
        self._total = total
        self._per_source = per_source

    def add(self, connection: _Connection, source: str) -> _Connection | None:
        """Add a connection; remove and return the one that must go in its favour, if any."""
        victim: _Connection | None = None
        if len(self._sources.get(source, ())) >= self._per_source:
            victim = next(iter(self._sources[source]))
            self.remove(victim, source)
        elif self._count >= self._total:
            largest = max(self._sources, key=lambda one: len(self._sources[one]))
            victim = next(iter(self._sources[largest]))
            self.remove(victim, largest)
        self._sources.setdefault(source, {})[connection] = None
        self._count += 1
        return victim

    def remove(self, connection: _Connection, source: str) -> bool:
        """Remove a connection; return False if it is not here."""
        mine = self._sources.get(source)
        if mine is None or connection not in mine:
            return False
        del mine[connection]
        self._count -= 1
        if not mine:
            del self._sources[source]  # so that former sources cost no memory
        return True


class ConnectionLimiter(Generic[_Connection]):
    """Decides which connections may stay, before login and after.

    A new connection always gets a place. Half of the places before login are for connections whose
    TLS handshake is not done, so that those who send nothing, which costs them nothing, cannot take
    the places of others. If those of a stage, of one address or in total, fill theirs, one of them
    must go. A login is refused if its user, its address, or all users have as many sessions as
    allowed. The operator's sessions count in their total only.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._sources: dict[_Connection, str] = {}
        self._silent = _Stage[_Connection](1, 1)
        self._greeted = _Stage[_Connection](1, 1)
        self.set_limits(limits)
        self._users: dict[_Connection, str] = {}
        self._of_user = Counter[str]()
        self._of_source = Counter[str]()  # sessions of users

    def set_limits(self, limits: ConnectionLimits) -> None:
        """Apply other limits. Connections that are open stay open."""
        self._limits = limits
        total, per_source = limits.unauthenticated, limits.unauthenticated_per_address
        self._silent.set_limits(-(-total // 2), -(-per_source // 2))
        self._greeted.set_limits(max(1, total // 2), max(1, per_source // 2))

    @property
    def connections(self) -> int:
        """Number of all connections."""
        return len(self._sources)

    @property
    def sessions(self) -> int:
        """Number of connections that have logged in, the operator's included."""
        return len(self._users)

    def users(self) -> set[str]:
        """Return the users that have sessions."""
        return set(self._of_user)

    def admit(self, connection: _Connection, source: str) -> _Connection | None:
        """Count a new connection; return the one to disconnect in its favour, if any.

        If those of `source` fill their places, it is the oldest of them. If those of all sources
        do, it is the oldest one of the source that has the most. So a flood from some addresses
        disconnects itself, and not those who connect from others.
        """
        self._sources[connection] = source
        return self._forget(self._silent.add(connection, source))

    def handshaken(self, connection: _Connection) -> _Connection | None:
        """Count an admitted connection as one whose TLS handshake is done; return as `admit`."""
        source = self._sources.get(connection)
        if source is None or not self._silent.remove(connection, source):
            return None
        return self._forget(self._greeted.add(connection, source))

    def _forget(self, victim: _Connection | None) -> _Connection | None:
        if victim is not None:
            del self._sources[victim]
        return victim

    def log_in(self, connection: _Connection, user: str) -> None:
        """Count an admitted connection as a session of `user`, whose login was verified.

        Raises `Refused`: "busy". Then the connection still counts as one before login.
        """
        source = self._sources[connection]
        self._check(user, source)
        if user != OPERATOR:
            self._of_user[user] += 1
            self._of_source[source] += 1
        self._remove(connection, source)
        self._users[connection] = user

    def release(self, connection: _Connection) -> None:
        """Stop counting a connection. Idempotent."""
        source = self._sources.pop(connection, None)
        if source is None:
            return
        user = self._users.pop(connection, None)
        if user is None:
            self._remove(connection, source)
        elif user != OPERATOR:
            _decrease(self._of_user, user)
            _decrease(self._of_source, source)

    def _check(self, user: str, source: str) -> None:
        limits = self._limits
        sessions = len(self._users)
        if user != OPERATOR:
            kept = min(KEPT_FOR_OPERATOR, limits.connections - 1)
            sessions = max(sessions, self._of_user.total() + kept)
        if sessions >= limits.connections:
            raise Refused("busy", "the server has as many connections as it allows")
        if user == OPERATOR:
            return
        if self._of_user[user] >= limits.user_connections:
            raise Refused("busy", "this account has as many connections as the server allows")
        if self._of_source[source] >= limits.connections_per_address:
            raise Refused("busy", "your address has as many connections as the server allows")

    def _remove(self, connection: _Connection, source: str) -> None:
        """Remove a connection from its stage before the login."""
        if not self._silent.remove(connection, source):
            self._greeted.remove(connection, source)


def _decrease(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]


class IncidentCounter:
    """Counts rejected and aborted connections by kind.

    The daemon prints one line a minute, not one a connection: a flood must not fill its output.
    """

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()

    def count(self, kind: str) -> None:
        """Count one incident; `kind` is a fixed phrase of this code, never text of a client."""
        self._kinds[kind] += 1

    def report(self) -> str | None:
        """Return the counts since the last report, most frequent first; None if there are none."""
        kinds, self._kinds = self._kinds, Counter()
        return ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common()) or None
