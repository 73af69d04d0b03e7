"""Open files of the file system."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any, Final

from fsspec.spec import AbstractBufferedFile

from sfsc.filesystem.connection import Connection
from sfsc.filesystem.os_errors import exists, is_folder
from sfsc.filesystem.spool import Spool
from sfsc.library_log import log_warning

if TYPE_CHECKING:
    from sfsc.store import Store

_LINE: Final = 8192
"""Bytes that are read to find the end of a line."""


class SfsFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file that is read (``rb``), or written whole (``wb``, ``xb``, ``ab``).

    What is read is the version of the moment of opening; `version` chooses another one. Only the
    segments that are read are fetched, and the last ones are kept, so there is no other cache
    unless `cache_type` asks for one.

    What is written is stored when the file is closed, as one new version. A block that raises
    stores nothing. With ``xb`` there must be no such file, with ``ab`` no change since the opening.
    """

    def __init__(
        self,
        fs: Any,
        path: str,
        mode: str = "rb",
        block_size: int | str | None = "default",
        *,
        autocommit: bool = True,
        cache_type: str = "none",
        cache_options: dict[str, Any] | None = None,
        size: int | None = None,
        version: int | None = None,
        **options: Any,
    ) -> None:
        self._connection: Connection = fs.connection
        self._spool: Spool | None = None
        self._entry: dict[str, Any] | None = None
        self._expected: int | None = None
        self._opened: tuple[Store, io.BufferedReader] | None = None
        self._handled = sys.exc_info()[1]
        if mode == "rb":
            options["version"], size = self._open_version(fs, path, version)
        elif mode == "xb":
            self._expected = 0
            if fs.exists(path):
                raise exists(path)
        super().__init__(
            fs, path, mode, block_size, autocommit, cache_type, cache_options, size, **options
        )
        if mode != "rb":
            self._spool = Spool()
            if mode == "ab":
                self._append_to_present()

    @property
    def version(self) -> int:
        """Number of the version that is read."""
        return int(self.kwargs["version"])

    @property
    def details(self) -> dict[str, Any]:
        """The entry of the file, as `SfsFileSystem.info` returns it."""
        if self._entry is None:
            self._entry = self.fs.info(self.path)
        return self._entry

    # --- reading -----------------------------------------------------------------------------

    def _open_version(self, fs: Any, path: str, version: int | None) -> tuple[int, int]:
        """Open a version, by default the current one. Return its number and size in bytes."""
        try:
            with self._connection.use(path) as store:
                reader = store.open(path, version=version)
                self._opened = store, reader
        except FileNotFoundError as exc:
            if fs.isdir(path):
                raise is_folder(path) from exc
            raise
        raw: Any = reader.raw
        return raw.version, raw.size

    def _fetch_range(self, start: int, end: int) -> bytes:
        with self._connection.use(self.path) as store:
            if self._opened is None or self._opened[0] is not store:
                # Another process has forked, or the file system was closed meanwhile.
                self._opened = store, store.open(self.path, version=self.version)
            reader = self._opened[1]
            reader.seek(start)
            return reader.read(end - start)

    def readline(self, size: int | None = -1) -> bytes:
        """Return the bytes up to the next newline; `size` is the most, if it is not negative."""
        start = self.tell()
        line: bytes = self.readuntil(b"\n", blocks=_LINE)
        if size is not None and 0 <= size < len(line):
            self.seek(start + size)
            line = line[:size]
        return line

    # --- writing -----------------------------------------------------------------------------

    def _append_to_present(self) -> None:
        """Begin with what is stored."""
        try:
            with self.fs.open(self.path, "rb") as stored:
                self._expected = stored.version
                while block := stored.read(1 << 20):
                    self._written.write(block)
        except FileNotFoundError:
            self._expected = 0
        self.loc = self._written.size

    @property
    def _written(self) -> Spool:
        if self._spool is None:
            raise ValueError(f"{self.path} is not open for writing")
        return self._spool

    def _upload_chunk(self, final: bool = False) -> bool:  # fsspec calls it so
        self._written.write(self.buffer.getvalue())
        if final and self.autocommit:
            self.commit()
        return True

    @property
    def is_discarded(self) -> bool:
        """Whether nothing of what was written is to be stored."""
        return self.mode != "rb" and self._spool is None

    def stage(self, put: Any) -> None:
        """Call `put` with the name, a stream of what was written, and the version that must be
        current (None: any). Raises `ValueError` if the file is still open."""
        if not self.closed:
            cause = f"{self.path} is still open: close it before the transaction ends"
            raise ValueError(cause)
        put(self.path, self._written.open(), expected=self._expected)

    def commit(self) -> None:
        """Store what was written."""
        try:
            with self._connection.use(self.path) as store, self._written.open() as content:
                store.put(content, name=self.path, expected=self._expected)
        finally:
            self.discard()

    def discard(self) -> None:
        """Close the file, and drop what was written. Idempotent."""
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()
        self.closed = True

    # --- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; what was written is stored now. Idempotent.

        If this is the end of a ``with`` block that raises, what was written is dropped. It may be
        the block of another object, as that of `fsspec.open`, which does not tell of the error."""
        if self.closed:
            return
        if self.mode == "rb":
            opened, self._opened = self._opened, None
            super().close()
            if opened is not None:
                with self._connection.use(self.path):
                    opened[1].close()
        elif self._is_unwinding():
            self.discard()
        else:
            try:
                super().close()
            except BaseException:
                self.discard()
                raise

    def _is_unwinding(self) -> bool:
        """Return whether a block that has raised since the file was opened is being left."""
        error = sys.exc_info()[1]
        if error is None or error is self._handled:
            return False
        frame = sys._getframe()  # noqa: SLF001  # a public function, in spite of its name
        while (outer := frame.f_back) is not None:
            if outer.f_code.co_name == "__exit__":
                return outer.f_globals is not globals()  # ours close only without an error
            frame = outer
        return False

    def __exit__(self, kind: object, *_error: object) -> None:
        if kind is not None and self.mode != "rb":
            self.discard()
        else:
            self.close()

    def __del__(self) -> None:
        if self.closed:
            return
        if self.mode == "rb":
            self._opened = None  # it ends with its connection: this may be any thread
            self.closed = True
        else:
            log_warning(f"{self.path} was not stored", "the file was not closed", "close it")
            self.discard()


class TextFile(io.TextIOWrapper):
    """A text file that stores nothing if its block raises."""

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None and isinstance(self.buffer, SfsFile):
            self.buffer.__exit__(kind, *error)
        else:
            self.close()
