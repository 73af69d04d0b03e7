"""Bytes by path, in a directory tree. Knows no users and no JSON.

`DirectoryStore` reads on any thread; changes come from the committer alone, in three steps that
would fit an object store too: `prepare` makes a group durable beside the store, the journal makes
it true, `publish` makes it visible. What was published is made durable in place behind everyone's
back (`settle`), and only then is the stage dropped. `sfsd.recovery` finishes what a crash cut off.
"""

from __future__ import annotations

import heapq
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from protocol.merkle import PIECE_SIZE, PieceHasher
from sfsd.changes import (
    Adopt,
    Change,
    Claim,
    Effect,
    Link,
    Remove,
    Write,
    check_path,
    digest_of,
    is_ciphertext,
)
from sfsd.errors import Absent, RecoveryError
from sfsd.files import Files
from sfsd.groups import Builder, Prepared, Step, abandon, drop_stage
from sfsd.handles import SharedHandle, Syncs, refused
from sfsd.staging import Staged

__all__ = [
    "Adopt",
    "Blob",
    "Change",
    "Claim",
    "DirectoryStore",
    "Effect",
    "Link",
    "Prepared",
    "Remove",
    "Staged",
    "Write",
]

_CACHED_DIGESTS = 1 << 16
"""About 200 bytes each."""
_APPLIED = re.compile(rb"[0-9]{1,16}\n")
_APPLIED_LAG = 4096
"""Entries without effects that a start may have to read again."""


