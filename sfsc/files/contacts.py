"""Other people: who they are, by their identity chains, and which of their keys to encrypt for.

Nobody is trusted because a server names him. A user is *pinned* by the hash of his first statement,
his fingerprint, once somebody has compared it or said that the first sight shall do; from there his
chain leads to every later key. Pins are in the keyring, and with the account's bundle they
go to its other machines.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from typing import Final

from protocol.codec.errors import MessageError
from protocol.codec.names import check_user_name
from protocol.codec.values import Value, changed
from protocol.records.records import (
    WRAP_ALGORITHMS,
    FileRecord,
    ReaderEntry,
    Statement,
    record_hash,
)
from protocol.wire.messages import Error
from protocol.wire.messages.sharing import Identity, Lookup
from sfsc.crypto.envelope import Recipient
from sfsc.crypto.primitives import PublicKey
from sfsc.errors import (
    BrokenChain,
    ConflictError,
    NotFound,
    Rollback,
    Untrusted,
    UsageError,
    WeakRecipient,
)
from sfsc.keys.home import DEFAULT_MIN_WRAP_ALG
from sfsc.keys.keyring import KeyringFile
from sfsc.log.account_log import AccountLog
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.trust.file_records import FileOwner, owner_from_chain
from sfsc.trust.identity_chain import follow_chain
from sfsc.trust.peer_state import PeerState
from sfsc.trust.server_log import REPORT

_MAX_TRIES: Final = 16


class Person(Value):
    """Another user, his chain followed from its first statement; `pinned` whether that is the one
    that was compared, or taken at first sight, earlier."""

    owner: FileOwner
    newest: Statement
    pinned: bool

    @property
    def user(self) -> str:
        return self.owner.user

    @property
    def fingerprint(self) -> bytes:
        """The hash of his first statement, 32 bytes."""
        return self.owner.first


class Contacts:
    """Finds other users over one session; a session's `readers`."""

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
        self._own_log = AccountLog(session)
        self._people: dict[tuple[str, bytes], Person] = {}
        self._shown: dict[str, bytes] = {}

    # --- who somebody is ----------------------------------------------------------------------

    def find(self, user: str) -> Person:
        """Whom the server shows as `user`, pinned or not.

        Raises `NotFound`, and `BrokenChain` where he is another than the one pinned.
        """
        self._check_other(user)
        pinned = self._pin(user)
        first = pinned or self._first_shown(user)
        return self._person(user, first)

    def trusted(self, user: str, *, first_use: bool = False) -> Person:
        """As `find`; one who was never pinned only with `first_use`, and is pinned from then on.

        Raises `Untrusted`.
        """
        person = self.find(user)
        if person.pinned:
            return person
        if not first_use:
            raise Untrusted(
                f"{user} was never verified; the server shows {person.fingerprint.hex()}",
                f"compare it with him, then `sfsc key verify {user} FINGERPRINT`, "
                "or say --trust-first-use",
                fingerprint=person.fingerprint.hex(),
            )
        return self._pinned(person)

    def verify(self, user: str, fingerprint: bytes) -> Person:
        """Pin `user`, whose fingerprint was compared by another way than this server.

        Raises `BrokenChain` where the server shows another, or another was pinned.
        """
        self._check_other(user)
        person = self.find(user)
        if person.fingerprint != fingerprint:
            raise BrokenChain(
                f"{user} is not who this fingerprint is of",
                "compare it again with him, by another way than this server",
                pinned=fingerprint.hex(),
                shown=person.fingerprint.hex(),
            )
        return person if person.pinned else self._pinned(person)

    def known(self, user: str, first: bytes) -> Person:
        """The user with this first statement, as a record that we signed names him."""
        return self._person(user, first)

    def _person(self, user: str, first: bytes) -> Person:
        found = self._people.get((user, first))
        if found is None:
            remembered = self._remembered.chain(user)
            if remembered and record_hash(remembered[0]) != first:
                self._remembered.forget_chain(user)
                remembered = ()
            chain = self._follow(user, first, remembered)
            self._remembered.remember_chain(user, chain)
            pinned = self._pin(user) == first
            found = Person(owner_from_chain(chain), Statement.parse(chain[-1]), pinned)
            self._people[user, first] = found
        return found

    def _follow(self, user: str, first: bytes, known: tuple[bytes, ...]) -> tuple[bytes, ...]:
        session = self._session
        with session.keeping_fork_evidence():
            chain = follow_chain(
                lambda asked: session.call(asked, Identity),
                session.trust,
                user,
                first,
                known,
            )
        session.link_receipts()
        return chain

    def _first_shown(self, user: str) -> bytes:
        # Once a session: it must stay the one that somebody was asked about.
        if user not in self._shown:
            reply = self._session.ask(Lookup(user, 1))
            missing = isinstance(reply, Error) and reply.code == "not-found"
            page = None if missing else expect_reply(reply, Identity)
            if page is None or not page.statements:
                hint = "ask the operator; of your own, a file that has a colon is YOU:NAME"
                raise NotFound(f"there is no user {user}", hint)
            self._shown[user] = record_hash(page.statements[0].statement)
        return self._shown[user]

    def _check_other(self, user: str) -> None:
        try:
            check_user_name(user)
        except MessageError as exc:
            raise UsageError(str(exc)) from exc
        if user == self._session.account.user:
            raise UsageError("that is you", "name another user")

    # --- pins ---------------------------------------------------------------------------------

    def _pin(self, user: str) -> bytes | None:
        return dict(self._file.contents.pins).get(user)

    def _pinned(self, person: Person) -> Person:
        """Keep whom we trust from now on."""
        for _ in range(_MAX_TRIES):
            keyring = self._file.contents
            pins = [pin for pin in keyring.pins if pin[0] != person.user]
            bisect.insort(pins, (person.user, person.fingerprint))
            try:
                self._file.save(changed(keyring, pins=tuple(pins)))
            except ConflictError:
                self._file.reload()  # another process of this machine was faster
                continue
            found = changed(person, pinned=True)
            self._people[person.user, person.fingerprint] = found
            return found
        raise ConflictError("other processes keep changing the keyring", "run the command again")

    # --- whom to encrypt for ------------------------------------------------------------------

    def recipient(self, person: Person) -> Recipient:
        """His present key. Raises `WeakRecipient`."""
        newest = person.newest
        if self._clock() >= newest.expires:
            raise WeakRecipient(
                f"the keys of {person.user} have expired", "he has to rotate them: `sfsc rotate`"
            )
        self.check_strength(person.user, newest.wrap_alg)
        return Recipient(person.user, PublicKey(newest.wrap_alg, newest.wrap_pub))

    def check_strength(self, whose: str, algorithm: str) -> None:
        """Raise `WeakRecipient` for a kind of key that is weaker than we allow."""
        if WRAP_ALGORITHMS.index(algorithm) < WRAP_ALGORITHMS.index(self._weakest):
            raise WeakRecipient(
                f"the key of {whose} is {algorithm}, weaker than {self._weakest}",
                f"a better one: `sfsc rotate --key-type {self._weakest}`",
            )

    def at_least(self, algorithm: str) -> str:
        """That kind of key, or the weakest that we allow."""
        return max(algorithm, self._weakest, key=WRAP_ALGORITHMS.index)

    def recipients(
        self, head: FileRecord | None, readers: tuple[ReaderEntry, ...]
    ) -> list[Recipient]:
        """Of a file's `readers` all whose grant and keys have not expired. `head` must not be older
        than what the log had at login: else a reader that another machine dropped would come back.

        Raises `WeakRecipient`, `Rollback`, `BrokenChain`.
        """
        if head is not None:
            self.check_newest(head)
        now = self._clock()
        found: list[Recipient] = []
        for user, first, expires in readers:
            person = self.known(user, first)
            if (expires and now >= expires) or now >= person.newest.expires:
                continue
            found.append(self.recipient(person))
        return found

    def follow(self) -> None:
        """Learn what the log had of our files at login: ahead of reading what `check_newest` is to
        judge, else it may have changed in between. Costs nothing the second time."""
        self._own_log.follow_to_login()

    def check_newest(self, head: FileRecord) -> None:
        """Raise `Rollback` where the log has a newer record of a file of ours than `head`."""
        self._own_log.follow_to_login()
        logged = self._session.state.logged_revision(head.file_id)
        if head.rev < logged:
            raise Rollback(
                f"the server shows revision {head.rev} of a file whose log has {logged}",
                REPORT,
            )

    def forget(self) -> None:
        """Ask the server anew who is who: somebody's keys have changed."""
        self._people.clear()


def parse_fingerprint(text: str) -> bytes:
    """The 32 bytes that a person typed as hex, spaces or not. Raises `UsageError`."""
    try:
        fingerprint = bytes.fromhex("".join(text.split()))
    except ValueError as exc:
        raise UsageError("a fingerprint is 64 hex digits", "see `sfsc key show`") from exc
    if len(fingerprint) != 32:
        raise UsageError("a fingerprint is 64 hex digits", "see `sfsc key show`")
    return fingerprint
