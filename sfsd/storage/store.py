"""Bytes by path, in a directory tree. Knows neither users nor JSON.

`DirectoryStore` reads on any thread. Changes come from the committer alone, in three steps that
would fit an object store too: `prepare` makes a group durable in the stage, the journal commits it,
`publish` makes it visible. Published files are made durable in place in the background (`settle`),
and only then is the stage removed. `sfsd.storage.crash_recovery` completes what a crash
interrupted.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from protocol.buffers.largefiles import LARGE
from protocol.codec.encoding import Buffer
from protocol.codec.merkle import PIECE_SIZE
from protocol.codec.terminal_text import human_size
from protocol.log.auditlog import EntryDraft
from sfsd.errors import Absent, StoreFullError, UnreadableError
from sfsd.fs.descriptors import SharedHandle, SyncGuard, read_error, store_error
from sfsd.fs.direct_io import DirectFile, RecentlyOpened
from sfsd.fs.files import FULL_DISK, NO_DESCRIPTORS, Files
from sfsd.fs.spare_files import SpareFiles
from sfsd.storage.change import Change, check_path, ciphertext_digest, digest_of, is_ciphertext
from sfsd.storage.install import Installer, upload_folders
from sfsd.storage.prepare import GroupBuilder, PreparedGroup
from sfsd.storage.upload_file import MIN_FREE_BYTES, UploadFile

_CACHED_DIGESTS = 1 << 16
"""Digests that are kept; about 200 bytes each."""
PACK_SPARES = 4
PACK_SPARE_SIZE = 1 << 20
"""Spare files for packs, and their bytes: each can hold the pack of one group on a full disk."""
MIN_FREE_FILES = 256
"""Files that must be left to create before a daemon that waits for room tries again."""
UNREADABLE = b""
"""Stands for the digest of a file that cannot be read."""
_APPLIED_LAG = 4096
"""Entries without effects that a start may have to read again."""


class Blob:
    """An open file: its content when it was opened, whatever is written to its path later."""

    def __init__(
        self, files: Files, path: str, handle: int, size: int, direct: DirectFile | None = None
    ) -> None:
        self._files = files
        self._path = path
        self._shared = SharedHandle(files, handle)
        self._direct = direct
        self.size = size

    def read_range(self, offset: int, length: int) -> Buffer:
        """Return up to `length` bytes from `offset`. Any thread. Raises StagingClosedError once
        closed, `UnreadableError`, StoreBusyError."""
        with self._shared.use() as handle:
            try:
                if self._direct is not None:
                    data = self._direct.read(offset, length)
                    if data is not None:
                        return data
                return self._files.read_at(handle, length, offset)
            except OSError as exc:
                raise read_error(exc, self._path, "reading a file") from exc

    def close(self) -> None:
        """Close the file; running reads finish first. Idempotent."""
        self._shared.close()
        if self._direct is not None:
            self._direct.close()


class DirectoryStore:
    """The files below ROOT/store/users and the stage in ROOT/staging."""

    def __init__(self, root: Path, files: Files | None = None) -> None:
        """Create the folders if missing. Raises StoreRefusedError, StoreFailedError."""
        self.files = files or Files()
        self.syncs = SyncGuard(self.files)
        self.users = root / "store" / "users"
        self._users_text = str(self.users)
        self.staging = root / "staging"
        self._recently_opened = RecentlyOpened()
        self._digests: OrderedDict[str, bytes | None] = OrderedDict()
        self._published = 0
        self._installing: frozenset[str] = frozenset()  # paths of the group being published
        self._lock = threading.Lock()
        self._settling = threading.Lock()
        self._publishing = threading.RLock()  # a reader that pauses it reads
        self._unsettled: list[PreparedGroup] = []
        self._last_seq = -1
        try:
            for folder in (self.users, self.staging):
                self.files.make_folder(folder)
            beside, inside = upload_folders(self.users, self.staging)
            self.uploads = beside if self.files.same_disk(self.users, beside) else inside
            self.files.make_folder(self.uploads)
            self.pack_spares = SpareFiles(
                self.staging / ".spare", self.files, count=PACK_SPARES, size=PACK_SPARE_SIZE
            )
            self.installer = Installer(
                self.files, self.syncs, users=self.users, staging=self.staging
            )
        except OSError as exc:
            raise store_error(exc, "opening the store") from exc
        for folder in (self.users, root / "store", root):
            self.syncs.folder(folder)

    @property
    def failed(self) -> str | None:
        """Why nothing more may be acknowledged, or None."""
        return self.syncs.failed

    # Reading: any thread.

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the whole file, or up to `length` bytes from `offset`. Raises `Absent`,
        `PathError`, `UnreadableError`, StoreBusyError."""
        handle = self._open(path)
        try:
            if length is not None:
                return self.files.read_at(handle, length, offset)
            size = self.files.size(handle)
            data = self.files.read_at(handle, size, 0)
            while len(data) < size and (more := self.files.read_at(handle, size, len(data))):
                data += more
            return data
        except OSError as exc:
            raise read_error(exc, path, "reading a file") from exc
        finally:
            self.files.close(handle)

    def read_with_digest(self, path: str) -> tuple[bytes, bytes]:
        """Read a file that is not a ciphertext; return (bytes, digest). Caches the digest, so that
        a change that expects it does not read the file again. Raises as `read`."""
        published = self._published
        data = self.read(path)
        digest = digest_of(path, data)
        self._cache_digest(path, digest, published)
        return data, digest

    def _open(self, path: str) -> int:
        check_path(path)
        # A new file has its name before all of its bytes.
        self._await_installed(path)
        try:
            # A str, not a Path: building a Path would cost as much as opening the file.
            return self.files.open_read(f"{self._users_text}/{path}")
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise Absent(path) from exc
        except OSError as exc:
            raise read_error(exc, path, "opening a file") from exc

    def open_blob(self, path: str) -> Blob:
        """Open a file; later changes of `path` do not affect it. Raises as `read`."""
        handle = self._open(path)
        try:
            size, direct = self.files.size(handle), None
            if size >= LARGE and not self._recently_opened.seen_again(path):
                direct = DirectFile(self.files, handle, writing=False)
            return Blob(self.files, path, handle, size, direct)
        except OSError as exc:
            self.files.close(handle)
            raise read_error(exc, path, "opening a file") from exc

    def stored_digest(self, path: str) -> bytes | None:
        """Return the digest of the file (`sfsd.storage.change`), cached; None if there is no file,
        `UNREADABLE` if it cannot be read. Reads the file if its digest is not cached. Raises
        `PathError`, StoreBusyError."""
        with self._lock:
            published = self._published
            if path in self._digests:
                self._digests.move_to_end(path)
                return self._digests[path]
        try:
            digest = self.digest_in_place(path)
        except UnreadableError:
            return UNREADABLE
        self._cache_digest(path, digest, published)
        return digest

    def cached_digest(self, path: str) -> bytes | None:
        """Return the cached digest, or None if finding it needs the disk."""
        with self._lock:
            return self._digests.get(path)

    def _cache_digest(self, path: str, digest: bytes | None, published: int) -> None:
        """Cache a digest, unless a group was published after `published` was read."""
        with self._lock:
            # Bytes read before a publish must not be cached after it.
            if published == self._published:
                self._remember(path, digest)

    def digest_in_place(self, path: str) -> bytes | None:
        """Return the digest of the bytes that are in place now, None if there is no file. Raises
        `PathError`, `UnreadableError`, StoreBusyError."""
        try:
            # The common case, a path that must be new, without the cost of opening a file.
            os.stat(f"{self._users_text}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise read_error(exc, path, "examining a file") from exc
        try:
            if not is_ciphertext(path):
                return digest_of(path, self.read(path))
            blob = self.open_blob(path)
        except Absent:
            return None
        with closing(blob):
            offsets = range(0, blob.size, PIECE_SIZE)
            return ciphertext_digest(blob.read_range(offset, PIECE_SIZE) for offset in offsets)

    @contextmanager
    def publishing_paused(self) -> Iterator[None]:
        """Pause publishing, so that several files can be read as one change left them. The
        committer waits: for a few small files only."""
        with self._publishing:
            yield

    def is_unchanged(self, path: str, digest: bytes) -> bool:
        """Return whether the file's digest is still `digest`, and was so since it was read. If so,
        data of the same change that was read meanwhile, such as the ciphertext beside a sidecar,
        belongs to it. Waits only for a publication of `path` itself."""
        self._await_installed(path)
        return self.stored_digest(path) == digest

    def _await_installed(self, path: str) -> None:
        """Wait while a publication writes this path: the caller may have seen only its new name."""
        with self._lock:
            installing = path in self._installing
        if installing:
            with self._publishing:
                pass

    def _remember(self, path: str, digest: bytes | None) -> None:
        self._digests[path] = digest
        self._digests.move_to_end(path)
        if len(self._digests) > _CACHED_DIGESTS:
            self._digests.popitem(last=False)

    def children(self, folder: str, after: str = "", limit: int | None = None) -> list[str]:
        """Return names in `folder` past `after`, sorted, at most `limit`; [] if there is no such
        folder. `folder` is a path of the store, or "" for the top. Raises `PathError`."""
        if folder:
            check_path(folder)
        try:
            with os.scandir(self.users / folder) as entries:
                names = (entry.name for entry in entries)
                found = (name for name in names if name > after and not name.startswith("."))
                return sorted(found) if limit is None else heapq.nsmallest(limit, found)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as exc:
            raise store_error(exc, "listing a folder") from exc

    def create_upload_file(self, upload_id: bytes, size: int = 0) -> UploadFile:
        """Create the file of an upload. `upload_id` is 16 random bytes; `size` is its planned size
        in bytes, 0 if unknown. Raises StoreRefusedError, StoreFullError if that does not fit."""
        try:
            room = self.files.free(self.uploads) - MIN_FREE_BYTES
        except OSError as exc:
            raise store_error(exc, "creating an upload") from exc
        if size > max(room, 0):
            why = f"it does not fit beside the {human_size(MIN_FREE_BYTES)} that must stay free"
            raise StoreFullError(
                f"creating an upload: {why} on the disk of {self.uploads.absolute()}"
            )
        return UploadFile(self.files, self.syncs, self.uploads, upload_id, size)

    # Changing: the committer's thread.

    def prepare(
        self,
        sets: Sequence[Sequence[Change]],
        first_seq: int,
        tag_keys: Callable[[EntryDraft], Mapping[str, bytes]] = lambda draft: draft.tag_keys,
    ) -> PreparedGroup:
        """Check each set of changes, and make the data of accepted ones durable in the stage. The
        first accepted change is to be entry `first_seq`. The changes of a set are accepted together
        or not at all. `tag_keys` returns those of an entry. Refused changes leave no trace; if this
        raises (StoreRefusedError, StoreFullError, StoreFailedError), no change does."""
        builder = GroupBuilder(
            self.files,
            self.syncs,
            users=self.users,
            staging=self.staging,
            uploads=self.uploads,
            spares=(self.pack_spares, self.installer.spares),
            digest_in_place=self.stored_digest,
            tag_keys=tag_keys,
            first_seq=first_seq,
        )
        for index, changes in enumerate(sets):
            builder.add(index, changes)
        builder.stage()
        return builder.prepared

    def has_room(self) -> bool:
        """Return whether there is room again for changes, after a full disk."""
        try:
            for folder in (self.staging, self.users):
                left = self.files.free_files(folder)
                if left is not None and left < MIN_FREE_FILES:
                    return False
                if self.files.free(folder) < MIN_FREE_BYTES:
                    return False
        except OSError:
            return False
        return True

    def refill_spares(self) -> None:
        """Create the spare files that are missing, so that a full disk can still be cleared."""
        self.pack_spares.refill()
        self.installer.spares.refill()

    def publish(
        self, prepared: PreparedGroup, installed: Callable[[], None] = lambda: None
    ) -> None:
        """Make a logged group visible, in order, and call `installed` before a paused reader goes
        on. May be repeated after an OSError. The OSError is passed on: the caller knows whether
        space can be freed."""
        with self._publishing:
            with self._lock:
                self._installing = frozenset(step.path for step in prepared.steps)
            for step in prepared.steps:
                self.installer.install(step)
            with self._lock:
                self._installing = frozenset()
                self._published += 1
                for step in prepared.steps:
                    self._remember(step.path, step.digest)
                self._unsettled.append(prepared)
                self._last_seq = prepared.last_seq
            installed()
        for staged in prepared.adopted:
            staged.close()
        prepared.release_drafts()

    # In the background.

    @property
    def unsettled(self) -> int:
        """The number of files published and not yet known to be durable in place."""
        with self._lock:
            return sum(len(prepared.steps) for prepared in self._unsettled)

    def settle(self, *, force: bool = False) -> None:
        """Make everything published so far durable in place, record that, and remove its stage.
        `force` records it even for entries that had no effects. Any thread, beside the committer.
        Raises StoreFullError or StoreBusyError (retry later), or StoreFailedError, after which
        nothing may be acknowledged."""
        with self._settling:
            self.syncs.check()
            with self._lock:
                groups, last = list(self._unsettled), self._last_seq
            steps = [step for prepared in groups for step in prepared.steps]
            lag = last - self.installer.applied
            if not steps and lag < (1 if force else _APPLIED_LAG):
                with self._lock:
                    del self._unsettled[: len(groups)]
                return
            try:
                self.installer.sync(steps)
                self.installer.write_applied(last)
            except OSError as exc:
                if exc.errno in FULL_DISK | NO_DESCRIPTORS:
                    raise store_error(exc, "settling") from exc
                self.syncs.fail("settling", exc)
            for prepared in groups:
                prepared.drop_stage()
            with self._lock:
                del self._unsettled[: len(groups)]