class Blob:
    """An open file: what it held when it was opened, whatever stands under its path since."""

    def __init__(self, files: Files, handle: int) -> None:
        self._files = files
        self._shared = SharedHandle(files, handle)
        self.size = files.size(handle)

    def read_range(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`. Any thread.

        Raises StagingClosedError once closed, StoreRefusedError if the disk cannot be read.
        """
        with self._shared.use() as handle:
            try:
                return self._files.read_at(handle, length, offset)
            except OSError as exc:
                raise refused(exc, "reading a file") from exc

    def close(self) -> None:
        """Twice is fine, and so is a read that is still running."""
        self._shared.close()


class DirectoryStore:
    """The files below ROOT/store/users and the stage in ROOT/staging."""

    def __init__(self, root: Path, files: Files | None = None) -> None:
        """Makes the folders if need be. Raises OSError, or `RecoveryError` if staging/applied is
        not what this wrote."""
        self.files = files or Files()
        self.syncs = Syncs(self.files)
        self.users = root / "store" / "users"
        self.staging = root / "staging"
        self._digests: OrderedDict[str, bytes | None] = OrderedDict()
        self._published = 0
        self._lock = threading.Lock()
        self._settling = threading.Lock()
        self._unsettled: list[Prepared] = []
        self._grown: set[str] = set()  # folders that got a folder since the last settle
        self._last_seq = -1
        for folder in (self.users, self.staging):
            self.files.make_folder(folder)
        for folder in (root / "store", root):
            self.files.sync_folder(folder)
        self.applied = self._read_applied()
        """Every entry up to this seq is durable in place; -1 for none. Set by recovery too."""

    @property
    def failed(self) -> str | None:
        """Why nothing more may be acknowledged, or None."""
        return self.syncs.failed

    # Reading: any thread.

    def read(self, path: str) -> bytes:
        """The whole file. Raises `Absent`, `PathError`, StoreRefusedError."""
        blob = self.open_blob(path)
        try:
            data = blob.read_range(0, blob.size)
            while len(data) < blob.size and (more := blob.read_range(len(data), blob.size)):
                data += more
            return data
        finally:
            blob.close()

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`. Raises as `read`."""
        blob = self.open_blob(path)
        try:
            return blob.read_range(offset, length)
        finally:
            blob.close()

    def open_blob(self, path: str) -> Blob:
        """The file, kept open: later changes of `path` do not reach it. Raises as `read`."""
        check_path(path)
        try:
            return Blob(self.files, self.files.open_read(self.users / path))
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise Absent(path) from exc
        except OSError as exc:
            raise refused(exc, "opening a file") from exc

    def hash_of(self, path: str) -> bytes | None:
        """The digest of the file (`sfsd.changes`), None if there is none; cached.

        What is not cached is read. Raises `PathError`, StoreRefusedError.
        """
        with self._lock:
            published = self._published
            if path in self._digests:
                self._digests.move_to_end(path)
                return self._digests[path]
        digest = self.digest_in_place(path)
        with self._lock:
            # Bytes read before a publish must not be remembered after it.
            if published == self._published:
                self._remember(path, digest)
        return digest

    def digest_in_place(self, path: str) -> bytes | None:
        """As `hash_of`, from the bytes that stand there now."""
        if not os.path.exists(self.users / path):
            return None  # the common case for a path that must be new, without an exception's cost
        try:
            if not is_ciphertext(path):
                return digest_of(path, self.read(path))
            blob = self.open_blob(path)
        except Absent:
            return None
        try:
            pieces = PieceHasher()
            for offset in range(0, blob.size, PIECE_SIZE):
                pieces.update(blob.read_range(offset, PIECE_SIZE))
            return pieces.finish()
        finally:
            blob.close()

    def _remember(self, path: str, digest: bytes | None) -> None:
        self._digests[path] = digest
        self._digests.move_to_end(path)
        if len(self._digests) > _CACHED_DIGESTS:
            self._digests.popitem(last=False)

    def children(self, folder: str, after: str = "", limit: int | None = None) -> list[str]:
        """Names in `folder` past `after`, sorted, at most `limit`; [] if there is no such folder.

        `folder` is a path of the store, or "" for the top. Raises `PathError`.
        """
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
            raise refused(exc, "listing a folder") from exc

    def stage(self, upload_id: bytes) -> Staged:
        """Begin an upload; `upload_id` is 16 random bytes. Raises StoreRefusedError."""
        return Staged(self.files, self.syncs, self.staging, upload_id)

    # Changing: the committer's thread.

    def prepare(self, group: Sequence[Change], first_seq: int) -> Prepared:
        """Check each change and make what the accepted ones need durable beside the store.

        The first accepted change is to be entry `first_seq`. Refused changes leave no trace; if
        this raises (StoreRefusedError, StoreFullError, StoreFailedError), no change does.
        """
        builder = Builder(
            self.files,
            self.syncs,
            users=self.users,
            staging=self.staging,
            digest_in_place=self.hash_of,
            first_seq=first_seq,
        )
        for index, change in enumerate(group):
            builder.add(index, change)
        builder.stage()
        return builder.prepared

    def abandon(self, prepared: Prepared) -> None:
        """Undo what `prepare` did, for a group that is certainly not in the log."""
        abandon(self.files, self.staging, prepared)

    def publish(self, prepared: Prepared) -> None:
        """Make a logged group visible, in order. May be repeated after an OSError, which it raises
        as it is: the caller knows whether room can be made."""
        for step in prepared.steps:
            self.install(step)
        with self._lock:
            self._published += 1
            for step in prepared.steps:
                self._remember(step.path, step.digest)
            self._unsettled.append(prepared)
            self._last_seq = prepared.last_seq
        for staged in prepared.adopted:
            staged.adopted()

    def install(self, step: Step) -> None:
        """Old or new under the path, never a mixture; not synced. Raises OSError."""
        target = self.users / step.path
        if step.digest is None:
            self.files.remove(target)
            return
        try:
            self._place(step, target)
        except FileNotFoundError:
            self._make_folder_of(step.path)
            self._place(step, target)

    def _place(self, step: Step, target: Path) -> None:
        if step.blob is None:
            self.files.replace_soon(target, step.data)
            return
        temporary = self.remove_temporary(step.path)
        self.files.link_or_copy(self.staging / f"{step.blob}.ct", temporary)
        self.files.replace(temporary, target)
        # Where both were names of one file already, that did nothing and left the temporary.
        self.files.remove(temporary)

    def remove_temporary(self, path: str) -> Path:
        """The name under which `path` is made before it is put in place; nothing is there now."""
        temporary = self.files.temporary(self.users / path)
        self.files.remove(temporary)
        return temporary

    # Behind.

    @property
    def unsettled(self) -> int:
        """How many files were published and are not yet known to be durable in place."""
        with self._lock:
            return sum(len(prepared.steps) for prepared in self._unsettled)

    def settle(self, *, force: bool = False) -> None:
        """Make everything published so far durable in place, say so, and drop its stage.

        `force` says so even of entries that had no effects. Any thread, beside the committer.
        Raises StoreFailedError, after which nothing more may be acknowledged.
        """
        with self._settling:
            self.syncs.check()
            with self._lock:
                groups, last = list(self._unsettled), self._last_seq
            steps = [step for prepared in groups for step in prepared.steps]
            lag = last - self.applied
            if not steps and lag < (1 if force else _APPLIED_LAG):
                with self._lock:
                    del self._unsettled[: len(groups)]
                return
            try:
                self.sync_in_place(steps)
                self.write_applied(last)
            except OSError as exc:
                self.syncs.fail("settling", exc)
            for prepared in groups:
                drop_stage(self.files, self.staging, prepared)
            with self._lock:
                del self._unsettled[: len(groups)]

    def sync_in_place(self, steps: Iterable[Step], *, ancestors: bool = False) -> None:
        """Make what `install` did durable. Raises StoreFailedError or OSError.

        `ancestors` for what an earlier process did: which folders it made is not known.
        """
        latest = {step.path: step for step in steps}
        targets = [self.users / step.path for step in latest.values() if step.digest is not None]
        for target in targets:
            # All on their way to the disk first: the syncs then find little to wait for.
            self._with_file(target, lambda handle: self.files.start_writing_back(handle, 0, 0))
        for target in targets:
            self._with_file(target, self.syncs.file)
        with self._lock:
            folders, self._grown = self._grown, set()
        for folder in {path.rpartition("/")[0] for path in latest}:
            folders.update(_up_from(folder) if ancestors else [folder])
        for folder in sorted(folders, reverse=True):
            with suppress(FileNotFoundError):
                self.syncs.folder(self.users / folder)

    def write_applied(self, seq: int) -> None:
        """State durably that every entry up to `seq` is durable in place. Raises OSError."""
        self.files.replace_durable(self.staging / "applied", f"{seq}\n".encode())
        self.applied = seq

    def _with_file(self, target: Path, do: Callable[[int], None]) -> None:
        try:
            handle = self.files.open_update(target)
        except FileNotFoundError:
            return  # a later group removed it, and that removal is settled with that group
        try:
            do(handle)
        finally:
            self.files.close(handle)

    def _make_folder_of(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        self.files.make_folder(self.users / folder)
        with self._lock:
            self._grown.update(_up_from(folder))

    def _read_applied(self) -> int:
        try:
            text = (self.staging / "applied").read_bytes()
        except FileNotFoundError:
            return -1
        if not _APPLIED.fullmatch(text):
            raise RecoveryError("not a seq", path="staging/applied")
        return int(text)


def _up_from(folder: str) -> list[str]:
    """`folder` and those above it, up to "", which is users/."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]
