"""What this client remembers of other people, in the same file as the rest (`state`): how far each
one's identity chain was followed, and of each file that they share the newest record that was
verified, so that nobody can turn back time there either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

from protocol.codec.values import Value
from protocol.records.records import record_hash
from sfsc.trust.file_records import KnownRevision, VerifiedFile
from sfsc.trust.state import ClientState

_RECEIVED: Final = "received"


class KnownSharedFile(Value):
    """A file of `owner`: (rev, hash) of its newest verified record, and what a listing shows."""

    owner: str
    file_id: str
    rev: int
    hash: bytes
    entry: bytes | None

    @classmethod
    def from_file(cls, file: VerifiedFile, entry: bytes | None) -> KnownSharedFile:
        """A verified file, by its last record."""
        head = file.head
        return cls(head.owner, head.file_id, head.rev, record_hash(file.head_body), entry)

    @property
    def revision(self) -> KnownRevision:
        return KnownRevision(self.rev, self.hash)


class PeerState:
    """Other people, as far as this client knows them. Methods may raise `LocalError`."""

    def __init__(self, state: ClientState) -> None:
        self._state = state

    def chain(self, user: str) -> tuple[bytes, ...]:
        """The statements of `user` that were followed; none where he is not known, or where they
        are others than were remembered under this keyring's key: their signatures are not kept, and
        what is known is not verified again."""
        rows = self._state.fetch_rows(
            "SELECT body FROM statement WHERE user = ? ORDER BY n", (user,)
        )
        chain, name = tuple(bytes(body) for (body,) in rows), _chain_name(user)
        vouched = self._state.check_verification_mac(
            self._state.meta_value(name), name, _digest(chain)
        )
        return chain if vouched else ()

    def remember_chain(self, user: str, chain: tuple[bytes, ...]) -> None:
        """A chain that was followed from what was known; nothing where as much or more is here."""
        with self._state.transaction():
            known = self.chain(user)
            if len(known) >= len(chain) or chain[: len(known)] != known:
                return  # of two that part, who asks next finds out
            if not known:
                self.forget_chain(user)
            for n, body in enumerate(chain[len(known) :], len(known) + 1):
                self._state.execute("INSERT INTO statement VALUES (?, ?, ?)", (user, n, body))
            name = _chain_name(user)
            voucher = self._state.verification_mac(name, _digest(chain))
            self._state.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, voucher))

    def forget_chain(self, user: str) -> None:
        """What was known of somebody who was never pinned."""
        self._state.execute("DELETE FROM statement WHERE user = ?", (user,))
        self._state.execute("DELETE FROM meta WHERE key = ?", (_chain_name(user),))

    def known_revisions(
        self, owner: str, file_ids: Sequence[str]
    ) -> dict[str, KnownRevision | None]:
        """As `ClientState.known`, of files that `owner` shares."""
        query = "SELECT file_id, rev, hash FROM shared WHERE owner = ? AND"
        return self._state.query_revisions(query, (owner,), file_ids)

    def shared_files(self) -> Iterator[KnownSharedFile]:
        """Every file of others that is known, in no order."""
        for row in self._state.fetch_rows("SELECT owner, file_id, rev, hash, entry FROM shared"):
            yield self._from_row(*row)

    def remember_file(self, known: KnownSharedFile) -> None:
        """The newest record of a file of another's, verified; an older one changes nothing."""
        with self._state.transaction():
            cached = (
                known.entry is not None and self._state.is_current
            )  # as `ClientState.remember_files`
            sealed = self._state.seal(known.entry or b"", _name(known)) if cached else None
            self._state.execute(
                "INSERT INTO shared VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " rev = excluded.rev, hash = excluded.hash,"
                " entry = coalesce(excluded.entry, CASE WHEN hash = excluded.hash THEN entry END)"
                " WHERE excluded.rev >= rev",
                (known.owner, known.file_id, known.rev, known.hash, sealed),
            )

    def received_size(self) -> int:
        """Log size up to which the entries of shared files are complete; 0 at first."""
        return self._state.meta_number(_RECEIVED)

    def remember_received_size(self, size: int) -> None:
        """All changes of shared files in the first `size` entries of the log are known."""
        self._state.raise_meta_number(_RECEIVED, size)

    def _from_row(
        self, owner: str, file_id: str, rev: int, digest: bytes, sealed: bytes | None
    ) -> KnownSharedFile:
        known = KnownSharedFile(owner, file_id, rev, bytes(digest), None)
        if sealed is None:
            return known
        entry = self._state.unseal(bytes(sealed), _name(known))
        return KnownSharedFile(owner, file_id, rev, bytes(digest), entry)


def _chain_name(user: str) -> str:
    """What the voucher of a chain stands under; no file_id has a colon."""
    return f"chain:{user}"


def _digest(chain: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join([record_hash(body) for body in chain])).digest()


def _name(known: KnownSharedFile) -> str:
    return f"{known.owner}:{known.file_id}"
