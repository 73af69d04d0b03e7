"""Journals that resume uploads which a crash or a lost network has cut: HOME/uploads, mode 0600.

A journal holds the content's key, the id of the upload, and the leaf hash of every segment that may
have left this machine. **A hash is on the disk before its segment is sent**, so a segment without
one was never sent, and `Encryptor.resume` makes one with a hash again only if it is the same. The
source must also have the size and times that it had. Otherwise the upload is given up, and the next
one has a fresh key: no nonce ever serves two different segments.

    file     u16be(n) ‖ sealed header[n] ‖ entry[48]…
    header   AES-256-GCM under a key from the state key, bound to server, user and file_id
    entry i  AES-256-GCM(the journal's own random key, nonce = u96be(i), leaf hash of segment i)

A process holds the lock of its journal as long as it sends, so that no other one continues it.
Somebody who can put an older copy of a journal in its place, with fewer hashes, would also have to
forge the times of the changed source. Systems without such locks (Windows) keep no journals.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final

from protocol.codec.errors import EncodingError, MessageError
from protocol.codec.fields import Between, Bytes16, Bytes32, Count, Exactly, Struct
from protocol.codec.values import field
from sfsc.atomicfile import make_folder, sync_to_disk
from sfsc.closing import Closing
from sfsc.crypto.envelope import ContentKey
from sfsc.crypto.padding import padded_size
from sfsc.crypto.primitives import (
    TAG_SIZE,
    Aead,
    new_key,
    open_sealed,
    seal,
    state_key,
    upload_journal_key,
)
from sfsc.crypto.segments import HEADER_SIZE, Encryptor, ciphertext_size, segment_count
from sfsc.errors import Tampered
from sfsc.session.session import Session

if sys.platform != "win32":
    import fcntl

FOLDER: Final = "uploads"
RESUMABLE: Final = 8 << 20
"""Bytes of the smallest plaintext whose upload is resumed: a shorter one is sent again faster than
its journal is kept."""
LIFETIME: Final = 24 * 3600
"""Seconds for which a server keeps an upload without new bytes; a journal serves no longer."""
_MAX_HEADER: Final = 1024
_HASH_SIZE: Final = 32
_ENTRY_SIZE: Final = _HASH_SIZE + TAG_SIZE
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL
_OPEN: Final = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
_Nanoseconds = Annotated[int, Between(-(2**63), 2**63 - 1)]


class JournalLost(Exception):
    """A journal cannot be written: the upload starts again, under a new key and without one."""


class _Header(Struct):
    """`size` is the source's in bytes; `mtime` and `ctime` are its times in nanoseconds.
    `pad` tells whether the content is padded."""

    AS_MAP: ClassVar[bool] = True
    LIMIT: ClassVar[int] = _MAX_HEADER

    upload: Bytes16
    content_id: Bytes16
    dek: Bytes32 = field(repr=False)
    blob_header: Annotated[bytes, Exactly(HEADER_SIZE)]
    entry_key: Bytes32 = field(repr=False)
    size: Count
    mtime: _Nanoseconds
    ctime: _Nanoseconds
    pad: bool


class UploadJournal(Closing):
    """An open journal, locked for this process. Closing it keeps the file."""

    def __init__(self, path: Path, descriptor: int, header: _Header, leaves: list[bytes]) -> None:
        """Use `UploadJournals`."""
        self._path = path
        self._descriptor = descriptor
        self._header = header
        self._leaves = leaves
        self._entries = Aead(header.entry_key)

    @property
    def upload(self) -> bytes:
        """Id of the upload on the server."""
        return self._header.upload

    @property
    def key(self) -> ContentKey:
        return ContentKey(self._header.content_id, self._header.dek)

    @property
    def count(self) -> int:
        """Number of segments that may have left this machine."""
        return len(self._leaves)

    def is_of(self, source: tuple[int, int, int] | None, *, pad: bool) -> bool:
        """Return whether the source has the same (size, mtime, ctime) as when it was first read,
        and is to be stored with the same padding."""
        header = self._header
        return (source, pad) == ((header.size, header.mtime, header.ctime), header.pad)

    def encryptor(self) -> Encryptor:
        """Return an encryptor that makes the same segments again, and then the others."""
        return self.key.resume_encryptor(self._header.blob_header, self._leaves)

    def add(self, first: int, leaves: Sequence[bytes]) -> None:
        """Store the leaf hashes of the segments from number `first` on, durably; those that are
        stored already are left out. Raises `JournalLost`."""
        new = leaves[len(self._leaves) - first :]
        if not new:
            return
        data = bytearray(_ENTRY_SIZE * len(new))
        for place, leaf in enumerate(new):
            entry = memoryview(data)[_ENTRY_SIZE * place : _ENTRY_SIZE * (place + 1)]
            self._entries.seal_into(_nonce(len(self._leaves) + place), leaf, entry)
        try:
            _write_all(self._descriptor, data)
            sync_to_disk(self._descriptor)
        except OSError as exc:
            raise JournalLost from exc
        self._leaves += new

    def discard(self) -> None:
        """Remove the file. Idempotent."""
        if self._descriptor >= 0:
            _remove(self._path, self._descriptor)
            self.close()

    def close(self) -> None:
        """Close the file and release its lock. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class UploadJournals:
    """The journals in the home folder of a session's account. No method raises an error of the
    system: an upload works without a journal."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._folder = session.state.home / FOLDER

    def _seal(self, file_id: str) -> tuple[bytes, bytes]:
        """Return the key that seals headers, and what that of a file is bound to."""
        keyring = self._session.keyring
        key = upload_journal_key(state_key(keyring.device.xwing_private))
        account = keyring.server_id + keyring.user.encode()
        return key, b"sfs/v2/upload\0" + account + b"\0" + file_id.encode()

    def has(self, file_id: str) -> bool:
        """Return whether there is a journal of the file `file_id`, valid or not."""
        return os.path.lexists(self._folder / file_id)

    def find(self, file_id: str) -> UploadJournal | None:
        """Open the journal of a file. Return None if there is none, or if another process uses it.
        One that is malformed, or of other keys, is removed."""
        path = self._folder / file_id
        try:
            descriptor = _open_locked(path)
        except OSError:
            return None
        if descriptor is None:
            return None
        try:
            return self._read(path, descriptor, file_id)
        except (Tampered, EncodingError, MessageError):
            _remove(path, descriptor)
        except OSError:
            pass
        os.close(descriptor)
        return None

    def create(
        self,
        file_id: str,
        upload: bytes,
        key: ContentKey,
        encryptor: Encryptor,
        source: tuple[int, int, int],
        *,
        pad: bool,
    ) -> UploadJournal | None:
        """Begin the journal of an `upload` of a source of this (size, mtime, ctime), durably.
        Return None if the system or another process prevents it."""
        keys = key.content_id, key.dek, encryptor.header, new_key()
        header = _Header(upload, *keys, *source, pad)
        seal_key, context = self._seal(file_id)
        sealed = seal(seal_key, header.encode(), context)
        path = self._folder / file_id
        temporary = path.with_name(f".{file_id}.{os.urandom(8).hex()}")
        try:
            make_folder(self._folder)
            self._remove_expired()
            before = _open_locked(path) if self.has(file_id) else -1
            if before is None:
                return None
            try:
                descriptor = os.open(temporary, _NEW, 0o600)
                try:
                    _lock(descriptor)
                    _write_all(descriptor, len(sealed).to_bytes(2) + sealed)
                    sync_to_disk(descriptor)
                    temporary.replace(path)
                except BaseException:
                    os.close(descriptor)
                    temporary.unlink(missing_ok=True)
                    raise
            finally:
                if before >= 0:
                    os.close(before)
        except OSError:
            return None
        return UploadJournal(path, descriptor, header, [])

    def _read(self, path: Path, descriptor: int, file_id: str) -> UploadJournal:
        """Read a locked journal. Raises `Tampered`, `EncodingError`, `MessageError` or OSError."""
        with open(descriptor, "rb", closefd=False) as file:
            size = os.fstat(descriptor).st_size
            length = int.from_bytes(file.read(2))
            sealed = file.read(min(length, 2 * _MAX_HEADER))
            seal_key, context = self._seal(file_id)
            header = _Header.parse(open_sealed(seal_key, sealed, context))
            count, torn = divmod(size - 2 - length, _ENTRY_SIZE)
            # An incomplete entry is of a segment that was not sent. But nothing tells a crash from
            # a change by somebody else, so anything odd ends the upload.
            if torn or count > segment_count(ciphertext_size(padded_size(header.size))):
                raise Tampered("the journal of an upload is malformed")
            entries, leaf = Aead(header.entry_key), bytearray(_HASH_SIZE)
            leaves: list[bytes] = []
            for index in range(count):
                entries.open_into(_nonce(index), file.read(_ENTRY_SIZE), leaf)
                leaves.append(bytes(leaf))
        return UploadJournal(path, descriptor, header, leaves)

    def _remove_expired(self) -> None:
        """Remove the files of uploads that the server has dropped, and of writers that were
        killed. Raises OSError."""
        for path in self._folder.iterdir():
            if time.time() - path.lstat().st_mtime > LIFETIME:
                descriptor = _open_locked(path)
                if descriptor is not None:
                    _remove(path, descriptor)
                    os.close(descriptor)


def _nonce(index: int) -> bytes:
    return index.to_bytes(12)


def _open_locked(path: Path) -> int | None:
    """Open a journal and lock it. Return None if another process holds the lock, or has removed or
    replaced the file meanwhile. Raises OSError."""
    descriptor = os.open(path, _OPEN)
    try:
        _lock(descriptor)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            os.lseek(descriptor, 0, os.SEEK_SET)
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> None:
    """Lock an open file. Raises `BlockingIOError` if another process has, and OSError on a system
    without such locks."""
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        raise OSError("no locks")


def _remove(path: Path, descriptor: int) -> None:
    """Remove the file at `path` if it is the open one. Errors of the system leave it to
    `UploadJournals.create`."""
    try:
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            path.unlink()
    except OSError:
        pass


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
