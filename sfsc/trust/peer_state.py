"""State about other users, in the same file as the rest (`state`): how far each identity chain was
verified, and the newest verified record of each shared file, to detect rollback there too."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final

from protocol.codec.errors import EncodingError, MessageError
from protocol.codec.fields import Count, Struct
from protocol.codec.values import Value
from protocol.records.records import record_hash
from sfsc.errors import LocalError
from sfsc.trust.file_records import Entry, KnownRevision, VerifiedFile
from sfsc.trust.state import ClientState

_RECEIVED: Final = "received"


class KnownSharedFile(Value):
    """A file shared by `owner`: (rev, hash) of its newest verified record, and its cached listing
    entry."""

    owner: str
    file_id: str
    rev: int
    hash: bytes
    entry: bytes | None

    @classmethod
    def from_file(cls, file: VerifiedFile, entry: bytes | None) -> KnownSharedFile:
        """Build from a verified file and its listing entry."""
        head = file.head
        return cls(head.owner, head.file_id, head.rev, record_hash(file.head_body), entry)

    @property
    def revision(self) -> KnownRevision:
        return KnownRevision(self.rev, self.hash)


class SharedEntry(Struct):
    """The listing entry of a file of another user, as it is cached, and the end of the access in
    Unix seconds (0 for none)."""

    AS_MAP: ClassVar[bool] = True

    entry: Entry
    expires: Count

    @classmethod
    def unpack(cls, packed: bytes) -> SharedEntry:
        """Decode the output of `encode`. Raises `LocalError`."""
        try:
            return cls.parse(packed)
        except (EncodingError, MessageError) as exc:
            raise LocalError(f"the cached entry of a shared file is malformed: {exc}") from exc


class PeerState:
    """The client's memory of other users. Methods may raise `LocalError`."""

    def __init__(self, state: ClientState) -> None:
        self._state = state

    def chain(self, user: str) -> tuple[bytes, ...]:
        """Return the verified statements of `user`. Empty if the user is unknown, or if the stored
        chain was not written under this keyring's key: signatures are not stored, and a known chain
        is not verified again."""
        rows = self._state.fetch_rows(
            "SELECT body FROM statement WHERE user = ? ORDER BY n", (user,)
        )
        chain, name = tuple(body for (body,) in rows), _chain_name(user)
        mac = self._state.meta_value(name)
        return chain if self._state.check_verification_mac(mac, name, _digest(chain)) else ()

    def remember_chain(self, user: str, chain: tuple[bytes, ...]) -> None:
        """Store a chain verified from the known one; ignored if as much or more is known."""
        with self._state.transaction():
            known = self.chain(user)
            if len(known) >= len(chain) or chain[: len(known)] != known:
                return  # if two chains diverge, the next verification detects it
            if not known:
                self.forget_chain(user)
            new = [(user, n, body) for n, body in enumerate(chain, 1) if n > len(known)]
            self._state.execute_many("INSERT INTO statement VALUES (?, ?, ?)", new)
            name = _chain_name(user)
            self._state.set_meta(name, self._state.verification_mac(name, _digest(chain)))

    def forget_chain(self, user: str) -> None:
        """Delete the chain of a user who was never pinned."""
        self._state.execute("DELETE FROM statement WHERE user = ?", (user,))
        self._state.execute("DELETE FROM meta WHERE key = ?", (_chain_name(user),))

    def known_revisions(
        self, owner: str, file_ids: Sequence[str]
    ) -> dict[str, KnownRevision | None]:
        """Return the known revisions of files shared by `owner`; see `ClientState.file`."""
        query = "SELECT file_id, rev, hash, NULL AS vouched FROM shared WHERE owner = ? AND"
        return self._state.query_revisions(query, (owner,), file_ids)

    def shared_files(self) -> Iterator[KnownSharedFile]:
        """Yield every known file of other users, in no order."""
        rows = self._state.fetch_rows("SELECT owner, file_id, rev, hash, entry FROM shared")
        for owner, file_id, rev, digest, sealed in rows:
            name = _entry_name(owner, file_id)
            entry = None if sealed is None else self._state.unseal(sealed, name)
            yield KnownSharedFile(owner, file_id, rev, digest, entry)

    def remember_file(self, known: KnownSharedFile) -> None:
        """Store the newest verified record of a shared file; an older one changes nothing."""
        with self._state.transaction():
            sealed = None
            if known.entry is not None and self._state.is_current:  # as in `remember_files`
                sealed = self._state.seal(known.entry, _entry_name(known.owner, known.file_id))
            self._state.execute(
                "INSERT INTO shared VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " rev = excluded.rev, hash = excluded.hash,"
                " entry = coalesce(excluded.entry, CASE WHEN hash = excluded.hash THEN entry END)"
                " WHERE excluded.rev >= rev",
                (known.owner, known.file_id, known.rev, known.hash, sealed),
            )

    def received_size(self) -> int:
        """Return the log size up to which the entries of shared files are complete; 0 at first."""
        return self._state.meta_number(_RECEIVED)

    def remember_received_size(self, size: int) -> None:
        """Record that all changes of shared files in the first `size` log entries are known."""
        self._state.raise_meta_number(_RECEIVED, size)


def _chain_name(user: str) -> str:
    """Return the key under which a chain's MAC is stored; no file_id contains a colon."""
    return f"chain:{user}"


def _digest(chain: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join([record_hash(body) for body in chain])).digest()


def _entry_name(owner: str, file_id: str) -> str:
    return f"{owner}:{file_id}"
