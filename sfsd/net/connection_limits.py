"""Limits on the number of connections, and counters of those that were rejected.

Connections are counted from the moment they are accepted, before TLS: a flood costs resources
whatever its clients send.
"""

from __future__ import annotations

import ipaddress
from collections import Counter

from protocol.codec.values import Mutable, field
from sfsd.config import ConnectionLimits


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


def is_local(source: str) -> bool:
    """Tell whether a `source_network` is this machine itself."""
    return source.startswith("127.") or source == source_network("::1")


class ConnectionLimiter(Mutable):
    """Counts connections by source and in total, before login and after.

    Connections of this machine are exempt from the limits on the total: during a flood the operator
    must be able to log in, look, and disable the accounts that cause it.
    """

    limits: ConnectionLimits
    connections: Counter[str] = field(default_factory=Counter)
    unauthenticated: Counter[str] = field(default_factory=Counter)

    def admit(self, source: str) -> bool:
        """Count a new connection of `source`; return False if it would exceed a limit."""
        limits = self.limits
        crowded = (
            self.connections.total() >= limits.connections
            or self.unauthenticated.total() >= limits.unauthenticated
        )
        if (
            (crowded and not is_local(source))
            or self.connections[source] >= limits.connections_per_address
            or self.unauthenticated[source] >= limits.unauthenticated_per_address
        ):
            return False
        self.connections[source] += 1
        self.unauthenticated[source] += 1
        return True

    def authenticated(self, source: str) -> None:
        """Count a connection of `source` as logged in."""
        _decrease(self.unauthenticated, source)

    def release(self, source: str, *, logged_in: bool) -> None:
        """Stop counting a connection of `source`; `logged_in` says if it had logged in."""
        _decrease(self.connections, source)
        if not logged_in:
            _decrease(self.unauthenticated, source)


def _decrease(counter: Counter[str], source: str) -> None:
    counter[source] -= 1
    if counter[source] <= 0:
        del counter[source]  # so that former sources cost no memory


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
