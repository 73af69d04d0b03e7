"""Verification of users' identity chains: every statement follows from the one before it, starting
at the first, which is pinned. That the log has exactly these statements is checked against the
followed log (`sfsc.files.contacts`)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from protocol.codec.errors import RemoteProtocolError
from protocol.codec.values import Value
from protocol.log.auditlog import LogEntry
from protocol.records.chain import check_first, check_next
from protocol.records.records import Statement, record_hash
from protocol.wire.messages.sharing import Identity, Lookup, SignedStatement
from sfsc.errors import BadReceipt, BrokenChain, ProtocolFailure, Rollback
from sfsc.trust.followed_log import parse_line
from sfsc.trust.server_log import REPORT

MAX_STATEMENTS: Final = 8192
"""Statements of one user. Ten years of weekly rotations make 1,600; a server accepts 2,048, and as
many again after each recovery."""
MAX_MOVES: Final = 16
"""How often a chain may grow between reading its end and its bundle."""
SendLookup = Callable[[Lookup], Identity]


class ShownChain(Value):
    """A user's statements, exact bytes in order, and the log entries of those that were not known:
    (number, entry)."""

    chain: tuple[bytes, ...]
    entries: tuple[tuple[int, LogEntry], ...]


def follow_chain(
    ask: SendLookup, server_id: bytes, user: str, first: bytes, known: tuple[bytes, ...] = ()
) -> ShownChain:
    """Return all statements of `user` that the server shows.

    `first` is the pinned hash of the first one, `known` the statements verified before. The caller
    must check that the followed log has exactly these statements, in these entries. Raises
    `BrokenChain` for a chain that does not follow from the pin or from `known`, `Rollback` for a
    chain that has become shorter, and `BadReceipt` for an entry that does not hold its statement.
    """
    chain, number = list(known), max(1, len(known))
    entries: list[tuple[int, LogEntry]] = []
    shown: tuple[SignedStatement, ...] = ()
    while number:
        page = ask(Lookup(user, number))
        shown = page.statements
        for one in shown:
            if number <= len(chain):
                if one.statement != chain[number - 1]:
                    raise _broken(
                        "the server shows another statement than before", one.statement, first
                    )
            else:
                checked = (one.statement, one.signatures, one.possession)
                _check_follows(chain, checked, user, server_id, first)
                chain.append(one.statement)
            if number > len(known):
                entries.append((number, _statement_entry(one, user)))
            number += 1
        if page.next not in (0, number) or (page.next and not shown) or number > MAX_STATEMENTS:
            raise ProtocolFailure("the server's list of statements has gaps or no end")
        number = page.next
    if not chain or len(shown) == 0:
        raise Rollback(f"the server shows fewer statements of {user} than before", REPORT)
    return ShownChain(tuple(chain), tuple(entries))


def _statement_entry(shown: SignedStatement, user: str) -> LogEntry:
    entry = parse_line(shown.line, shown.index)
    if (entry.owner, entry.rec) != (user, shown.statement):
        raise BadReceipt("the log has another statement than the server shows", REPORT)
    return entry


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
