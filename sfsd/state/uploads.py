"""Uploads that are not yet a version of a file.

An upload belongs to the user, not to the session: it survives a lost connection, and is dropped
after a day without bytes. Its bytes count as quota from the moment they are announced or arrive.
Once its session has ended, the client may never come back. Then a put of the same file from the
same address takes its place, and after a minute without bytes it gives way to any change of its
owner that would exceed the quota, or the number of uploads.
Pieces are pipelined and written by several threads at once, so within the client's window they may
arrive in any order. The client is told up to where they are complete.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable
from typing import Final, Protocol

from protocol.codec.encoding import Buffer
from protocol.wire.messages.base import PIECE
from sfsd.errors import IncompleteError, Refused, StagingClosedError, StoreRefusedError
from sfsd.fs.descriptors import DescriptorBudget
from sfsd.state.file_index import OwnerFiles
from sfsd.state.quota import Ledger
from sfsd.storage.upload_file import UploadFile

LIFETIME: Final = 24 * 3600
"""Seconds without bytes after which an upload is dropped: until then a client resumes it."""
ABANDONED: Final = 60
"""Seconds without bytes after which an upload whose session has ended gives way to a put."""
PER_USER: Final = 64
PER_UPLOAD: Final = 2
"""Descriptors of one upload: it may also have one for direct I/O."""
REPLACING: Final = 2
"""Uploads of one user that re-encrypt a version: two machines may do it at once."""
WINDOW: Final = 16 * 1024 * 1024
"""Unanswered bytes that a client may have on one connection (Limits.window)."""
_SETTLE: Final = 10.0


class UploadSession(Protocol):
    """The session that opened or resumed an upload: the user's IP address, and whether the
    connection is closed."""

    @property
    def user(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def ended(self) -> bool: ...


class Upload:
    """One upload: `staged` has the bytes, of which `reserved` count as quota. `replaces` is the
    version that it re-encrypts, 0 for a new one. `session` opened it, or resumed it last."""

    def __init__(
        self,
        upload_id: bytes,
        files: OwnerFiles,
        file_id: str,
        size: int,
        staged: UploadFile,
        session: UploadSession,
        replaces: int = 0,
    ) -> None:
        self.upload_id = upload_id
        self.session = session
        self.files = files
        self.file_id = file_id
        self.size = size
        self.staged = staged
        self.replaces = replaces
        self.last_bytes = 0.0
        self._reserved = 0
        self._end: int | None = size or None
        self._got: set[int] = set()
        self._writing: set[int] = set()
        self._committing = False
        self._closed = False
        self._condition = threading.Condition()

    def reserve(self, size: int, quota: int) -> None:
        """Reserve `size` bytes in total. Raises `Refused`."""
        if self.replaces:
            return  # it replaces a version of the same size
        with self._condition:
            if self._closed:  # closed during a write: nothing would release the bytes
                raise Refused("upload-lost", "the upload was dropped")
            more = size - self._reserved
            if more > 0:
                self.files.ledger.reserve(more, quota)
                self._reserved = size

    def write(self, offset: int, data: Buffer, quota: int) -> int:
        """Write one piece; return how many bytes from the start are complete. A piece that is
        stored already is not written again. Raises `Refused`, StoreRefusedError."""
        index, length = offset // PIECE, len(memoryview(data))
        with self._condition:
            if not self._begin(index, offset, length):
                return self.staged.received
        try:
            self.reserve(offset + length, quota)
            self.staged.write(index, data)
        except StagingClosedError as exc:
            raise Refused("upload-lost", "the upload was dropped") from exc
        else:
            with self._condition:
                self._got.add(index)
        finally:
            with self._condition:
                self._writing.discard(index)
                self._condition.notify_all()
        return self.staged.received

    def _begin(self, index: int, offset: int, length: int) -> bool:
        """Return whether this piece must be written. Raises `Refused` for an invalid one."""
        if self._closed or self._committing:
            raise Refused("upload-lost", "the upload was committed or dropped")
        if offset % PIECE or not length:
            raise Refused(
                "bad-request", "the offset is not a multiple of 1 MiB, or the piece is empty"
            )
        end = offset + length
        if offset >= self.staged.received + WINDOW:
            raise Refused("bad-request", "the piece is beyond the window")
        if self._end is not None and (end > self._end or (length < PIECE and end != self._end)):
            raise Refused("bad-request", "the piece is past the end, or short before the end")
        if index in self._got:
            return False
        if index in self._writing:
            raise Refused("busy", "this piece is being written")
        if length < PIECE:
            if any(index < other for other in self._got | self._writing):
                raise Refused("bad-request", "a short piece is not the last")
            self._end = end
        self._writing.add(index)
        return True

    def wait_for_writes(self) -> int:
        """Wait for running writes; return how many bytes from the start are complete."""
        with self._condition:
            if not self._condition.wait_for(lambda: not self._writing, _SETTLE):
                raise Refused("busy", "pieces are still being written")
            return self.staged.received

    def begin_commit(self) -> None:
        """Start a commit: no other commit, no more bytes. Raises `Refused`."""
        self.wait_for_writes()
        with self._condition:
            if self._committing:
                raise Refused("busy", "the upload is being committed")
            if self._closed:
                raise Refused("upload-lost", "the upload was dropped")
            self._committing = True

    def seal(self) -> tuple[int, list[bytes], bytes]:
        """Seal it; return (bytes, leaf hashes, segments_root). Raises `Refused` if incomplete."""
        try:
            size, leaves = self.staged.size, self.staged.leaves
        except IncompleteError as exc:
            raise Refused("bad-request", f"the upload is incomplete: {exc}") from exc
        if self.size and size != self.size:
            raise Refused("bad-request", f"{size} of the announced {self.size} bytes arrived")
        # Synced here, on a pool thread: the committer, which syncs again, must not wait for a disk.
        self.staged.seal()
        return size, leaves, self.staged.root

    def end_commit(self) -> None:
        """End a failed commit, which may be retried."""
        with self._condition:
            self._committing = False

    def close_unless_committing(self) -> bool:
        """Close unless a running commit may have logged it; return whether it closed."""
        with self._condition:
            self._closed = self._closed or not self._committing
            return not self._committing

    def finish(self) -> None:
        """Release the reservation: the bytes are held by a version, or dropped."""
        with self._condition:
            self._closed = True
            reserved, self._reserved = self._reserved, 0
        self.files.ledger.release(reserved)

    @property
    def reserved(self) -> int:
        """Bytes that count as quota."""
        return self._reserved

    @property
    def committing(self) -> bool:
        """Whether a commit of this upload is running."""
        return self._committing


class UploadRegistry:
    """All uploads of the daemon. Safe on several threads."""

    def __init__(
        self,
        stage: Callable[[bytes, int], UploadFile],
        share: DescriptorBudget,
        clock: Callable[[], float],
    ) -> None:
        self._stage = stage
        self._share = share
        self._clock = clock
        self._lock = threading.Lock()
        self._uploads: dict[str, dict[bytes, Upload]] = {}  # by owner, then by upload_id

    def open_upload(
        self,
        session: UploadSession,
        files: OwnerFiles,
        file_id: str,
        size: int,
        quota: int,
        replaces: int = 0,
    ) -> Upload:
        """Begin an upload of `size` bytes, 0 if unknown. Raises `Refused`, StoreError."""
        if not replaces:
            self.make_room(session, files, file_id, size, quota)
        own = self._of_user(files.owner)
        if len(own) >= PER_USER and self._drop_abandoned(files.owner):
            own = self._of_user(files.owner)
        if len(own) >= PER_USER:
            raise Refused("busy", f"{PER_USER} uploads are open; commit or abort one")
        # These bytes are outside of every quota, so the number of such versions is limited. A
        # client that died starts again, and the abandoned upload is dropped.
        replacing = [one for one in own if one.replaces and not one.committing]
        if replaces and len(replacing) >= REPLACING:
            self._drop_unless_committed(min(replacing, key=lambda one: one.last_bytes))
        if not self._share.acquire(PER_UPLOAD):
            raise Refused("busy", "too many files are open; try again")
        try:
            upload = self._begin(session, files, file_id, size, quota, replaces)
        except BaseException:
            self._share.release(PER_UPLOAD)
            raise
        with self._lock:
            self._uploads.setdefault(files.owner, {})[upload.upload_id] = upload
        return upload

    def _begin(
        self,
        session: UploadSession,
        files: OwnerFiles,
        file_id: str,
        size: int,
        quota: int,
        replaces: int,
    ) -> Upload:
        upload_id = secrets.token_bytes(16)
        staged = self._stage(upload_id, size)
        upload = Upload(upload_id, files, file_id, size, staged, session, replaces)
        upload.last_bytes = self._clock()
        try:
            upload.reserve(size, quota)
        except Refused:
            upload.staged.discard()
            raise
        return upload

    def get(self, user: str, upload_id: bytes) -> Upload:
        """Return an upload. Raises `Refused` if `user` has no such upload, or it expired."""
        with self._lock:
            upload = self._uploads.get(user, {}).get(upload_id)
        if upload is None or (self._is_idle(upload) and self._drop_unless_committed(upload)):
            raise Refused(
                "upload-lost", "no such upload: it was committed or dropped, or never existed"
            )
        return upload

    def touch(self, upload: Upload) -> None:
        upload.last_bytes = self._clock()

    def make_room(
        self, session: UploadSession, files: OwnerFiles, file_id: str, size: int, quota: int
    ) -> None:
        """Drop uploads whose session has ended, for a put of `size` bytes to `file_id`: earlier
        attempts of this client, and others if the quota would be exceeded."""
        for upload in self._of_user(files.owner):
            of_client = upload.session.ended and upload.session.address == session.address
            if of_client and upload.file_id == file_id and not upload.replaces:
                self._drop_unless_committed(upload)
        if quota:
            self.give_way(files.owner, files.loaded_ledger(), size, quota)

    def give_way(self, owner: str, ledger: Ledger, size: int, quota: int) -> None:
        """Drop abandoned uploads of the owner if `size` more bytes would exceed the quota."""
        if ledger.used + size > quota:
            self._drop_abandoned(owner)

    def abort_session(self, session: UploadSession) -> None:
        """Drop every upload that `session` opened or resumed, except those being committed."""
        for upload in self._of_user(session.user):
            if upload.session is session:
                self._drop_unless_committed(upload)

    def _drop_abandoned(self, owner: str) -> int:
        """Drop the owner's uploads whose session has ended, after a minute without bytes. Return
        how many."""
        oldest = self._clock() - ABANDONED
        left = [
            one
            for one in self._of_user(owner)
            if one.session.ended and one.last_bytes < oldest and not one.committing
        ]
        return sum([self._drop_unless_committed(upload) for upload in left])

    def _of_user(self, user: str) -> list[Upload]:
        with self._lock:
            return list(self._uploads.get(user, {}).values())

    def forget(self, upload: Upload) -> None:
        """Forget an upload that became a version and whose descriptors are closed."""
        known = self._remove(upload)
        upload.finish()
        if known:
            self._share.release(PER_UPLOAD)

    def abort(self, upload: Upload) -> None:
        """Drop an upload and its bytes. Raises `Refused` while it is being committed."""
        upload.begin_commit()
        self._drop(upload)

    def drop_idle(self) -> int:
        """Drop uploads without bytes for `LIFETIME`; return how many. Called every few seconds."""
        with self._lock:
            every = [one for own in self._uploads.values() for one in own.values()]
        return sum([self._drop_unless_committed(one) for one in every if self._is_idle(one)])

    def _is_idle(self, upload: Upload) -> bool:
        return upload.last_bytes < self._clock() - LIFETIME and not upload.committing

    def _drop_unless_committed(self, upload: Upload) -> bool:
        """Drop the upload unless a commit began meanwhile; return whether it was dropped."""
        if not upload.close_unless_committing():
            return False
        self._drop(upload)
        return True

    def _drop(self, upload: Upload) -> None:
        known = self._remove(upload)
        upload.finish()
        try:
            # A file that remains is in staging/; the next start drops it, because no entry names
            # it.
            with contextlib.suppress(StoreRefusedError):
                upload.staged.discard()
        finally:  # a failed close frees the descriptor too
            if known:
                self._share.release(PER_UPLOAD)

    def _remove(self, upload: Upload) -> bool:
        """Remove the upload; return whether it was present."""
        with self._lock:
            own = self._uploads.get(upload.files.owner, {})
            known = own.pop(upload.upload_id, None) is not None
            if known and not own:
                del self._uploads[upload.files.owner]
            return known
