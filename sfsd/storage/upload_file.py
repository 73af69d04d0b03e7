"""Files of running uploads: one in staging/ each, hashed piece by piece as it arrives.

Pool threads hash pieces in parallel and write them one after the other. The bytes go to the disk
(`sfsd.fs.direct_io`), or their write-back starts at once, so that the sync of the commit is short.
A file in staging/ that no log entry names is removed at the next start: an upload survives a lost
connection, but not a restart of the daemon.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from protocol.buffers.largefiles import LARGE
from protocol.codec import merkle
from protocol.codec.encoding import Buffer
from protocol.codec.merkle import PIECE_SIZE
from protocol.codec.terminal_text import human_size
from sfsd.errors import IncompleteError, StagingClosedError, StoreFullError
from sfsd.fs.descriptors import SharedHandle, SyncGuard, store_error
from sfsd.fs.direct_io import DirectFile
from sfsd.fs.files import Files

UPLOAD_ID_SIZE = 16
MAX_PIECES = 1 << 24
"""16 TiB; a piece past this is refused before its hash is kept."""
MIN_FREE_BYTES = 32 << 20
"""Free disk bytes that uploads must leave, so that committed data can be installed."""
_WRITE_BACK_PIECES = 8
"""Pieces whose write-back is started together."""
_RESERVE_PIECES = 16
"""Pieces whose disk blocks are reserved together."""


class UploadFile:
    """One upload. `name` is its file in staging/, without ``.ct``: the upload's id in hex. `write`
    may run on several threads for distinct pieces. `size`, `leaves` and `root` are those of the
    whole ciphertext; they are final once it is sealed."""

    def __init__(
        self, files: Files, syncs: SyncGuard, folder: Path, upload_id: bytes, size: int = 0
    ) -> None:
        """Create the upload `upload_id` (16 bytes) in `folder`. `size` is its planned size in
        bytes, 0 if unknown. Raises StoreRefusedError."""
        if len(upload_id) != UPLOAD_ID_SIZE:
            raise ValueError(f"upload id has {len(upload_id)} bytes")
        self.name = upload_id.hex()
        self.path = folder / f"{self.name}.ct"
        self._files = files
        self._syncs = syncs
        self._announced = size
        self._changed = threading.Condition()
        self._disk = threading.Lock()
        self._pieces: dict[int, tuple[bytes, int]] = {}
        self._contiguous = 0
        self._writing = 0
        self._sealed = False
        self._logged = False
        self._direct: DirectFile | None = None
        try:
            handle = files.open_new(self.path)
            self._shared = SharedHandle(files, handle)
            if size >= LARGE:
                self._open_direct(handle)
        except OSError as exc:
            raise store_error(exc, "creating an upload") from exc

    def _open_direct(self, handle: int) -> None:
        try:
            self._direct = DirectFile(self._files, handle, writing=True)
        except OSError:
            self.discard()
            raise

    def write(self, index: int, piece: Buffer) -> None:
        """Write piece `index` of the ciphertext: 1 MiB, or 1 byte to 1 MiB for the last. A repeated
        piece replaces the earlier one. Raises StoreRefusedError, StagingClosedError, or ValueError
        for an impossible length or index."""
        length = len(memoryview(piece))
        if not 0 < length <= PIECE_SIZE or not 0 <= index < MAX_PIECES:
            raise ValueError(f"invalid piece {index} of {length} bytes")
        with self._shared.use() as handle, self._while_open():
            room = self._files.free(self.path.parent) - MIN_FREE_BYTES
            if room < 0:
                why = f"less than {human_size(MIN_FREE_BYTES)} are free on the disk"
                raise StoreFullError(f"writing an upload: {why} of {self.path.parent.absolute()}")
            leaf = merkle.leaf_hash(piece)
            # One at a time: the kernel serializes writes to one file, and the other threads would
            # spin, which takes a core from hashing the next piece.
            with self._disk:
                self._write_piece(handle, index, piece, room)
            with self._changed:
                self._pieces[index] = (leaf, length)
                while self._contiguous in self._pieces:
                    self._contiguous += 1

    def _write_piece(self, handle: int, index: int, piece: Buffer, room: int) -> None:
        offset = index * PIECE_SIZE
        if index % _RESERVE_PIECES == 0:
            self._reserve(handle, offset, room)
        try:
            if self._direct is not None and self._direct.write(piece, offset):
                return
            self._files.write_all_at(handle, piece, offset)
        except OSError as exc:
            raise store_error(exc, "writing an upload") from exc
        if index % _WRITE_BACK_PIECES == _WRITE_BACK_PIECES - 1:
            first = index - _WRITE_BACK_PIECES + 1
            self._files.start_writing_back(
                handle, first * PIECE_SIZE, _WRITE_BACK_PIECES * PIECE_SIZE
            )

    def _reserve(self, handle: int, offset: int, room: int) -> None:
        """Reserve blocks for a few pieces from `offset` on, within the announced size: only a few,
        because the rest may never arrive."""
        length = min(_RESERVE_PIECES * PIECE_SIZE, self._announced - offset)
        if 0 < length <= room:
            self._files.reserve(handle, offset, length)

    @property
    def received(self) -> int:
        """Bytes from the start without a gap, where a resumed upload continues."""
        with self._changed:
            return self._length(self._contiguous)

    @property
    def size(self) -> int:
        """Bytes of the ciphertext. Raises IncompleteError while a piece is missing or short."""
        with self._changed:
            self._check_whole()
            return self._length(len(self._pieces))

    @property
    def leaves(self) -> list[bytes]:
        """The leaf hash of every piece, 32 bytes each. Raises IncompleteError."""
        with self._changed:
            self._check_whole()
            return [self._pieces[index][0] for index in range(len(self._pieces))]

    @cached_property
    def root(self) -> bytes:
        """The segments_root, 32 bytes; for a sealed upload. Raises IncompleteError."""
        return merkle.root(self.leaves)

    def seal(self) -> None:
        """Freeze the bytes and make them durable. Idempotent. Called before a commit reads the
        root, and not on the committer thread, which would delay every change while the disk catches
        up. Raises IncompleteError, StoreFailedError, StagingClosedError."""
        with self._shared.use() as handle:
            with self._changed:
                self._check_whole()
                self._sealed = True
                self._changed.wait_for(lambda: self._writing == 0)
            self._syncs.file(handle)

    def mark_logged(self, *, logged: bool = True) -> None:
        """Record whether an entry in the log may name the file. From then on only the store may
        remove it, once the bytes are durable in place."""
        self._logged = logged

    def close(self) -> None:
        """Close the file: nothing more is written. Idempotent."""
        self._shared.close()
        if self._direct is not None:
            self._direct.close()

    def discard(self) -> None:
        """Remove the upload and its file, but not a file that the log may name. Idempotent. Raises
        StoreRefusedError if the file cannot be removed (the next start removes it)."""
        self.close()
        if not self._logged:
            try:
                self._files.remove(self.path)
            except OSError as exc:
                raise store_error(exc, "dropping an upload") from exc

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        with self._changed:
            if self._sealed:
                raise StagingClosedError("the upload is sealed")
            self._writing += 1
        try:
            yield
        finally:
            with self._changed:
                self._writing -= 1
                self._changed.notify_all()

    def _check_whole(self) -> None:
        count = len(self._pieces)
        if count == 0 or self._contiguous != count:
            raise IncompleteError(f"piece {self._contiguous} of the upload is missing")
        if any(self._pieces[index][1] != PIECE_SIZE for index in range(count - 1)):
            raise IncompleteError("a short piece is not the last")

    def _length(self, pieces: int) -> int:
        return (pieces - 1) * PIECE_SIZE + self._pieces[pieces - 1][1] if pieces else 0
