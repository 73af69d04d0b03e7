"""Prepares a group of changes for the commit point: checked, staged, ready to be logged.

Changes are checked in order, each against the store overlaid with the earlier ones of its group. A
change that fails its check is refused alone, or with its atomic set. The data of the others is then
made durable at once, or the whole group is undone. Until its entries are in the log, nobody can see
any of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from protocol.codec.values import Value, changed
from protocol.log.auditlog import EntryDraft
from sfsd.errors import SetRefused, SfsdError, Stale, StoreFullError
from sfsd.fs.descriptors import SyncGuard, store_error
from sfsd.fs.files import FULL_DISK, Files
from sfsd.fs.spare_files import SpareFiles
from sfsd.storage import packs
from sfsd.storage.change import Adopt, Change, Effect, Link, Remove, Write, digest_of
from sfsd.storage.upload_file import UploadFile

_MARGIN = 1 << 20
"""Bytes for the names and folders that installing a group may need beside its contents."""


_MARGIN_FILES = 16
"""Files and folders that must be left to create beside those of the group."""


class InstallStep(Value):
    """The new state of `path`: `data`, the file staging/`blob`.ct, or no file. `digest` is that of
    the bytes, None if the file is removed. `replaces` is set if another file is known to exist
    there; if unset, one may."""

    path: str
    digest: bytes | None
    data: bytes = b""
    blob: str | None = None
    replaces: bool = False


class PreparedGroup:
    """A prepared group: the outcome of each set of changes, and the entries and steps of those
    accepted. `accepted` and `refused` index the sets in input order. `drafts` are complete, the
    first of them for entry `first_seq`; `count` is their number. `pack` is the group's file in
    staging/ (without ``.pack``), None if nothing had to be staged."""

    def __init__(
        self, files: Files, staging: Path, uploads: Path, first_seq: int, spares: SpareFiles
    ) -> None:
        self._files = files
        self._spares = spares
        self._staging = staging
        self._uploads = uploads
        self.first_seq = first_seq
        self.accepted: list[int] = []
        self.refused: dict[int, SfsdError] = {}
        self.drafts: list[EntryDraft] = []
        self.steps: list[InstallStep] = []
        self.changes: list[Change] = []
        self.adopted: list[UploadFile] = []
        self.linked: list[str] = []
        self.pack: str | None = None
        self.count = 0

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.count - 1

    def release_drafts(self) -> None:
        """Free data that settling does not need: many groups may wait for it."""
        self.drafts.clear()
        self.changes.clear()

    def mark_logged(self) -> None:
        """Record that the log may name this group from now on: no upload of it is dropped."""
        for staged in self.adopted:
            staged.mark_logged()

    def abandon(self) -> None:
        """Undo a group that is not in the log. Uploads stay, so that they can be retried."""
        for staged in self.adopted:
            staged.mark_logged(logged=False)
        for change in self.changes:
            if change.claim is not None:
                change.claim.release()
        self.adopted.clear()
        self.drop_stage()

    def drop_stage(self) -> None:
        """Remove from staging/ what the group no longer needs."""
        for name in [staged.name for staged in self.adopted] + self.linked:
            _drop(self._files, self._uploads / f"{name}.ct")
        if self.pack is not None:
            path = self._staging / f"{self.pack}.pack"
            with suppress(OSError):
                if self._spares.give_back(path):
                    return
            _drop(self._files, path)


class GroupBuilder:
    """Prepares one group. For the committer thread."""

    def __init__(
        self,
        files: Files,
        syncs: SyncGuard,
        *,
        users: Path,
        staging: Path,
        uploads: Path,
        spares: tuple[SpareFiles, SpareFiles],
        digest_in_place: Callable[[str], bytes | None],
        tag_keys: Callable[[EntryDraft], Mapping[str, bytes]],
        first_seq: int,
    ) -> None:
        self._files = files
        self._syncs = syncs
        self._users = users
        self._staging = staging
        self._uploads = uploads
        self._pack_spares, self._spares = spares
        self._digest_in_place = digest_in_place
        self._tag_keys = tag_keys
        # Nothing but this thread changes files, so a digest is looked up once for a group.
        self._in_place: dict[str, bytes | None] = {}
        self._overlay: dict[str, bytes | None] = {}
        self._members: list[tuple[packs.Member, bytes]] = []
        self._pack = os.urandom(16).hex()
        self.prepared = PreparedGroup(files, staging, uploads, first_seq, spares[0])

    def add(self, index: int, changes: Sequence[Change]) -> None:
        """Accept all changes of set `index` of the group, or record why they are refused: `Stale`,
        the error of a lone change, or `SetRefused`."""
        prepared = self.prepared
        before = prepared.count, len(prepared.steps), len(self._members)
        kept = len(prepared.linked), len(prepared.adopted)
        for place, change in enumerate(changes):
            try:
                self._add(change, None if len(changes) == 1 else (place, len(changes)))
            except SfsdError as exc:
                self._retract(*before, *kept)
                alone = len(changes) == 1 or isinstance(exc, Stale)
                prepared.refused[index] = exc if alone else SetRefused(place, exc)
                return
        prepared.accepted.append(index)

    def _add(self, change: Change, in_set: tuple[int, int] | None) -> None:
        prepared = self.prepared
        keys = self._tag_keys(change.draft)
        self._check(change)
        steps = self._steps(change, prepared.first_seq + prepared.count)
        if change.claim is not None:
            change.claim.acquire()
        prepared.changes.append(change)
        prepared.count += 1
        prepared.drafts.append(self._draft(change.draft, steps, in_set, keys))
        for step in steps:
            self._overlay[step.path] = step.digest
        prepared.steps.extend(steps)
        self._add_members(steps)

    def _retract(self, count: int, steps: int, members: int, linked: int, adopted: int) -> None:
        """Take back what was added since there were so many of each."""
        prepared = self.prepared
        self._unlink(linked)
        del prepared.adopted[adopted:]
        if prepared.count == count:
            return
        for change in reversed(prepared.changes[count:]):
            if change.claim is not None:
                change.claim.release()
        del prepared.changes[count:], prepared.drafts[count:]
        del prepared.steps[steps:], self._members[members:]
        prepared.count = count
        self._overlay = {step.path: step.digest for step in prepared.steps}

    def stage(self) -> None:
        """Make the data of the accepted changes durable; a failure leaves nothing behind. Raises
        StoreRefusedError, StoreFullError, StoreFailedError."""
        try:
            self._syncs.check()  # sealing an upload may have failed
            if self._members:
                self._write_pack()
        except SfsdError:
            self.prepared.abandon()
            raise

    def _check(self, change: Change) -> None:
        stale = [path for path, digest in change.expect.items() if self._digest(path) != digest]
        # If this group touched a source, it is not what its operation saw.
        sources = (effect.source for effect in change.effects if isinstance(effect, Link))
        stale.extend(source for source in sources if source in self._overlay)
        if stale:
            raise Stale(tuple(stale))

    def _digest(self, path: str) -> bytes | None:
        if path in self._overlay:
            return self._overlay[path]
        if path not in self._in_place:
            self._in_place[path] = self._digest_in_place(path)
        return self._in_place[path]

    def _steps(self, change: Change, seq: int) -> list[InstallStep]:
        return [self._step(effect, seq, change.expect) for effect in change.effects]

    def _step(self, effect: Effect, seq: int, expect: Mapping[str, bytes | None]) -> InstallStep:
        match effect:
            case Write(path, data, digest):
                contents = data(seq) if callable(data) else data
                known = digest() if callable(digest) else digest or digest_of(path, contents)
                replaces = expect.get(path) is not None  # checked just before
                return InstallStep(path, known, contents, replaces=replaces)
            case Adopt(path, staged):
                if any(staged is other for other in self.prepared.adopted):
                    raise Stale((path,))
                staged.seal()
                self.prepared.adopted.append(staged)
                return InstallStep(path, staged.root, blob=staged.name)
            case Link(path, source, root):
                return InstallStep(path, root, blob=self._link(source))
            case Remove(path):
                return InstallStep(path, None)

    def _link(self, source: str) -> str:
        """Add a durable second name in staging/ for the ciphertext `source`; return it."""
        name = os.urandom(16).hex()
        self.prepared.linked.append(name)
        path = self._uploads / f"{name}.ct"
        try:
            self._files.link_or_copy(self._users / source, path)
            handle = self._files.open_update(path)
        except FileNotFoundError as exc:
            raise Stale((source,)) from exc
        except OSError as exc:
            raise store_error(exc, "linking a ciphertext") from exc
        with self._files.closing(handle):
            self._syncs.file(handle)
        return name

    def _unlink(self, keep: int) -> None:
        """Remove all links but the first `keep`."""
        for name in self.prepared.linked[keep:]:
            _drop(self._files, self._uploads / f"{name}.ct")
        del self.prepared.linked[keep:]

    def _draft(
        self,
        draft: EntryDraft,
        steps: list[InstallStep],
        in_set: tuple[int, int] | None,
        keys: Mapping[str, bytes],
    ) -> EntryDraft:
        if not steps:
            return changed(draft, in_set=in_set, tag_keys=keys)
        paths = {step.path: None if step.digest is None else step.digest.hex() for step in steps}
        staged = any(step.digest is not None for step in steps)
        stage = self._pack if staged else None
        detail = {**draft.detail, "paths": paths}
        return changed(draft, stage=stage, detail=detail, in_set=in_set, tag_keys=keys)

    def _add_members(self, steps: list[InstallStep]) -> None:
        for step in steps:
            if step.digest is not None:
                member = packs.Member(step.path, step.digest, len(step.data), blob=step.blob)
                self._members.append((member, step.data))

    def _write_pack(self) -> None:
        self.prepared.pack = self._pack
        data = packs.encode(self._members)
        path = self._staging / f"{self._pack}.pack"
        try:
            try:
                self._check_room(len(data))
                with self._files.closing(self._files.open_new(path)) as handle:
                    self._files.write_all(handle, data)
                    self._syncs.file(handle)
            except (OSError, StoreFullError) as exc:
                full = isinstance(exc, StoreFullError) or exc.errno in FULL_DISK
                if not full or not self._write_with_spare(path, data):
                    raise
        except OSError as exc:
            raise store_error(exc, "staging a group") from exc
        self._syncs.folder(self._staging)
        if self._uploads != self._staging:
            self._syncs.folder(self._uploads)

    def _write_with_spare(self, path: Path, data: bytes) -> bool:
        """Write the pack although the disk is full, for a group that creates no file: such groups
        are what clears the disk. Return False for another group, or if spare files are missing to
        install this one. Raises OSError, StoreFailedError."""
        written = [step for step in self.prepared.steps if step.digest is not None]
        if not all(step.replaces for step in written):
            return False
        if not self._spares.can_hold(len(step.data) for step in written):
            return False
        self._files.remove(path)
        if not self._pack_spares.write(path, data, whole=True):
            return False
        with self._files.closing(self._files.open_update(path)) as handle:
            self._syncs.file(handle)
        return True

    def _check_room(self, size: int) -> None:
        """Raise StoreFullError unless the pack of `size` bytes can be written, and its bytes once
        more to install them: by then they are logged. Each is looked for where it will be. A
        ciphertext is on the disk of the store already. Raises OSError."""
        files, one = self._files, self._files.same_disk(self._staging, self._users)
        count = len(self._members) + _MARGIN_FILES
        for folder, length in ((self._staging, 2 * size if one else size), (self._users, size)):
            free_files = files.free_files(folder)
            if files.free(folder) < length + _MARGIN or (
                free_files is not None and free_files < count
            ):
                raise StoreFullError(f"staging a group: the disk of {folder.absolute()} is full")


def _drop(files: Files, path: Path) -> None:
    # A leftover that no entry past `applied` names: the next start removes it.
    with suppress(OSError):
        files.remove(path)
