"""Index of each owner's files: the newest version of each, in memory for recently active users.

Built from the log's table of paths at a user's first use; then every change updates it. Versions
only grow and no sidecar is removed, so updates are idempotent and may be late. An operation that
read a stale answer expects a sidecar to be absent that exists, and is refused as Stale.

What the disk has is not asked: a version whose files somebody took away is damaged, not absent.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence

from sfsd.errors import Absent, DamagedError
from sfsd.state.documents import Document, Documents, SidecarWrite
from sfsd.state.load_once import LoadOnce
from sfsd.state.quota import Holding, Ledger
from sfsd.state.user_cache import UserCache
from sfsd.storage.json_files import Sidecar, cached_record
from sfsd.storage.logged_file import LoggedFile
from sfsd.storage.paths import VersionPaths, files_folder, parse_version_name
from sfsd.storage.store import DirectoryStore

USERS = 256
"""Users whose index is kept in memory; it takes 100 bytes a file."""


class OwnerFiles(LoadOnce):
    """One owner's files. Safe on several threads."""

    def __init__(self, owner: str, store: DirectoryStore, documents: Documents) -> None:
        super().__init__()
        self.owner = owner
        self.ledger = Ledger()
        self._store = store
        self._documents = documents
        self._newest: dict[str, int] = {}
        self._seqs: dict[str, int] = {}
        self._lost: set[str] = set()
        self._sorted: list[str] = []
        self._contents: dict[str, dict[int, bytes]] = {}

    def published_size(self) -> int:
        """Return a log size whose entries have all their effects on these files. Read it first:
        what is read after it is as of this size or newer."""
        return self._documents.published_size()

    def await_published(self, size: int) -> None:
        """Wait until the first `size` log entries are published: call it before what they wrote is
        shown. Raises `StoreFailedError`."""
        self._documents.await_published(size)

    def newest(self, file_id: str) -> int:
        """Return the highest version of a file, 0 if there is no such file."""
        self._load(self._scan, self._enter)
        with self._lock:
            return self._newest.get(file_id, 0)

    def sidecar(self, file_id: str, version: int) -> Document[Sidecar]:
        """Return the sidecar of a version. Raises `Absent` for a version that the file never had,
        `DamagedError` for one whose sidecar is missing or differs from the log."""
        path = VersionPaths.for_version(self.owner, file_id, version).sidecar
        try:
            return self._documents.sidecar(path)
        except Absent:
            if version > self.newest(file_id):
                raise
        with self._store.publishing_paused():
            # Its change may have been installed in part when the names were read.
            try:
                return self._documents.sidecar(path)
            except Absent as exc:
                raise DamagedError("missing sidecar", path=path) from exc

    def sidecars(
        self, places: Sequence[tuple[str, int]], *, cached: bool = False
    ) -> list[Document[Sidecar]]:
        """Batch version of `sidecar` for (file_id, version) pairs; results in input order. With
        `cached`, they are those of `Documents.cached_sidecars`."""
        paths = [VersionPaths.for_version(self.owner, *place).sidecar for place in places]
        try:
            if cached:
                return self._documents.cached_sidecars(paths)
            return self._documents.sidecars(paths)
        except Absent:
            return [self.sidecar(*place) for place in places]

    def readable_sidecars(
        self, places: Sequence[tuple[str, int]], *, cached: bool = False
    ) -> list[Document[Sidecar] | DamagedError]:
        """Like `sidecars`, with the error in place of each damaged one. Raises `Absent`. For
        `cached` see `sidecars`."""
        try:
            return list(self.sidecars(places, cached=cached))
        except DamagedError:
            return [self._readable_sidecar(*place) for place in places]

    def _readable_sidecar(self, file_id: str, version: int) -> Document[Sidecar] | DamagedError:
        try:
            return self.sidecar(file_id, version)
        except DamagedError as exc:
            return exc

    def undamaged_sidecar(self, file_id: str, version: int) -> Document[Sidecar] | None:
        """Like `sidecar`, but return None if it is damaged."""
        found = self._readable_sidecar(file_id, version)
        return None if isinstance(found, DamagedError) else found

    def logged(self, file_id: str) -> LoggedFile:
        """Return what the log has of a file; reads all of the log. Raises `DamagedError`."""
        return self._documents.logged_file(self.owner, file_id)

    def after(
        self, file_id: str, limit: int, wanted: Sequence[str] = ()
    ) -> list[tuple[str, int, int]]:
        """Return up to `limit` (file_id, newest version, seq) past `file_id`, in order; if files
        are `wanted`, which are sorted, only of these. The seq is 0 if the sidecar was not read yet,
        and if its version is lost: then listings show that to every client, whatever it has
        seen."""
        self._load(self._scan, self._enter)
        with self._lock:
            among = [one for one in wanted if one in self._newest] if wanted else self._sorted
            start = bisect.bisect_right(among, file_id)
            ids = among[start : start + limit]
            seqs = {one: 0 if one in self._lost else self._seqs.get(one, 0) for one in ids}
            return [(one, self._newest[one], seqs[one]) for one in ids]

    def note_written(self, sidecar: Sidecar, version: int) -> None:
        """Record that the sidecar of `version` was written."""
        record = sidecar.content_record
        file_id = record.file_id

        def change() -> None:
            if version > self._newest.get(file_id, 0):
                if file_id not in self._newest:
                    bisect.insort(self._sorted, file_id)
                self._newest[file_id] = version
            if version == self._newest[file_id]:
                self._seqs[file_id] = max(sidecar.seq, self._seqs.get(file_id, 0))
                (self._lost.add if sidecar.lost else self._lost.discard)(file_id)
            if file_id in self._contents and record.content_id is not None:
                self._contents[file_id][version] = record.content_id

        self._note(change)

    def note_published(self, written: SidecarWrite) -> None:
        """Record that a change wrote this sidecar, and what its version takes of the quota."""
        holding = holding_of(written.value, written.size)
        self.note_written(written.value, holding.version)
        self.ledger.hold(holding)

    def note_rewritten(self, seq: int, sidecars: Sequence[tuple[str, int, int]]) -> None:
        """Record that entry `seq` rewrote the existing sidecars of these versions, given as
        (file_id, version, bytes of the sidecar); their contents are unchanged."""

        def change() -> None:
            for file_id, version, _ in sidecars:
                if version == self._newest[file_id]:
                    self._seqs[file_id] = max(seq, self._seqs.get(file_id, 0))

        self._note(change)
        self.ledger.resize(sidecars)

    def content_ids(self, file_id: str) -> dict[int, bytes]:
        """Return the content_id of each version of a file, of a damaged one by the log. Raises
        `DamagedError`."""
        newest = self.newest(file_id)
        with self._lock:
            known = self._contents.setdefault(file_id, {})
            missing = [version for version in range(1, newest + 1) if version not in known]
        logged: LoggedFile | None = None
        for version in missing:
            document = self.undamaged_sidecar(file_id, version)
            if document is None:
                logged = logged or self.logged(file_id)
                record = cached_record(logged.content(version).record)
            else:
                record = document.value.content_record
            with self._lock:
                known.setdefault(version, record.content_id or b"")
        with self._lock:
            return dict(known)

    def loaded_ledger(self) -> Ledger:
        """Return the quota ledger, loaded."""
        self.ledger.load(self._weigh)
        return self.ledger

    def _scan(self) -> dict[str, int]:
        # The seq stays unknown until the sidecar is read, so that a first listing names a damaged
        # one, whatever the client has seen.
        found: dict[str, int] = {}
        for file_id, version in self._versions():
            found[file_id] = max(version, found.get(file_id, 0))
        return found

    def _enter(self, found: dict[str, int]) -> None:
        self._newest = found
        self._sorted = sorted(found)

    def _versions(self) -> Iterator[tuple[str, int]]:
        """Yield (file_id, version) of each sidecar that the log says is there."""
        for path, _ in self._documents.latest_below(f"{files_folder(self.owner)}/"):
            parsed = parse_version_name(path.rpartition("/")[2])
            if parsed is not None:
                yield parsed[0], parsed[1]

    def weigh_in_steps(self) -> Iterator[Ledger | None]:
        """Yield None after each version, and at last a ledger of what all of them take: for readers
        who let others run between two steps. It is loaded, and nothing else uses it."""
        read = list[_Weighed]()
        for one in self._weighed():
            read.append(one)
            yield None
        ledger = Ledger()
        ledger.load(lambda: _as_loaded(read))
        yield ledger

    def _weigh(self) -> tuple[list[Holding], list[str]]:
        return _as_loaded(self._weighed())

    def _weighed(self) -> Iterator[_Weighed]:
        for file_id, version in self._versions():
            try:
                document = self.sidecar(file_id, version)
            except DamagedError:
                continue  # a request for that file reports it; the others stay usable
            has_current = document.value.head_record.current != 0
            yield holding_of(document.value, document.size), has_current


