"""Verification of users' identity chains: every statement is proven to be in the log, and to follow
from the one before it, starting at the first, which is pinned."""

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
"""Statements of one user. Ten years of weekly rotations make 1,600; a server accepts 2,048, and as
many again after each recovery."""
MAX_MOVES: Final = 16
"""How often a chain may grow between reading its end and its bundle."""
SendLookup = Callable[[Lookup], Identity]


def follow_chain(
    ask: SendLookup, trust: ServerTrust, user: str, first: bytes, known: tuple[bytes, ...] = ()
) -> tuple[bytes, ...]:
    """Return all statements of `user`, exact bytes, in order.

    `first` is the pinned hash of the first one, `known` the statements verified before. The
    checkpoints that prove them stay unlinked until `trust.close_gaps`. Raises `BrokenChain` for a
    chain that does not follow from the pin or from `known`, `Rollback` for a chain that has become
    shorter, `BadReceipt`, and the errors of an inconsistent log.
    """
    chain, number = list(known), max(1, len(known))
    shown: list[tuple[bytes, tuple[bytes, ...], bytes]] = []
    while number:
        page = ask(Lookup(user, number))
        shown = trust.verify_statements(page, user)
        for body, signatures, possession in shown:
            if number <= len(chain):
                if body != chain[number - 1]:
                    raise _broken("the server shows another statement than before", body, first)
            else:
                checked = (body, signatures, possession)
                _check_follows(chain, checked, user, trust.pin, first)
                chain.append(body)
            number += 1
        if page.next not in (0, number) or (page.next and not shown) or number > MAX_STATEMENTS:
            raise ProtocolFailure("the server's list of statements has gaps or no end")
        number = page.next
    if not chain or len(shown) == 0:
        raise Rollback(f"the server shows fewer statements of {user} than before", REPORT)
    return tuple(chain)


def fetch_newest_bundle(
    chain: tuple[bytes, ...],
    follow_on: Callable[[tuple[bytes, ...]], tuple[bytes, ...]],
    fetch: Callable[[], bytes],
) -> tuple[tuple[bytes, ...], bytes]:
    """Return the account's chain, and the sealed bundle that its last statement names.

    Bundle and chain are two requests, and another device may publish between them. If the end of
    `chain` does not name the bundle, the chain is followed further until it does. If it does not
    continue, the bundle is returned as it is, and `open_bundle` refuses it.
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


def _broken(cause: str, body: bytes, first: bytes, hint: str = REPORT) -> BrokenChain:
    return BrokenChain(cause, hint, pinned=first.hex(), shown=record_hash(body).hex())


def _check_follows(
    chain: list[bytes],
    shown: tuple[bytes, tuple[bytes, ...], bytes],
    user: str,
    server: bytes,
    first: bytes,
) -> None:
    body = shown[0]
    try:
        if chain:
            check_next(chain, *shown)
            return
        statement = check_first(*shown)
        holds = (statement.user, statement.server) == (user, server)
    except RemoteProtocolError as exc:
        cause = f"a statement of {user} does not follow from the one before: {exc}"
        raise _broken(cause, body, first) from exc
    if not holds or record_hash(body) != first:
        hint = f"compare the two fingerprints with {user}, by another way than this server"
        raise _broken(f"the identity of {user} is not the pinned one", body, first, hint)
