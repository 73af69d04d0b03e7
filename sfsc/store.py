"""`Store`, the files and keys of one account. Its methods delegate to the other packages."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from protocol.codec.values import Value, changed
from protocol.records.records import ReaderEntry, Statement
from protocol.wire.messages.accounts import Usage, UsageAnswer
from sfsc.account.key_status import KeyStatus
from sfsc.closing import Closing
from sfsc.crypto.envelope import check_name, requested_version
from sfsc.errors import (
    BadReceipt,
    LocalError,
    NetworkError,
    NotFound,
    NotRegularFile,
    SfscError,
    UsageError,
)
from sfsc.files.listing import Files
from sfsc.keys.account_info import Whoami, account_link, describe_account
from sfsc.keys.home import (
    Passphrase,
    auto_rotate_enabled,
    home_folder,
    require_passphrase,
    resolve_min_wrap_alg,
)
from sfsc.keys.keyring import KeyringFile
from sfsc.library_log import log_warning
from sfsc.log.seen_checkpoints import SeenCheckpoints
from sfsc.per_thread import PerThread
from sfsc.session.limits import Throttle, Timeouts
from sfsc.session.pipeline import Skip
from sfsc.session.progress import Progress
from sfsc.session.session import Session
from sfsc.session.waiting import Blocking, Waiting
from sfsc.threadguard import ThreadGuard, single_threaded
from sfsc.times import Time, as_datetime, as_seconds
from sfsc.transfer.download import Downloads, Got, Target
from sfsc.transfer.remote_version import RemoteVersion, VersionRequest
from sfsc.transfer.source import Source, new_folder
from sfsc.transfer.upload import Put, Uploads
from sfsc.trust.file_records import Entry, VerifiedFile
from sfsc.trust.state import open_client_state

if TYPE_CHECKING:  # imported at first use: few programs need them
    from sfsc.account.devices import DeviceInfo, Devices
    from sfsc.account.rotate import Rotation, RotationPlan, RotationResult
    from sfsc.files.contacts import Contacts, Person
    from sfsc.files.history import ExportedKey, FileHistory, Revision
    from sfsc.files.inbox import ReceivedFiles, Shared
    from sfsc.files.purge import Purged, Purges
    from sfsc.files.rename import Renamed, Renames
    from sfsc.files.restore import Restored, Restores
    from sfsc.files.settings import AccountSettings, Folder
    from sfsc.files.shared_folders import SharedFolders
    from sfsc.files.sharing import Grant, Sharing
    from sfsc.files.sync import Synced
    from sfsc.files.transaction import Changed, Transaction
    from sfsc.files.tree import Trees
    from sfsc.files.versions import DeletedFile, Space, StoredFiles
    from sfsc.log.audit import Audit, LogEvent, VerifiedHistory
    from sfsc.log.receipts import VerifiedProof


class Status(Value):
    """State of the account. `used` and `quota` (0: unlimited) are in bytes, times in Unix seconds.

    `live`, `versions` and `trash` are the bytes of the contents (`Space`); `used` is what the
    server counts, with what it keeps beside them and with running uploads.

    `server_id` is 32 bytes. `log_size` is the number of entries of the server's log at login,
    proven to continue the log seen before. The keys are to be rotated by `due`, and other users
    stop using them after `expires`. `log_vkey` is the log's verification key (C2SP). `recovery`
    tells whether there is a recovery code. `rotation` is why the keys must be rotated now, such as
    the reason of the operator who required it, "" if they need not be.
    """

    user: str
    address: str
    server_id: bytes
    used: int
    quota: int
    files: int
    live: int
    versions: int
    trash: int
    log_size: int
    generation: int
    due: int
    expires: int
    log_vkey: str
    recovery: bool
    rotation: str

    @property
    def due_at(self) -> datetime | None:
        """Time at which the keys are to be rotated, in UTC."""
        return as_datetime(self.due)

    @property
    def expires_at(self) -> datetime | None:
        """Time at which other users stop using the keys, in UTC."""
        return as_datetime(self.expires)


@single_threaded
class Store(Closing):
    """One account on its server, made by `connect`; also a context manager.

    Several threads may use it: each has a connection of its own. Use an iterator, an open file or a
    transaction on the thread that made it.

    Each method can raise every `SfscError`: `UsageError` if the store is closed, `NotFound` for a
    missing file, `NetworkError`, and `IntegrityError` if the server shows data that was not signed
    or that contradicts its log. Docstrings name only further errors.

    `version` counts from 1; None means the current one. An iterator does its work while it is
    read, and must be read to its end.

    If `trust_first_use` is false, a user whose fingerprint was never compared (`verify_person`)
    raises `Untrusted`. If it is true, the key that the server shows is trusted and remembered.

    Methods on many files take `skip`, a function that is called with the path or name and the
    error of each file that failed; the others are processed. Without it the error is raised, except
    `NotRegularFile`: such a file is left out.
    """

    def __init__(
        self,
        file: KeyringFile,
        home: str | os.PathLike[str],
        timeouts: Timeouts | None = None,
        progress: Progress | None = None,
        *,
        auto_rotate: bool | None = None,
        min_wrap_alg: str | None = None,
        limit_rate: int | None = None,
        waiting: Waiting | None = None,
    ) -> None:
        how = waiting or Blocking()
        self._threads: PerThread[Store] | None = None
        self._weakest = resolve_min_wrap_alg(min_wrap_alg)
        self._file = file
        self._state = open_client_state(home_folder(home), file, must_be_saved=False)
        try:
            throttle = None if limit_rate is None else Throttle(limit_rate, how.pause)
            self._session = Session(
                file.contents, self._state, timeouts, progress, throttle=throttle, waiting=how
            )
        except BaseException:
            self._state.close()
            raise
        self.thread_guard: ThreadGuard = self._session.thread_guard
        self._key_status = KeyStatus(self._session, file)
        try:
            self._session.connect()
            self._session.renewer = self._adopt_newer_keys
            self._session.adopt_saved_device = self._adopt_saved_device
            self._session.readers = lambda: self._contacts
            self._session.new_readers = self._readers_of_new_file
            self._session.pads = self._pads_contents
            self._session.share_deleted = self._share_deleted
            self._session.drop_left = self._drop_left
            self._session.leave_out = self._leave_out
            if self._session.is_behind:
                self._adopt_newer_keys()
            self._renew_keys(auto_rotate)
            self._session.require_followed()
        except BaseException as exc:
            self._session.keep_evidence(exc)
            self.close()
            raise
        self._uploads = Uploads(self._session)
        self._downloads = Downloads(self._session)
        self._files = Files(self._session)

        def again() -> Store:
            return Store(
                file.reopened(),
                home,
                timeouts,
                progress,
                auto_rotate=False,
                min_wrap_alg=min_wrap_alg,
                limit_rate=limit_rate,
                waiting=waiting,
            )

        self._threads = PerThread(self, again)

    def for_thread(self) -> Store:
        """Return the store that the methods use on this thread: each thread has a connection of its
        own, which is opened at its first call. Raises as `connect`."""
        return self if self._threads is None else self._threads.get()

    def _renew_keys(self, auto_rotate: bool | None) -> None:
        """Finish pending work on the keys, and rotate them if they are due.

        Whatever stops this is only logged as a warning, because the account works without it. It is
        raised if the server gives this session nothing, because its keys are older than the
        account's.
        """
        status = self._key_status
        rotates = auto_rotate_enabled() if auto_rotate is None else auto_rotate
        try:
            if status.has_pending_work:
                self._devices.finish_pending()
            if rotates and status.should_rotate():
                try:
                    self._rotation.rotate(automatic=True)
                except SfscError as exc:
                    if not isinstance(exc, NetworkError):
                        status.remember_failure()
                    raise
            elif auto_rotate is None and status.is_due():
                log_warning("your keys must be rotated", status.reason, "run `sfsc rotate`")
        except SfscError as exc:
            if self._session.is_restricted:
                raise
            self._session.keep_evidence(exc)
            retry = "" if "`sfsc rotate`" in exc.hint else "; `sfsc rotate` tries it again"
            log_warning("your keys could not be renewed", exc.cause, exc.hint + retry)

    def put(
        self,
        source: Source,
        *,
        name: str | None = None,
        expected: int | None = None,
        pad: bool | None = None,
    ) -> Put:
        """Store the content of `source`, a path or a binary stream, as the newest version of
        `name`, by default the path.

        With `expected`, raise `ConflictError` unless that is the current version (0: no such file).
        With `pad`, hide the size of the content by zero bytes after it, less than 12 %; None: as
        the account's settings say (`set_padding`).
        """
        return self._uploads_with(pad).put(source, name, expected=expected)

    def _uploads_with(self, pad: bool | None) -> Uploads:
        return self._uploads if pad is None else Uploads(self._session, pad=pad)

    def put_command(
        self,
        command: str | Sequence[str],
        name: str,
        *,
        expected: int | None = None,
        pad: bool | None = None,
    ) -> Put:
        """Run `command` (a text by the shell, a list of words directly) and store what it writes to
        its stdout as the newest version of `name`, but only if it succeeds. Raises `CommandFailed`,
        and as `put`; then nothing is stored, and the command is stopped if it still runs."""
        from sfsc.transfer.command_output import CommandOutput

        check_name(name)
        with CommandOutput(command) as output:
            uploads = self._uploads_with(pad)
            return uploads.put(cast(BinaryIO, output), name, expected=expected)

    def put_many(
        self,
        items: Iterable[tuple[Source, str | None]],
        *,
        checksum: bool = False,
        pad: bool | None = None,
    ) -> Iterator[Put]:
        """Store (source, name) pairs with many requests in flight. Yield results in input order.
        `checksum` records the SHA-256 also of sources of more than 64 MiB, as `put_tree` does.
        `pad` as in `put`."""
        return self._uploads_with(pad).put_many(items, hash_all=checksum)

    def get(
        self,
        name: str,
        target: Target | None = None,
        *,
        version: int | None = None,
        overwrite: bool = True,
        newer: bool = False,
    ) -> Got:
        """Fetch a file into `target`: a path, a folder or a binary stream, by default the last part
        of `name` in the current folder.

        A file appears when it is complete and verified. A stream receives verified bytes only, but
        the last ones may be missing: they count only if this returns.

        If the file exists and `overwrite` is false, raise `ConflictError`; if `newer` is true and
        it was changed later than the stored one, leave it, and return the status ``skipped``."""
        return self._downloads.get(name, target, version=version, overwrite=overwrite, newer=newer)

    def get_each(
        self, items: Sequence[tuple[str, Target | None]]
    ) -> Iterator[tuple[int, Got | SfscError]]:
        """Fetch (name, target) pairs, each as `get` does, with many requests in flight. Yield the
        index of each with its result, or with the error that it alone has, as they are done."""
        return self._downloads.get_each(items)

    def read_bytes(self, name: str, *, version: int | None = None) -> bytes:
        """Return the content of a file. Raises `UnsupportedKind` for a folder or a link."""
        content = io.BytesIO()
        self._downloads.get(name, content, version=version)
        return content.getvalue()

    def write_bytes(self, name: str, content: bytes, *, expected: int | None = None) -> Put:
        """Store `content` as the newest version of `name`. `expected` as in `put`."""
        return self._uploads.put(io.BytesIO(content), name, expected=expected)

    def open(self, name: str, *, version: int | None = None) -> io.BufferedReader:
        """Open a file as a seekable stream that fetches only what is read."""
        check_name(name)
        return self._reader(RemoteVersion.open_own(self._session, name, requested_version(version)))

    def _reader(self, remote: RemoteVersion) -> io.BufferedReader:
        from sfsc.transfer.reader import Reader

        seen = SeenCheckpoints(self._session)
        seen.add(remote.file)
        seen.verify()
        return io.BufferedReader(Reader(self._session, remote), 128 * 1024)

    def put_tree(
        self,
        folder: Path | Sequence[Path],
        *,
        name: str | None = None,
        skip: Skip | None = None,
        links: bool = True,
        always: bool = False,
        checksum: bool = False,
        exclude: Sequence[str] = (),
        dry_run: bool = False,
        pad: bool | None = None,
    ) -> Iterator[Put]:
        """Store everything below `folder` (or below several, or files) that is new or has changed,
        under the folder `name` ("": under their paths below it; None: under its own path). Symbolic
        links are stored as links, unless `links` is false. Folders are stored with their modes and
        times; only empty ones are yielded.

        A file has changed if its size or its time differs from what is stored; with `checksum`, if
        its SHA-256 does. That is stored with each file of at most 64 MiB, and with larger ones that
        were put with `checksum`. `always` stores all. The result of a file that has not changed has
        the status ``unchanged``, and no receipt.

        `exclude` are patterns as in a ``.gitignore`` of what is left out; files ``.sfsignore`` in
        the folders may have more, and are stored themselves. With `dry_run` nothing is stored.
        `pad` as in `put`.
        """
        return self._trees.put(
            [folder] if isinstance(folder, Path) else folder,
            name,
            skip or _raise,
            links=links,
            always=always,
            checksum=checksum,
            exclude=exclude,
            dry_run=dry_run,
            pad=pad,
        )

    def get_tree(
        self,
        name: str,
        target: Path,
        owner: str | None = None,
        *,
        skip: Skip | None = None,
        trust_first_use: bool = False,
        links: bool = False,
        always: bool = False,
        checksum: bool = False,
        overwrite: bool = True,
        newer: bool = False,
        exclude: Sequence[str] = (),
        dry_run: bool = False,
    ) -> Iterator[Got]:
        """Fetch everything in the folder `name` ("": all) to its path below `target`: our own
        files, or those that the user `owner` shares. Symbolic links are made only with `links`. The
        modes and times of folders are set at the end, when all files are there.

        An existing file that is the same (as in `put_tree`; `checksum` and `always` as there) stays
        as it is, with the status ``unchanged``. If `overwrite` is false, other existing files stay
        too, with the status ``skipped``; with `newer`, those that were changed later than the
        stored ones. `exclude` are patterns of what is left out; with `dry_run` nothing is written.
        """
        from sfsc.files.tree import Replace

        found = None
        if owner is not None:
            found = self._inbox.list_folder(owner, name, skip or _raise, first_use=trust_first_use)
        replace = Replace(always, checksum, overwrite, newer)
        return self._trees.get(
            name,
            target,
            skip or _raise,
            found,
            links=links,
            replace=replace,
            exclude=exclude,
            dry_run=dry_run,
        )

    def get_many(
        self,
        names: Sequence[str],
        target: Path,
        *,
        skip: Skip | None = None,
        always: bool = False,
        checksum: bool = False,
        overwrite: bool = True,
        newer: bool = False,
    ) -> Iterator[Got]:
        """Fetch files, each to the last part of its name in the folder `target`; other arguments as
        in `get_tree`. Raises `UsageError` if two would be written to one place."""
        from sfsc.files.tree import Replace

        how = Replace(always, checksum, overwrite, newer)
        return self._trees.get_names(names, target, skip or _raise, how)

    def sync(
        self,
        folder: Path,
        prefix: str | None = None,
        *,
        down: bool = False,
        delete: bool = False,
        dry_run: bool = False,
        checksum: bool = False,
        links: bool = False,
        exclude: Sequence[str] = (),
        skip: Skip | None = None,
    ) -> Iterator[Synced]:
        """Make the folder `prefix` of the store ("": all; None: the path of `folder`) hold what
        `folder` holds, ``folder/x`` as ``prefix/x``; with `down`, the other way.

        What both held last is remembered in the client's home, so only what has changed since is
        transferred. A file that has changed on both sides is kept twice: the one in the way gets a
        conflict name. With `delete`, what was deleted on one side is deleted on the other, if it
        has not changed there. `links` makes symbolic links that are stored; `checksum`, `exclude`
        and `dry_run` as in `put_tree`. Raises `SyncRunning` if another process does the same.
        """
        from sfsc.files.sync import Sync

        work = Sync(
            self._session,
            folder,
            prefix,
            down=down,
            delete=delete,
            dry_run=dry_run,
            checksum=checksum,
            links=links,
            exclude=exclude,
        )
        return work.run(skip or _raise)

    def rm_tree(self, name: str, *, skip: Skip | None = None) -> Iterator[Entry]:
        """Delete every file in the folder `name` ("": all). Yield the deleted versions. Files that
        cannot be listed are passed to `skip`; without it, the first of their errors is raised."""
        return self._trees.rm(name, skip or _raise)

    def mv(self, name: str, to: str) -> Entry:
        """Rename the file `name` to `to`. Raises `ConflictError` if `to` exists."""
        entry = self._renames.mv(name, to)
        self._sharing.add_folder_readers(entry.name)
        return entry

    def mv_many(
        self, names: Sequence[str], to: str, *, skip: Skip | None = None
    ) -> Iterator[Renamed]:
        """Rename files and folders as the `mv` of a shell does: into the folder `to` if it exists,
        ends with a slash, or there are several `names`; else to the new name `to`.

        A name with a slash at its end is a folder. Raises
        `UsageError` and `NotFound` before anything is changed, `UsageError` also for a name that a
        file and a folder have. A file whose new name exists fails with a `ConflictError`."""
        for one in self._renames.mv_many(names, to, skip or _raise):
            self._sharing.add_folder_readers(one.entry.name)
            yield one

    def mv_tree(self, name: str, to: str, *, skip: Skip | None = None) -> Iterator[Renamed]:
        """Rename the folder `name` to `to`, or into `to` if there is such a folder. Raises as
        `mv_many`."""
        return self.mv_many([f"{name.rstrip('/')}/"], to.rstrip("/"), skip=skip)

    def transaction(self) -> Transaction:
        """Return a transaction: several puts, deletions and moves that become visible together or
        not at all.

        ::

            with store.transaction() as change:
                change.put("site/index.html", "index.html")
                change.delete("site/old.html")
                change.move("site/new.css", "site/main.css")
            print(change.results)

        Its methods collect the changes; sources are read, and contents of more than 256 KiB are
        uploaded, but nothing is changed before the block ends. If the block raises, nothing is
        changed, and the uploads are dropped. At its end the server makes all changes durable, or
        none: raises `ConflictError`, `NotFound`, `QuotaExceeded` and others for the first change
        that is refused. After a `NetworkError` it is unknown which; all or none was made.

        Each file is changed once, and all changes fit into one changeset: at most 256 names (a move
        has two), 1 MiB of contents of at most 256 KiB each, and 1,024 keys for readers. Otherwise
        `UsageError` is raised. Readers of a shared folder get files that were moved into it
        afterwards, one by one.
        """
        from sfsc.files.transaction import Transaction

        return Transaction(self._session, self._uploads, self._sharing.add_folder_readers)

    def ls(
        self, prefix: str = "", *, skip: Skip | None = None, folders: bool = False
    ) -> Iterator[Entry]:
        """Yield the current version of every file whose name starts with `prefix`, by name; also of
        links and empty folders, and with `folders` of all folders that are stored. Files that the
        server has damaged, lost or does not show are passed to `skip`; without it, the first of
        their errors is raised after the last entry."""
        return self._files.ls(prefix, skip, folders=folders)

    def stat(self, name: str) -> Entry:
        """Return the current version of `name`, without its content."""
        return self._files.stat(name)

    def exists(self, name: str) -> bool:
        """Return whether there is a file `name`, which is not deleted."""
        try:
            self._files.stat(name)
        except NotFound:
            return False
        return True

    def mkdir(self, name: str) -> Put:
        """Store an empty folder `name`. Few programs need one: the name of a file implies its
        folder. Raises `ConflictError` if it is stored already."""
        return self._uploads.put(new_folder(name), expected=0)

    def rmdir(self, name: str) -> None:
        """Delete the stored folder `name`. Raises `UsageError` if something is in it, and
        `NotFound` if it is not stored, as a folder is that only names imply."""
        self._files.rmdir(name)

    def rm(self, name: str) -> Entry:
        """Delete `name` and return the version that was current. The versions stay as trash."""
        return self._files.rm(name)

    def rm_many(self, names: Iterable[str], *, skip: Skip | None = None) -> Iterator[str]:
        """Delete files, and yield their names. Raises as `rm`, for each."""
        return self._stored.rm_many(names, skip or _raise)

    def trash(self, prefix: str = "", *, skip: Skip | None = None) -> list[DeletedFile]:
        """Return the deleted files whose names start with `prefix` and that still have a content,
        by name. `restore` brings them back. Files that were renamed are not among them."""
        return self._stored.deleted(prefix, skip or _raise)

    def du(self, name: str = "", *, owner: str | None = None, skip: Skip | None = None) -> Space:
        """Return how many bytes of contents the file or folder `name` ("": all) takes on the
        server: current versions, older ones, and trash. Of what the user `owner` shares with us,
        only the current versions are known."""
        if owner is not None:
            return self._inbox.space(owner, name, skip or _raise)
        return self._stored.space(name, skip or _raise)

    def history(self, name: str, *, skip: Skip | None = None) -> list[Revision]:
        """Return every record of `name`, deleted or not, oldest first, all verified. If the newest
        version is damaged, `skip` is called with its `Damaged` error, and the records come from the
        log; without `skip` it is raised."""
        return self._history.history(name, skip)

    def restore(self, name: str, *, version: int | None = None) -> Entry:
        """Make the content of `version` the newest version; for a deleted file, by default the last
        content before the deletion."""
        entry = self._history.restore(name, version)
        self._sharing.add_folder_readers(entry.name)
        return entry

    def export_dek(
        self,
        name: str,
        *,
        version: int | None = None,
        owner: str | None = None,
        file_id: str | None = None,
        trust_first_use: bool = False,
    ) -> ExportedKey:
        """Return the key of one version's content, to decrypt it with another program: of our file
        `name`, or of the one that the user `owner` shares. The other arguments are as in
        `get_shared`, which it raises as."""
        if owner is not None:
            from sfsc.files.history import exported_key

            remote = self._shared(owner, name, version, file_id, first_use=trust_first_use)
            return exported_key(remote.file, remote.content_key)
        return self._history.export_key(name, version)

    def restore_many(self, names: Iterable[str], *, skip: Skip | None = None) -> Iterator[Restored]:
        """Bring back deleted files, each with what it held last. Raises as `restore`, for each."""
        return self._shared_again(self._restores.names(names, skip or _raise))

    def restore_tree(
        self, name: str, *, at: Time | None = None, skip: Skip | None = None
    ) -> Iterator[Restored]:
        """Bring back every deleted file in the folder `name` ("": all).

        With `at`, a `Time`, make the folder what it was then, by the clocks of the machines
        that changed it: changed files get the version of that time, and files that did not exist
        are deleted. Nothing is lost: what was current before stays an older version, or trash.
        Files that were not changed since are not yielded. Raises `NotFound`, also if no file was in
        the folder then: nothing is changed."""
        return self._shared_again(self._restores.folder(name, as_seconds(at), skip or _raise))

    def _shared_again(self, restored: Iterable[Restored]) -> Iterator[Restored]:
        for one in restored:
            if one.version:
                self._sharing.add_folder_readers(one.name)
            yield one

    def prune(self, name: str, *, keep: int) -> list[int]:
        """Permanently remove the contents of all but the newest `keep` versions of `name`. Return
        the versions removed."""
        found = self._purges.prune([name], keep, _raise)
        return [version for one in found for version in one.versions]

    def prune_tree(self, name: str, *, keep: int, skip: Skip | None = None) -> Iterator[Purged]:
        """Permanently remove the contents of all but the newest `keep` versions of every file in
        the folder `name` ("": all), deleted or not. Yield the files that had more versions. Raises
        `NotFound`."""
        return self._purges.prune_tree(name, keep, skip or _raise)

    def purge(self, name: str) -> list[int]:
        """Permanently remove the contents of the deleted file `name`. Return the versions removed.
        Raises `UsageError` if the file is not deleted."""
        return self._purges.purge(name)

    def purge_many(self, names: Iterable[str], *, skip: Skip | None = None) -> Iterator[Purged]:
        """Delete files, unless they are deleted already, and permanently remove their contents."""
        return self._purges.delete_and_purge(names, skip or _raise)

    def purge_tree(self, name: str, *, skip: Skip | None = None) -> Iterator[Purged]:
        """Delete every file in the folder `name` ("": all) and permanently remove the contents of
        all versions, also of files that were deleted before. Raises `NotFound`."""
        return self._purges.purge_tree(name, skip or _raise)

    def purge_trash(
        self, *, before: Time | None = None, skip: Skip | None = None
    ) -> Iterator[Purged]:
        """Permanently remove the contents of all deleted files, or only of those that were deleted
        `before` a `Time`, by the clocks of the machines that deleted them."""
        return self._purges.purge_trash(as_seconds(before), skip or _raise)

    def give_up_damaged(self, which: str) -> list[int]:
        """Permanently remove the damaged versions of the file `which` (a name or a file_id), and
        delete it if the current version is one. Return the versions removed. Raises `NotFound` if
        none is damaged."""
        from sfsc.files.damaged import DamagedFiles

        return DamagedFiles(self._session).give_up(which)

    def share(
        self,
        name: str,
        user: str,
        *,
        expires: Time | None = None,
        history: bool = False,
        trust_first_use: bool = False,
    ) -> Grant:
        """Let `user` read the current and later versions of `name`, with `history` the older ones
        too, until `expires` (a `Time`; 0: until `unshare`; None: as before, if `user` reads it
        already). Raises `WeakRecipient` if the key of `user` is expired or too weak."""
        return self._sharing.share(
            name, user, expires=as_seconds(expires), history=history, first_use=trust_first_use
        )

    def unshare(self, name: str, user: str, *, reencrypt: bool = False) -> Grant:
        """Stop sharing `name` with `user`. With `reencrypt`, store the current version again under
        a key that `user` never had. Raises `NotFound` if it was not shared."""
        return self._sharing.unshare(name, user, reencrypt=reencrypt)

    def share_tree(
        self,
        name: str,
        user: str,
        *,
        expires: Time | None = None,
        history: bool = False,
        trust_first_use: bool = False,
    ) -> Iterator[Grant]:
        """Share every file in the folder `name` ("": all), and every file that is put there later.
        Arguments and errors as in `share`."""
        return self._sharing.share_tree(
            name, user, expires=as_seconds(expires), history=history, first_use=trust_first_use
        )

    def unshare_tree(self, name: str, user: str, *, reencrypt: bool = False) -> Iterator[Grant]:
        """Stop sharing the folder `name` and the files in it, as `unshare` does."""
        return self._sharing.unshare_tree(name, user, reencrypt=reencrypt)

    def readers(self, name: str) -> list[Grant]:
        """Return the users who may read `name`, without ourselves."""
        return self._sharing.readers(name)

    def shares(self, *, skip: Skip | None = None) -> Iterator[Grant]:
        """Yield who may read which of our files, and until when, by name and user. Files that the
        server has damaged or lost are passed to `skip`, as in `ls`."""
        return self._sharing.list_grants(skip)

    def padding(self) -> bool:
        """Return whether the account's settings say that contents are padded. Asks the server."""
        return self._settings.read().pad

    def set_padding(self, pad: bool, /) -> None:
        """Have every machine of the account pad the contents that it stores from now on, or not."""
        self._settings.change(lambda settings: changed(settings, pad=pad))

    def shared_folders(self) -> tuple[Folder, ...]:
        """Return the folders whose new files are shared, one for each reader."""
        return self._shared_folders.list_folders()

    def inbox(self, *, skip: Skip | None = None) -> list[Shared]:
        """Return the files that others share with us, sorted by owner and name."""
        return self._inbox.list_files(skip or _raise)

    def leave(self, owner: str, name: str, *, file_id: str | None = None) -> str:
        """Leave the file `name` that `owner` shares: the server shows us nothing of it any more,
        and the owner's client drops us as a reader. Return its id. `file_id` chooses among several
        files of that name, and `name` may be an id too. Raises `NotFound`."""
        return self._inbox.leave(owner, name, file_id=file_id)

    def block(self, owner: str) -> None:
        """Have the server show us nothing of what `owner` shares, and refuse what they share with
        us later. Raises `NotFound` if there is no such user."""
        self._inbox.block(owner)

    def unblock(self, owner: str) -> None:
        """End `block`: the files that `owner` has shared are shown again."""
        self._inbox.block(owner, blocked=False)

    def blocked(self) -> tuple[str, ...]:
        """Return the owners whom we block, by name."""
        return self._inbox.blocked()

    def stat_shared(self, owner: str, name: str, *, file_id: str | None = None) -> Shared:
        """Return the present version of the file `name` that `owner` shares, without its content.
        Raises `ConflictError` if several have this name and `file_id` does not choose one."""
        return self._inbox.stat(owner, name, file_id)

    def shared_history(
        self, owner: str, name: str, *, file_id: str | None = None
    ) -> list[Revision]:
        """Return every record of the file `name` that `owner` shares, oldest first, all verified.
        Raises as `stat_shared`."""
        return self._history.shared_history(*self._inbox.newest(owner, name, file_id))

    def get_shared(
        self,
        owner: str,
        name: str,
        target: Target | None = None,
        *,
        version: int | None = None,
        file_id: str | None = None,
        trust_first_use: bool = False,
        overwrite: bool = True,
        newer: bool = False,
    ) -> Got:
        """Fetch the file `name` that `owner` shares, like `get`. Raises `ConflictError` if several
        shared files have this name and `file_id` does not choose one."""
        remote = self._shared(owner, name, version, file_id, first_use=trust_first_use)
        return self._downloads.fetch(remote, target, overwrite=overwrite, newer=newer)

    def open_shared(
        self,
        owner: str,
        name: str,
        *,
        version: int | None = None,
        file_id: str | None = None,
        trust_first_use: bool = False,
    ) -> io.BufferedReader:
        """Open a file that `owner` shares, as `open` does; arguments as in `get_shared`."""
        return self._reader(self._shared(owner, name, version, file_id, first_use=trust_first_use))

    def _shared(
        self, owner: str, name: str, version: int | None, file_id: str | None, *, first_use: bool
    ) -> RemoteVersion:
        return self._inbox.request_version(
            owner, name, requested_version(version), file_id=file_id, first_use=first_use
        )

    def person(self, user: str) -> Person:
        """Return the identity that the server shows for `user`; `pinned` if it is the one trusted
        here. Raises `BrokenChain` if another identity is pinned."""
        return self._contacts.find(user)

    def verify_person(self, user: str, fingerprint: bytes) -> Person:
        """Pin `user` to a fingerprint (32 bytes) that was compared with the user. Raises
        `BrokenChain` if the server shows another."""
        return self._contacts.verify(user, fingerprint)

    def proof_of(self, put: Put | Changed) -> bytes:
        """Return a C2SP tlog-proof that the log contains the result of a `put`, or a change of a
        transaction. `check_proof` verifies it without the server. Raises `UsageError` for a file
        that was not stored, because it has not changed."""
        if not put.record:
            cause = "nothing was stored, so there is no proof of it"
            raise UsageError(cause, "put the file without comparing it")
        return self._audit.proof_of(put.receipt, put.record)

    def check_content(self, proof: VerifiedProof, source: Source) -> None:
        """Check that `source`, a path or a binary stream, is the content that `proof` (by
        `check_proof`) is about: a file of ours, or one shared with us. It is encrypted again here,
        with the key of that version, and compared with the signed hashes; the content is not
        fetched, beside a first piece. Raises `BadReceipt` if it is another content, and `NotFound`
        if that version was removed, or encrypted again since."""
        from sfsc.log.receipts import OTHER_CONTENT
        from sfsc.transfer.source import SourceChanged, open_source

        record, session = proof.content_record(), self._session
        own = record.owner == session.account.user
        owner = None if own else self._contacts.find(record.owner).owner
        version = requested_version(record.version)
        wanted = VersionRequest.build(session, record.file_id, version, owner=owner)
        remote = RemoteVersion.request(session, wanted)
        if remote.file.content_body != proof.record:
            cause = f"version {version} was encrypted again after the entry of this proof"
            raise NotFound(cause, "make a new proof, or ask for the content as it was then")
        try:
            with open_source(source) as reader:
                if not remote.has_content(reader):
                    raise BadReceipt("the proof is of another content", OTHER_CONTENT)
        except SourceChanged as exc:
            raise LocalError("the content changed while it was read") from exc

    def audit_log(self, name: str | None = None, *, owner: str | None = None) -> Iterator[LogEvent]:
        """Yield the log's entries on this account, or on the file `name`, oldest first. They are
        proven to be in the log, and to be complete. Of a file that the user `owner` shares with us,
        they are those that concern us: when we got it, and when we read it."""
        if owner is not None and name is not None:
            shared = self._inbox.stat(owner, name).entry.file_id
            return self._audit.log(shared, {shared: f"{owner}:{name}"})
        # Files that cannot be listed are shown by their ids.
        listed = self._files.ls(skip=lambda _name, _error: None, folders=True)
        names = {entry.file_id: entry.name for entry in listed}
        if name is None:
            return self._audit.log(None, names)
        check_name(name)
        file_id = self._session.account.file_id(name)
        return self._audit.log(file_id, names | {file_id: name})

    def audit_verify(self) -> VerifiedHistory:
        """Verify all records and identity statements of the account against the log."""

        def chain() -> tuple[bytes, ...]:
            self._devices.catch_up()
            return self._file.contents.statements

        return self._audit.verify(chain)

    def audit_compare(self, note: bytes) -> tuple[int, int]:
        """Verify that another user's `checkpoint` is of the log that we see. Return the number of
        entries (in the other checkpoint, in ours). Raises `Fork` or `Rollback` if it is not."""
        return self._audit.compare(note)

    def checkpoint(self) -> bytes:
        """Return the newest proven checkpoint of the log, a C2SP signed note, to be compared by
        other users."""
        return self._session.trust.newest.note

    def rotation_plan(self) -> RotationPlan:
        """Return what `rotate` would do."""
        return self._rotation.plan()

    def rotation_is_due(self) -> bool:
        """Return whether the keys are due, the server requests a rotation, or one is unfinished."""
        return self._key_status.is_due()

    def rotate(
        self,
        *,
        key_type: str | None = None,
        compromised: bool = False,
        names: Sequence[str] = (),
        drop_device: bytes | None = None,
        skip: Skip | None = None,
    ) -> RotationResult:
        """Replace the account's keys, wrap all files for the new ones, and destroy the old ones; or
        finish a rotation that was interrupted.

        `key_type` is the type of the new wrap key, by default the present one. With `compromised`,
        encrypt all contents again, or only all versions of `names`. `drop_device` is the id of a
        device (16 bytes) that does not get the new keys. `skip` is called for each version that is
        damaged and therefore left out."""
        if names and not compromised:
            raise UsageError("names of files need compromised=True")
        return self._rotation.rotate(
            key_type, drop_device, compromised=compromised, names=names, skip=skip
        )

    def verify_rotation(self, *, skip: Skip | None = None) -> RotationResult:
        """Verify that every wrap and record is of the current generation of keys. `skip` is called
        for each version that is older or damaged. Raises `StaleGeneration` if a rotation is
        unfinished."""
        return self._rotation.verify(skip)

    @property
    def link(self) -> str:
        """Link to this account, printed with a recovery code. Not secret."""
        return account_link(self._file.contents).to_text()

    def devices(self) -> list[DeviceInfo]:
        """Return the machines and backups that have the account's keys, then its recovery code."""
        return self._devices.list_devices()

    def label_device(self, device_id: bytes, label: str) -> None:
        """Name a device (its id, 16 bytes) for all machines of the account. The server does not see
        the label, which has 1 to 64 bytes. Raises `NotFound`."""
        self._devices.set_label(device_id, label)

    def backup(
        self,
        path: str | os.PathLike[str],
        *,
        passphrase: Passphrase = None,
        no_passphrase: bool = False,
    ) -> None:
        """Write the account's keys to a new file at `path`, for `sfsc.restore`. It has a passphrase
        of its own unless `no_passphrase`. Raises `LocalError` if the file exists."""
        stated = None if no_passphrase else require_passphrase(passphrase)
        self._devices.backup(Path(path), stated)

    def has_recovery(self) -> bool:
        """Return whether the account has a recovery code."""
        return self._devices.has_recovery()

    def check_recovery(self, code: str) -> None:
        """Raise `UsageError` if `code` is mistyped, `Denied` if it is not the account's."""
        from sfsc.keys.recovery_code import RecoveryCode

        self._devices.check_recovery(RecoveryCode.parse(code))

    def set_recovery(self, code: str, old: str | None = None) -> None:
        """Make `code` (see `new_recovery_code`) the account's recovery code. If the account has
        one, `old` must be it; otherwise `Denied` is raised."""
        from sfsc.keys.recovery_code import RecoveryCode

        before = None if old is None else RecoveryCode.parse(old)
        self._devices.set_recovery(RecoveryCode.parse(code), before)

    def whoami(self) -> Whoami:
        """Return the account of the keyring."""
        return describe_account(self._file.contents)

    def status(self) -> Status:
        """Return the usage, log and keys of the account; asks the server."""
        usage = self._session.call(Usage(), UsageAnswer)
        live, versions, trash = self._stored.sizes()
        me, newest = self.whoami(), Statement.parse(self._file.contents.statements[-1])
        return Status(
            user=me.user,
            address=me.address,
            server_id=me.server_id,
            used=usage.used,
            quota=usage.quota,
            files=usage.files,
            live=live,
            versions=versions,
            trash=trash,
            log_size=self._session.trust.newest.size,
            generation=me.generation,
            due=newest.due,
            expires=newest.expires,
            log_vkey=self._session.trust.log_vkey,
            recovery=self.has_recovery(),
            rotation=self.rotation_due(),
        )

    def server_time(self) -> int | None:
        """Return when this login was, in Unix seconds of the server's clock, as its log has it;
        None if the server can write nothing to its log."""
        device = self._file.contents.device.device_id.hex()
        return None if self._session.reads_only else self._state.last_logins([device]).get(device)

    def rotation_due(self) -> str:
        """Return why the keys must be rotated now, "" if they need not be."""
        return self._key_status.reason if self._key_status.is_due() else ""

    def distrust_evidence(self) -> Path | None:
        """Return the file that proves that the server has shown two logs, so that nothing is signed
        until `accept`; None if it has not."""
        return self._state.distrust_evidence()

    def close(self) -> None:
        """Log out and close the connections of all threads. Idempotent."""
        if self._threads is not None:
            self._threads.close_others()
        self.thread_guard.ended = True
        if self._session.uploading:
            # The caller left a loop over results, above all by an interrupt or a closed pipe.
            self._session.abort_uploads()
        self._session.close()
        self._state.close()

    def _adopt_newer_keys(self) -> None:
        self._devices.catch_up()

    def _adopt_saved_device(self) -> bool:
        return self._devices.adopt_saved_device()

    def _readers_of_new_file(self, name: str) -> tuple[ReaderEntry, ...]:
        return self._shared_folders.readers_of(name)

    def _pads_contents(self) -> bool:
        return self._settings.pads()

    def _share_deleted(self, name: str) -> VerifiedFile | None:
        return self._sharing.add_folder_readers(name, deleted=True)

    def _drop_left(self, file: VerifiedFile) -> VerifiedFile:
        return self._sharing.drop_left(file)

    def _leave_out(self, readers: Sequence[str], cause: str) -> None:
        self._shared_folders.leave_out(readers, cause)

    # --- parts that few programs use, imported at first use ------------------------------------

    @cached_property
    def _audit(self) -> Audit:
        from sfsc.log.audit import Audit

        return Audit(self._session)

    @cached_property
    def _devices(self) -> Devices:
        from sfsc.account.devices import Devices

        return Devices(self._session, self._file)

    @cached_property
    def _shared_folders(self) -> SharedFolders:
        from sfsc.files.shared_folders import SharedFolders

        return SharedFolders(self._settings)

    @cached_property
    def _settings(self) -> AccountSettings:
        from sfsc.files.settings import AccountSettings

        return AccountSettings(self._session)

    @cached_property
    def _renames(self) -> Renames:
        from sfsc.files.rename import Renames

        return Renames(self._session)

    @cached_property
    def _contacts(self) -> Contacts:
        from sfsc.files.contacts import Contacts

        return Contacts(self._session, self._file, self._weakest)

    @cached_property
    def _inbox(self) -> ReceivedFiles:
        from sfsc.files.inbox import ReceivedFiles

        return ReceivedFiles(self._session, self._contacts)

    @cached_property
    def _rotation(self) -> Rotation:
        from sfsc.account.rotate import Rotation

        return Rotation(self._session, self._file, self._devices, self._contacts)

    @cached_property
    def _stored(self) -> StoredFiles:
        from sfsc.files.versions import StoredFiles

        return StoredFiles(self._session)

    @cached_property
    def _purges(self) -> Purges:
        from sfsc.files.purge import Purges

        return Purges(self._session)

    @cached_property
    def _restores(self) -> Restores:
        from sfsc.files.restore import Restores

        return Restores(self._session)

    @cached_property
    def _sharing(self) -> Sharing:
        from sfsc.files.sharing import Sharing

        return Sharing(self._session, self._contacts, self._shared_folders)

    @cached_property
    def _trees(self) -> Trees:
        from sfsc.files.tree import Trees

        return Trees(self._session)

    @cached_property
    def _history(self) -> FileHistory:
        from sfsc.files.history import FileHistory

        return FileHistory(self._session)


def _raise(_what: str, error: SfscError) -> None:
    """Default of `skip`: raise, but ignore files that are not regular files."""
    if not isinstance(error, NotRegularFile):
        raise error