_Weighed = tuple[Holding, bool]
"""A version's use, and whether the file has a current version if this is its newest one."""


def _as_loaded(read: Iterable[_Weighed]) -> tuple[list[Holding], list[str]]:
    """Return what `Ledger.load` needs: all holdings, and the ids of files that exist."""
    holdings: list[Holding] = []
    newest: dict[str, tuple[int, bool]] = {}
    for holding, has_current in read:
        holdings.append(holding)
        if holding.version > newest.get(holding.file_id, (0, False))[0]:
            newest[holding.file_id] = (holding.version, has_current)
    return holdings, [file_id for file_id, (_, living) in newest.items() if living]


def holding_of(sidecar: Sidecar, size: int) -> Holding:
    """Return what a version takes of the quota; `size` is the bytes of its sidecar."""
    record = sidecar.content_record
    content_id, ciphertext_size = record.content_id or b"", record.ciphertext_size or 0
    if sidecar.metadata is None:  # purged or lost
        content_id, ciphertext_size = b"", 0
    return Holding(record.file_id, record.version or 0, content_id, ciphertext_size, size)


class FileIndex(UserCache[OwnerFiles]):
    """LRU cache of each owner's `OwnerFiles`."""

    def __init__(self, store: DirectoryStore, documents: Documents) -> None:
        super().__init__(lambda user: OwnerFiles(user, store, documents), USERS)
