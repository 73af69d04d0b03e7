"""Other users: their identities, proven by identity chains, and the keys to encrypt for them.

A user is not trusted because a server names them. A user is *pinned* by the hash of their first
statement, the fingerprint, once it was compared or accepted at first use. From there the chain
leads to every later key. Pins are stored in the keyring, and reach the account's other devices in
its bundle.
"""

from __future__ import annotations

import bisect
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from protocol.codec.errors import MessageError
from protocol.codec.names import check_user_name
from protocol.codec.values import Value, changed
from protocol.records.records import (
    WRAP_ALGORITHMS,
    ReaderEntry,
    Statement,
    record_hash,
)
from protocol.wire.messages import Error
from protocol.wire.messages.sharing import Identity, Lookup
from sfsc.crypto.envelope import Recipient
from sfsc.crypto.wrap import PublicKey
from sfsc.errors import (
    BadReceipt,
    BrokenChain,
    Damaged,
    NotFound,
    Rollback,
    StaleGeneration,
    UnsupportedKey,
    Untrusted,
    UsageError,
    WeakRecipient,
)
from sfsc.keys.home import DEFAULT_MIN_WRAP_ALG
from sfsc.keys.keyring import Keyring, KeyringFile
from sfsc.library_log import log_warning
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.trust.file_records import FileOwner, owner_from_chain
from sfsc.trust.follower import FoundLeaf
from sfsc.trust.identity_chain import ShownChain, follow_chain
from sfsc.trust.peer_state import PeerState
from sfsc.trust.server_log import REPORT


class Person(Value):
    """Another user, whose chain was followed from its first statement. `pinned` tells whether that
    statement was pinned before."""

    owner: FileOwner
    newest: Statement
    pinned: bool

    @property
    def user(self) -> str:
        return self.owner.user

    @property
    def fingerprint(self) -> bytes:
        """The hash of the user's first statement, 32 bytes."""
        return self.owner.first


