"""Content that a program has written to a file which is not complete yet.

It is kept in a temporary file, encrypted, because the folder for temporary files may be on a disk
that others read. The key is random and exists only in the memory of this process.
"""

from __future__ import annotations

import io
import tempfile
from typing import BinaryIO, Final, cast

from protocol.codec.encoding import Buffer
from sfsc.closing import Closing
from sfsc.crypto.primitives import NONCE_SIZE, TAG_SIZE, Aead, new_key
from sfsc.errors import LocalError

_BLOCK: Final = 1 << 20
"""Bytes of plaintext that are encrypted together."""
_IN_MEMORY: Final = 1 << 20
"""Bytes that are kept in memory; a longer content goes to the disk."""


class Spool(Closing):
    """Bytes that are appended first, then read any number of times. `size` is in bytes.

    Block i, of 1 MiB, is sealed with AES-256-GCM under a key of its own spool and the nonce i, each
    once. Raises `LocalError` if the disk is full, and `Tampered` if the file was changed.
    """

    def __init__(self) -> None:
        self.size = 0
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self._aead = Aead(new_key())
        self._blocks = 0
        self._end = bytearray()

    def write(self, data: Buffer, /) -> int:
        """Append bytes; return their number."""
        self._end += data
        self.size += len(data)
        with memoryview(self._end) as pending:
            whole = len(pending) // _BLOCK * _BLOCK
            for start in range(0, whole, _BLOCK):
                self._write(pending[start : start + _BLOCK])
        del self._end[:whole]
        return len(data)

    def flush(self) -> None:
        """Do nothing: there is no other place for the bytes."""

    def open(self) -> BinaryIO:
        """Return a seekable stream of the content. It is valid until more is appended."""
        return cast(BinaryIO, _Reading(self))

    def close(self) -> None:
        self._file.close()
        self._end.clear()

    def read_block(self, index: int) -> Buffer:
        """Return block `index`; the last one is shorter than 1 MiB, and may be empty."""
        if index >= self._blocks:
            return bytes(self._end)
        try:
            self._file.seek(index * (_BLOCK + TAG_SIZE))
            sealed = self._file.read(_BLOCK + TAG_SIZE)
        except OSError as exc:
            raise LocalError(f"cannot read a temporary file: {exc.strerror}") from exc
        return self._aead.open(_nonce(index), sealed)

    def _write(self, block: memoryview) -> None:
        sealed = bytearray(_BLOCK + TAG_SIZE)
        self._aead.seal_into(_nonce(self._blocks), block, sealed)
        try:
            self._file.seek(self._blocks * len(sealed))
            self._file.write(sealed)
        except OSError as exc:
            cause = f"cannot write a temporary file: {exc.strerror}"
            raise LocalError(cause, "set TMPDIR to a folder with more space") from exc
        self._blocks += 1


def _nonce(index: int) -> bytes:
    return index.to_bytes(NONCE_SIZE, "big")


class _Reading(io.RawIOBase):
    """A stream of the content of a spool."""

    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self._spool = spool
        self._position = 0
        self._block: tuple[int, Buffer] = (-1, b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._spool.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:  # type: ignore[override]  # bytes are not written
        index, start = divmod(self._position, _BLOCK)
        if self._position >= self._spool.size:
            return 0
        if self._block[0] != index:
            self._block = index, self._spool.read_block(index)
        view = memoryview(buffer).cast("B")
        part = memoryview(self._block[1])[start : start + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)
