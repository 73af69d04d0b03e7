"""How many connections there may be, and what became of those that were turned away.

Connections are counted from the moment they are accepted, before TLS: against floods, what counts
is what a stranger can make us hold, not what he says.
"""

from __future__ import annotations

import ipaddress
from collections import Counter

from protocol.codec.values import Mutable, field
from sfsd.config import ConnectionLimits


def normalized_address(host: str) -> str:
    """An IP address as people write it: without a zone, and IPv4 that came through IPv6 as IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def source_network(host: str) -> str:
    """Whom to count a connection against: an IPv4 address, or the /64 network of an IPv6 one.

    A /64 is what one subscriber gets, so single addresses of it would be no bound. `host` is a
    `plain` address.
    """
    if ":" not in host:
        return host
    return str(ipaddress.IPv6Network((host, 64), strict=False))


def is_local(source: str) -> bool:
    """Whether a `source_of` is this machine itself."""
    return source.startswith("127.") or source == source_network("::1")


class ConnectionLimiter(Mutable):
    """Counts connections of each source and in all, before login and after.

    The limits on all connections do not turn this machine itself away: while strangers hold every
    place, the operator must get in to see it and to disable who does it.
    """

    limits: ConnectionLimits
    connections: Counter[str] = field(default_factory=Counter)
    strangers: Counter[str] = field(default_factory=Counter)

    def admit(self, source: str) -> bool:
        """Count a new connection of `source`, unless that would be one too many."""
        limits = self.limits
        crowded = (
            self.connections.total() >= limits.connections
            or self.strangers.total() >= limits.unauthenticated
        )
        if (
            (crowded and not is_local(source))
            or self.connections[source] >= limits.connections_per_address
            or self.strangers[source] >= limits.unauthenticated_per_address
        ):
            return False
        self.connections[source] += 1
        self.strangers[source] += 1
        return True

    def recognise(self, source: str) -> None:
        """A connection of `source` has logged in."""
        _decrease(self.strangers, source)

    def leave(self, source: str, *, known: bool) -> None:
        """A connection of `source` is gone; `known`: it had logged in."""
        _decrease(self.connections, source)
        if not known:
            _decrease(self.strangers, source)


def _decrease(counter: Counter[str], source: str) -> None:
    counter[source] -= 1
    if counter[source] <= 0:
        del counter[source]  # sources that are gone cost no memory


class IncidentCounter:
    """What was turned away or cut off, counted by kind. A flood must not fill the daemon's own
    output either, so that gets one line a minute and not one a connection."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()

    def count(self, kind: str) -> None:
        """`kind` is one of a few words of ours, never a stranger's."""
        self._kinds[kind] += 1

    def report(self) -> str | None:
        """All since the last report, most frequent first; None where there were none."""
        kinds, self._kinds = self._kinds, Counter()
        return ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common()) or None
