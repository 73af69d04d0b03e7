"""Quota that a change takes for what it adds to its owner's files.

Every change that adds bytes takes quota for them: content, sidecar and leaf hashes. Not refused are
those that a user needs to get below the quota or to stay secure: they delete, purge or drop
readers, or renew wraps. What they add counts all the same. To encrypt a version again is granted
within twice the quota.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from protocol.codec.merkle import HASH_SIZE, PIECE_SIZE
from sfsd.errors import Refused
from sfsd.operations.files import signed_size
from sfsd.rules.context import ServerContext
from sfsd.rules.users import User
from sfsd.state.documents import SidecarWrite
from sfsd.state.file_index import OwnerFiles, holding_of
from sfsd.state.quota import Ledger
from sfsd.state.uploads import Upload
from sfsd.storage.json_files import Sidecar

_OVERHEAD: Final = 1024
_WRAP_NAMES: Final = 128
"""Bytes, halved, of the user, key and algorithm of a wrap in a sidecar, with their JSON."""


class QuotaClaim:
    """Quota for the sidecars `written`, their contents and leaf hashes, less what they replace.

    The committer's thread takes it. It is given back once the files are held or were not stored.
    With a `content_id`, that of a new content, no other content may have this id. An `upload` that
    has the content may have reserved its bytes already. Without a quota (a `limit` of 0) nothing is
    counted, and the ids of stored contents are not known.
    """

    def __init__(
        self,
        ledger: Ledger,
        limit: int,
        written: Sequence[SidecarWrite],
        content_id: bytes = b"",
        upload: Upload | None = None,
        *,
        encrypts_again: bool = False,
    ) -> None:
        self._ledger = ledger
        self._limit = limit
        self._written = written
        self._content_id = content_id
        self._upload = upload
        self._encrypts_again = encrypts_again
        self._reserved = 0

    def acquire(self) -> None:
        """Take the quota. Raises `Refused` if it is exceeded or the content id is in use."""
        if not self._limit:
            return
        coming = [holding_of(one.value, one.size) for one in self._written]
        uploaded = 0 if self._upload is None else self._upload.reserved
        if self._content_id:
            self._ledger.announce(self._content_id)
        try:
            self._reserved = self._ledger.reserve_growth(coming, self._limit, reserved=uploaded)
        except Refused as exc:
            self._ledger.retract(self._content_id)
            if not self._encrypts_again:
                raise
            why = "twice the quota, to encrypt a version again; purge another version"
            raise Refused(exc.code, f"{exc.cause}: {why}") from exc

    def release(self) -> None:
        """Release the reservation."""
        if self._limit:
            self._ledger.retract(self._content_id)
            self._ledger.release(self._reserved)


def claim_growth(
    server: ServerContext,
    user: User,
    files: OwnerFiles,
    written: Sequence[SidecarWrite],
    *,
    content: int = 0,
    content_id: bytes = b"",
    upload: Upload | None = None,
    encrypts_again: bool = False,
) -> QuotaClaim:
    """Return the claim of a change by `user`, the owner of `files`; abandoned uploads give way if
    it needs their room.

    `content` is the bytes of a ciphertext that came with its record. What encrypts a version again
    may take twice the quota.
    """
    quota = user.account.value.quota
    limit = 2 * quota if encrypts_again else quota
    ledger = files.loaded_ledger() if limit else files.ledger
    if limit:
        most = content + sum(_most_bytes(one.value) for one in written)
        server.uploads.give_way(user.name, ledger, most, limit)
    return QuotaClaim(ledger, limit, written, content_id, upload, encrypts_again=encrypts_again)


def _most_bytes(sidecar: Sidecar) -> int:
    """Return at least the bytes of a sidecar and of the leaf hashes, without encoding it."""
    head = 0 if sidecar.head is None else signed_size(sidecar.head)
    wraps = sum(_WRAP_NAMES + len(wrap.wrapped) for wrap in sidecar.wraps)
    leaves = HASH_SIZE * (1 + (sidecar.content_record.ciphertext_size or 0) // PIECE_SIZE)
    parts = signed_size(sidecar.content) + head + len(sidecar.metadata or b"") + wraps + leaves
    return _OVERHEAD + 2 * parts  # base64 takes four thirds