class Contacts:
    """Finds other users; implements the `Readers` of a session."""

    def __init__(
        self,
        session: Session,
        file: KeyringFile,
        min_wrap_alg: str = DEFAULT_MIN_WRAP_ALG,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`min_wrap_alg` is one of `WRAP_ALGORITHMS`, by strength; `clock` gives unix seconds."""
        self._session = session
        self._file = file
        self._weakest = min_wrap_alg
        self._clock = clock
        self._remembered = PeerState(session.state)
        self._cache: dict[tuple[str, bytes], Person] = {}
        self._shown: dict[str, bytes] = {}
        self._warned: set[str] = set()

    def find(self, user: str) -> Person:
        """Return the user whom the server shows as `user`, pinned or not. Raises `NotFound`, and
        `BrokenChain` if another user was pinned under this name."""
        try:
            check_user_name(user)
        except MessageError as exc:
            raise UsageError(str(exc)) from exc
        if user == self._session.account.user:
            raise UsageError(f"{user} is your own name", "name another user")
        return self.find_by_first(user, self._pin(user) or self._lookup_first(user))

    def find_trusted(self, user: str, *, first_use: bool = False) -> Person:
        """Like `find`, but for a user never pinned `first_use` is required, which pins them. Raises
        `Untrusted`."""
        person = self.find(user)
        if person.pinned:
            return person
        if not first_use:
            raise Untrusted(
                f"{user} was never verified; the server shows {person.fingerprint.hex()}",
                f"compare it with {user}, then `sfsc key verify {user} FINGERPRINT`, "
                "or use --trust-first-use",
                fingerprint=person.fingerprint.hex(),
            )
        return self._remember_pin(person)

    def verify(self, user: str, fingerprint: bytes) -> Person:
        """Pin `user`, whose fingerprint was compared over another channel than this server. Raises
        `BrokenChain` if the server shows another fingerprint, or another was pinned."""
        person = self.find(user)
        if person.fingerprint != fingerprint:
            raise BrokenChain(
                f"the fingerprint is not that of {user}",
                f"compare it with {user} again, over another channel than this server",
                pinned=fingerprint.hex(),
                shown=person.fingerprint.hex(),
            )
        return person if person.pinned else self._remember_pin(person)

    def find_by_first(self, user: str, first: bytes) -> Person:
        """Return the user with this first statement, as named in a record that we signed."""
        found = self._cache.get((user, first))
        log = self._session.log
        if found is not None and log.watches(first):
            # Another statement may have been found while the log was followed.
            found = found if found.newest.n >= log.statement_count(first) else None
        if found is None:
            remembered = self._remembered.chain(user)
            if remembered and record_hash(remembered[0]) != first:
                self._remembered.forget_chain(user)
                remembered = ()
            try:
                chain = follow_user_chain(self._session, user, first, remembered)
            except Damaged as exc:
                raise _damaged_account(user) from exc
            self._remembered.remember_chain(user, chain)
            pinned = self._pin(user) == first
            found = Person(owner_from_chain(chain), Statement.parse(chain[-1]), pinned)
            self._cache[user, first] = found
        return found

    def _lookup_first(self, user: str) -> bytes:
        # Look this up once per session: the answer must not change after the user was asked about
        # it.
        if user not in self._shown:
            reply = self._session.ask(Lookup(user, 1))
            missing = isinstance(reply, Error) and reply.code == "not-found"
            if isinstance(reply, Error) and reply.code == "damaged":
                raise _damaged_account(user)
            page = None if missing else expect_reply(reply, Identity)
            if page is None or not page.statements:
                hint = (
                    "ask the operator; write a file of your own whose name has a colon as YOU:NAME"
                )
                raise NotFound(f"there is no user {user}", hint)
            self._shown[user] = record_hash(page.statements[0].statement)
        return self._shown[user]

    def _pin(self, user: str) -> bytes | None:
        return dict(self._file.contents.pins).get(user)

    def _remember_pin(self, person: Person) -> Person:
        """Pin this user in the keyring."""

        def with_pin(keyring: Keyring) -> Keyring:
            pins = [pin for pin in keyring.pins if pin[0] != person.user]
            bisect.insort(pins, (person.user, person.fingerprint))
            return changed(keyring, pins=tuple(pins))

        self._file.update(with_pin)
        found = changed(person, pinned=True)
        self._cache[person.user, person.fingerprint] = found
        return found

    def recipient(self, person: Person) -> Recipient:
        """Return the user's present key. Raises `WeakRecipient`."""
        newest = person.newest
        if self._clock() >= newest.expires:
            hint = "if this machine's clock is right (`sfsc doctor` tells), ask"
            cause = f"the keys of {person.user} have expired"
            raise WeakRecipient(cause, f"{hint} {person.user} to run `sfsc rotate`")
        self.check_strength(person.user, newest.wrap_alg)
        return Recipient(person.user, _public_key(newest.wrap_alg, newest.wrap_pub))

    def check_strength(self, whose: str, algorithm: str) -> None:
        """Raise `WeakRecipient` if the algorithm is weaker than the configured minimum."""
        if WRAP_ALGORITHMS.index(algorithm) < WRAP_ALGORITHMS.index(self._weakest):
            raise WeakRecipient(
                f"the key of {whose} is {algorithm}, weaker than {self._weakest}",
                f"its owner can run `sfsc rotate --key-type {self._weakest}`",
            )

    def raise_to_minimum(self, algorithm: str) -> str:
        """Return the algorithm, or the configured minimum if that is stronger."""
        return max(algorithm, self._weakest, key=WRAP_ALGORITHMS.index)

    def recipients(self, readers: tuple[ReaderEntry, ...]) -> list[Recipient]:
        """Return the `readers` of a file whose grant and keys have not expired. A reader with a key
        that nobody can encrypt for, or with an account that is damaged on the server, is left out,
        with a warning. `head` must be at
        least as new as the log at login; otherwise a reader that another device removed would come
        back. Raises `WeakRecipient`, `Rollback` or `BrokenChain`."""
        now = self._clock()
        found: list[Recipient] = []
        for user, first, expires in readers:
            try:
                person = self.find_by_first(user, first)
                if (expires and now >= expires) or now >= person.newest.expires:
                    continue
                found.append(self.recipient(person))
            except (Damaged, UnsupportedKey) as exc:
                self._warn_left_out(user, exc)
        return found

    def _warn_left_out(self, user: str, error: Damaged | UnsupportedKey) -> None:
        """Log once a session that a reader gets no keys: they must not keep the owner, or other
        readers, from anything."""
        if user not in self._warned:
            self._warned.add(user)
            hint = f"{user} can read again after `sfsc rotate` and your next change of the file"
            if isinstance(error, Damaged):
                hint = f"{error.hint}; {user} can read again after your next change of the file"
            log_warning(f"{user} is left out of what you store", error.cause, hint)

    def forget(self) -> None:
        """Drop cached users, because somebody's keys have changed."""
        self._cache.clear()


_public_key = lru_cache(64)(PublicKey)
"""Loads a key; checking it takes as long as changing a file that it reads."""


def _damaged_account(user: str) -> Damaged:
    return Damaged(
        f"the account of {user} is damaged on the server",
        "the operator repairs it with `sfsd fsck --repair`",
    )


def follow_user_chain(
    session: Session, user: str, first: bytes, known: tuple[bytes, ...]
) -> tuple[bytes, ...]:
    """Return all statements of `user` as exact bytes: those that the followed log has, no more and
    no fewer. `first` is the hash of the first one, `known` was verified before.

    A session that may only adopt newer keys does not follow the log: it is checked when the session
    with those keys follows it. Raises as `follow_chain`, `Rollback` if the log has a statement that
    the server does not show, and `BadReceipt` for one that the log does not have.
    """

    def ask(asked: Lookup) -> Identity:
        return session.call(asked, Identity)

    server = session.trust.pin
    if first != session.keyring.first:
        session.require_followed()
    elif session.is_restricted:
        return follow_chain(ask, server, user, first, known).chain
    session.watch_contact(first)
    before = session.log.statement_count(first)
    shown = follow_chain(ask, server, user, first, known)
    if len(shown.chain) > session.log.statement_count(first):
        try:
            session.refresh_log()
        except StaleGeneration:
            # Another device has replaced the keys of this session, which may read no more of the
            # log. It adopts the newer keys as a restricted one does, and logs in with them.
            if first != session.keyring.first:
                raise
            return shown.chain
    if len(shown.chain) < before:
        raise Rollback(
            f"the server shows {len(shown.chain)} statements of {user}; its log has {before}",
            REPORT,
        )
    if len(shown.chain) > session.log.statement_count(first):
        raise BadReceipt(
            f"the server shows a statement of {user} that its log does not have", REPORT
        )
    _check_logged(session, user, first, shown)
    return shown.chain


def _check_logged(session: Session, user: str, first: bytes, shown: ShownChain) -> None:
    """Raise `BadReceipt` unless the statements shown are those that the followed log has."""
    for n, entry in shown.entries:
        leaf = session.log.statement_leaves(first).get(n)
        logged = session.state.statement_leaf(first, n) if leaf is None else leaf.pack()
        if logged != FoundLeaf(n, entry.seq, entry.leaf_data).pack():
            raise BadReceipt(f"the log has another statement {n} of {user} than shown", REPORT)
    if first == session.keyring.first:
        for n, body in session.log.statements.items():
            if n <= len(shown.chain) and shown.chain[n - 1] != body:
                raise BadReceipt(f"the log has another statement {n} of {user} than shown", REPORT)


def parse_fingerprint(text: str) -> bytes:
    """Return the 32 bytes of a typed fingerprint: 64 hex digits, or 32 words; spaces between them
    are ignored. Raises `UsageError`, which names a word that is not in the list."""
    from sfsc.keys.pgp_words import parse_words

    words = text.split()
    digits = "".join(words)
    if re.fullmatch("[0-9a-fA-F]{64}", digits):
        return bytes.fromhex(digits)
    try:
        found = parse_words(words)
    except ValueError as exc:
        raise UsageError(str(exc), _HOW_TO_COMPARE) from exc
    if len(found) != 32:
        raise UsageError(f"a fingerprint has 32 words, not {len(found)}", _HOW_TO_COMPARE)
    return found


_HOW_TO_COMPARE: Final = "a fingerprint is 64 hex digits or 32 words: see `sfsc key show`"
