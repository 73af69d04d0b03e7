"""Users' identity chains as the server shows them: each statement proven to stand in the log, and
to follow from the one before it, from the first, which is pinned."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from protocol.codec.errors import RemoteProtocolError
from protocol.records.chain import check_first, check_next
from protocol.records.records import Statement, record_hash
from protocol.wire.messages.sharing import Identity, Lookup
from sfsc.errors import BrokenChain, ProtocolFailure, Rollback
from sfsc.trust.server_log import REPORT, ServerTrust

MAX_STATEMENTS: Final = 8192
"""Of one user. Ten years of weekly rotations are 1,600; a server takes 2,048, and as many again
after each recovery."""
MAX_MOVES: Final = 16
"""How often an account's chain may grow between the reading of its end and of its bundle."""
SendLookup = Callable[[Lookup], Identity]


def follow_chain(
    ask: SendLookup, trust: ServerTrust, user: str, first: bytes, known: tuple[bytes, ...] = ()
) -> tuple[bytes, ...]:
    """All statements of `user`, exact bytes, in order.

    `first` is the pinned hash of the first one, `known` those that were followed before. The
    checkpoints they are proven in are loose until `trust` is joined. Raises `BrokenChain` for a
    chain that does not follow from the pin or from what is known, `Rollback` for one that has
    become shorter, `BadReceipt` and the errors of a log that is not one.
    """
    chain, number = list(known), max(1, len(known))
    shown: list[tuple[bytes, tuple[bytes, ...]]] = []
    while number:
        page = ask(Lookup(user, number))
        shown = trust.verify_statements(page, user)
        for body, signatures in shown:
            if number <= len(chain):
                _check_known(chain[number - 1], body, first)
            else:
                _check_follows(chain, body, signatures, user, trust.pin, first)
                chain.append(body)
            number += 1
        if page.next not in (0, number) or (page.next and not shown) or number > MAX_STATEMENTS:
            raise ProtocolFailure("the server's list of statements has gaps or no end")
        number = page.next
    if not chain or len(shown) == 0:
        raise Rollback(f"the server shows fewer statements of {user} than were seen", REPORT)
    return tuple(chain)


def fetch_newest_bundle(
    chain: tuple[bytes, ...],
    follow_on: Callable[[tuple[bytes, ...]], tuple[bytes, ...]],
    fetch: Callable[[], bytes],
) -> tuple[tuple[bytes, ...], bytes]:
    """The account's sealed bundle, and the chain whose last statement names it.

    The two are two questions, and another machine may publish between them: a bundle that the end
    of `chain` does not name is only believed where the chain, followed on, goes on to one that
    does. Where it does not go on, the bundle is returned as it is, for `open_bundle` to refuse.
    """
    sealed = fetch()
    for _ in range(MAX_MOVES):
        named = Statement.parse(chain[-1]).bundle_sha256
        if hmac.compare_digest(hashlib.sha256(sealed).digest(), named):
            break
        longer = follow_on(chain)
        if longer == chain:
            break
        chain, sealed = longer, fetch()
    return chain, sealed


def _check_known(known: bytes, body: bytes, first: bytes) -> None:
    if known != body:
        raise BrokenChain(
            "the server shows another statement than was seen",
            REPORT,
            pinned=first.hex(),
            shown=record_hash(body).hex(),
        )


def _check_follows(
    chain: list[bytes],
    body: bytes,
    signatures: tuple[bytes, ...],
    user: str,
    server: bytes,
    first: bytes,
) -> None:
    try:
        if chain:
            check_next(chain, body, signatures)
            return
        statement = check_first(body, signatures)
        holds = (statement.user, statement.server) == (user, server)
    except RemoteProtocolError as exc:
        raise BrokenChain(
            f"a statement of {user} does not follow from the one before: {exc}",
            REPORT,
            pinned=first.hex(),
            shown=record_hash(body).hex(),
        ) from exc
    if not holds or record_hash(body) != first:
        raise BrokenChain(
            f"{user} is not who was pinned",
            "compare the two fingerprints with him, by another way than this server",
            pinned=first.hex(),
            shown=record_hash(body).hex(),
        )
