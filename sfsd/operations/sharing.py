"""Other people: whose key is whose, and that it stands in the log."""

from __future__ import annotations

from typing import Final

from protocol.messages.sharing import Identity, Lookup, SignedStatement
from sfsd.errors import Refused
from sfsd.journal import Consistency, Inclusion
from sfsd.layout import StoredStatement
from sfsd.operations.session import checkpoint_size
from sfsd.world import OWN_KEYS, Access, Principal, World, operation

PER_PAGE: Final = 8


@operation(Lookup, access=OWN_KEYS)
def lookup(world: World, who: Principal, message: Lookup) -> Identity:
    """The chain of any enrolled user; with an older key or the recovery key, of the asker only."""
    if message.user != who.user and who.access is not Access.FULL:
        raise Refused("not-allowed", "this session may look up its own user only")
    chain = world.accounts.chain(message.user)
    if chain is None:
        raise Refused("not-found", "no such user")
    links = chain[0].links
    first = max(message.first, 1) - 1
    page = links[first : first + PER_PAGE]
    checkpoint = world.journal.checkpoint()
    size = checkpoint_size(checkpoint)

    def proven(link: StoredStatement) -> SignedStatement:
        return SignedStatement(
            statement=link.body,
            signatures=link.signatures,
            index=link.seq,
            line=world.journal.line(link.seq),
            inclusion=world.journal.prove(Inclusion(link.seq, size)),
        )

    statements = tuple(proven(link) for link in page)
    consistency = world.journal.prove(Consistency(who.known_size, size))
    end = first + len(page)
    return Identity(statements, checkpoint, consistency, end + 1 if end < len(links) else 0)
