"""A user's files and keys on a server: the methods delegate to the packages that do the work."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.codec.values import Value
from protocol.records.records import ReaderEntry, Statement
from protocol.wire.messages.accounts import Usage, UsageAnswer
from sfsc.account.key_status import KeyStatus
from sfsc.closing import Closing
from sfsc.crypto.envelope import check_name, requested_version
from sfsc.errors import NotRegularFile, SfscError, UsageError
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
from sfsc.log.seen_checkpoints import SeenCheckpoints
from sfsc.session.limits import Timeouts
from sfsc.session.pipeline import Skip
from sfsc.session.session import Progress, Session
from sfsc.threadguard import single_threaded
from sfsc.transfer.download import Downloads, Got, Target
from sfsc.transfer.remote_version import RemoteVersion
from sfsc.transfer.source import Source
from sfsc.transfer.upload import Put, Uploads
from sfsc.trust.file_records import Entry
from sfsc.trust.state import open_client_state

if TYPE_CHECKING:  # imported at first use: few programs need them
    from sfsc.account.devices import DeviceInfo, Devices
    from sfsc.account.rotate import Rotation, RotationPlan, RotationResult
    from sfsc.files.contacts import Contacts, Person
    from sfsc.files.history import ExportedKey, FileHistory, Revision
    from sfsc.files.inbox import ReceivedFiles, Shared
    from sfsc.files.rename import Renames
    from sfsc.files.shared_folders import Folder, SharedFolders
    from sfsc.files.sharing import Grant, Sharing
    from sfsc.files.tree import Trees
    from sfsc.log.audit import Audit, LogEvent, VerifiedHistory


class Status(Value):
    """How the account stands. Sizes in bytes (`quota` 0: none), times in unix seconds.

    `log_size` is the length of the server's log at login, proven to continue the one seen before;
    the keys are `due` to be rotated and not used by others past `expires`. `log_vkey` is the log's
    verification key (C2SP).
    """

    user: str
    address: str
    server_id: bytes
    used: int
    quota: int
    files: int
    log_size: int
    generation: int
    due: int
    expires: int
    log_vkey: str


@single_threaded
class Store(Closing):
    """One account on its server, for one thread at a time: another is refused (`UsageError`). Build
    with `connect`."""

    def __init__(
        self,
        file: KeyringFile,
        home: str | os.PathLike[str],
        timeouts: Timeouts | None = None,
        progress: Progress | None = None,
        *,
        auto_rotate: bool | None = None,
        min_wrap_alg: str | None = None,
    ) -> None:
        weakest = resolve_min_wrap_alg(min_wrap_alg)
        self._file = file
        self._state = open_client_state(home_folder(home), file.contents)
        try:
            self._session = Session(file.contents, self._state, timeouts, progress=progress)
        except BaseException:
            self._state.close()
            raise
        self.thread_guard = self._session.thread_guard
        self._weakest = weakest
        self._key_status = KeyStatus(self._session, file)
        try:
            self._session.connect()
            self._session.renewer = self._adopt_newer_keys
            self._session.readers = lambda: self._contacts
            self._session.new_readers = self._readers_of_new_file
            if self._key_status.has_pending_work:
                self._devices.finish_pending()
            wanted = auto_rotate if auto_rotate is not None else auto_rotate_enabled()
            if wanted and self._key_status.should_rotate():
                self._rotation.rotate()
        except BaseException:
            self.close()
            raise
        self._uploads = Uploads(self._session)
        self._downloads = Downloads(self._session)
        self._files = Files(self._session)

    def put(self, source: Source, *, name: str | None = None, expected: int | None = None) -> Put:
        """Store a path's or stream's content as the newest version of `name`; with `expected` only
        onto that version (0: only where there is no such file), else `ConflictError`."""
        return self._uploads.put(source, name, expected=expected)

    def put_many(self, items: Iterable[tuple[Source, str | None]]) -> Iterator[Put]:
        """Store (source, name) pairs, many small ones under way at once; answers in order."""
        return self._uploads.put_many(items)

    def get(self, name: str, target: Target | None = None, *, version: int | None = None) -> Got:
        """Fetch a version, the current one by default, into a file, folder or stream."""
        return self._downloads.get(name, target, version=version)

    def open(self, name: str, *, version: int | None = None) -> io.BufferedReader:
        """A version as a seekable file; only what is read of it is fetched."""
        check_name(name)
        return self._reader(RemoteVersion.open_own(self._session, name, requested_version(version)))

    def _reader(self, remote: RemoteVersion) -> io.BufferedReader:
        from sfsc.transfer.reader import Reader

        seen = SeenCheckpoints(self._session)
        seen.add(remote.file)
        seen.verify()
        return io.BufferedReader(Reader(self._session, remote), 128 * 1024)

    def put_tree(
        self, folder: Path, *, name: str | None = None, skip: Skip | None = None
    ) -> Iterator[Put]:
        """Store every file below `folder`, under `name` or its own path. What cannot be stored is
        told to `skip`; without one it is raised, and ends the work."""
        return self._trees.put(folder, name, skip or _raise)

    def get_tree(
        self,
        name: str,
        target: Path,
        owner: str | None = None,
        *,
        skip: Skip | None = None,
        trust_first_use: bool = False,
    ) -> Iterator[Got]:
        """Fetch every file in the folder `name` ("": all) to its place below `target`; with an
        `owner` those that he shares."""
        if owner is None:
            return self._trees.get(name, target, skip or _raise)
        found = self._inbox.list_folder(owner, name, skip or _raise, first_use=trust_first_use)
        return self._trees.get(name, target, skip or _raise, found)

    def rm_tree(self, name: str) -> Iterator[Entry]:
        """Delete every file in the folder `name`."""
        return self._trees.rm(name)

    def mv(self, name: str, to: str) -> Entry:
        """Give the file `name` another name; `ConflictError` where that is taken."""
        return self._renames.mv(name, to)

    def ls(self, prefix: str = "") -> Iterator[Entry]:
        """The current version of every file whose name begins with `prefix`, by name."""
        return self._files.ls(prefix)

    def stat(self, name: str) -> Entry:
        """The current version of `name`, without fetching it."""
        return self._files.stat(name)

    def rm(self, name: str) -> Entry:
        """Delete `name`; what it deleted. Its versions stay, as trash."""
        return self._files.rm(name)

    def history(self, name: str) -> list[Revision]:
        """Every record of `name`, oldest first, verified from the first."""
        return self._history.history(name)

    def restore(self, name: str, *, version: int | None = None) -> Entry:
        """Make an old content the newest version; of a deleted file the last, where none is
        named."""
        return self._history.restore(name, version)

    def export_dek(self, name: str, *, version: int | None = None) -> ExportedKey:
        """The key of one version's content, for another program to open it with."""
        return self._history.export_key(name, version)

    def prune(self, name: str, *, keep: int) -> list[int]:
        """Remove the contents of all versions of `name` but the newest `keep`, for good."""
        return self._history.prune(name, keep)

    def purge(self, name: str) -> list[int]:
        """Remove the contents of the deleted file `name`, for good."""
        return self._history.purge(name)

    def share(
        self,
        name: str,
        user: str,
        *,
        expires: int = 0,
        history: bool = False,
        trust_first_use: bool = False,
    ) -> Grant:
        """Let `user` read `name` until `expires` (unix seconds; 0: until it is unshared); with
        `history` its older versions too. `Untrusted` for one who was never verified."""
        return self._sharing.share(
            name, user, expires=expires, history=history, first_use=trust_first_use
        )

    def unshare(self, name: str, user: str, *, reencrypt: bool = False) -> Grant:
        """Let `user` read `name` no more; with `reencrypt` under a key that he never had."""
        return self._sharing.unshare(name, user, reencrypt=reencrypt)

    def share_tree(
        self,
        name: str,
        user: str,
        *,
        expires: int = 0,
        history: bool = False,
        trust_first_use: bool = False,
    ) -> Iterator[Grant]:
        """Share every file in the folder `name` ("": all), and every one that comes into it."""
        return self._sharing.share_tree(
            name, user, expires=expires, history=history, first_use=trust_first_use
        )

    def unshare_tree(self, name: str, user: str, *, reencrypt: bool = False) -> Iterator[Grant]:
        """Share the folder `name` and what is in it no more."""
        return self._sharing.unshare_tree(name, user, reencrypt=reencrypt)

    def readers(self, name: str) -> list[Grant]:
        """Who may read `name` beside us."""
        return self._sharing.readers(name)

    def shared_folders(self) -> tuple[Folder, ...]:
        """The folders whose new files are shared."""
        return self._shared_folders.list_folders()

    def inbox(self, *, skip: Skip | None = None) -> list[Shared]:
        """What others share with us, by owner and name. What is not right is told to `skip`;
        without one it is raised."""
        return self._inbox.list_files(skip or _raise)

    def get_shared(
        self,
        owner: str,
        name: str,
        target: Target | None = None,
        *,
        version: int | None = None,
        file_id: str | None = None,
        trust_first_use: bool = False,
    ) -> Got:
        """Fetch the file `name` that `owner` shares; `file_id` where he shares several of it."""
        return self._downloads.fetch(
            self._shared(owner, name, version, file_id, first_use=trust_first_use), target
        )

    def open_shared(
        self,
        owner: str,
        name: str,
        *,
        version: int | None = None,
        file_id: str | None = None,
        trust_first_use: bool = False,
    ) -> io.BufferedReader:
        """As `open`, a file that `owner` shares."""
        return self._reader(self._shared(owner, name, version, file_id, first_use=trust_first_use))

    def _shared(
        self, owner: str, name: str, version: int | None, file_id: str | None, *, first_use: bool
    ) -> RemoteVersion:
        return self._inbox.request_version(
            owner, name, requested_version(version), file_id=file_id, first_use=first_use
        )

    def person(self, user: str) -> Person:
        """Whom the server shows as `user`; `pinned` where that is whom we know."""
        return self._contacts.find(user)

    def verify_person(self, user: str, fingerprint: bytes) -> Person:
        """Remember `user` by a fingerprint (32 bytes) that was compared with him; `BrokenChain`
        where the server shows another."""
        return self._contacts.verify(user, fingerprint)

    def proof_of(self, put: Put) -> bytes:
        """A receipt that travels: a C2SP tlog-proof that the log holds this change."""
        return self._audit.proof_of(put.receipt, put.record)

    def audit_log(self, name: str | None = None) -> Iterator[LogEvent]:
        """What the log has of this account, or of the file `name`, oldest first; proven, and
        without a gap."""
        file_id = None
        names = {entry.file_id: entry.name for entry in self._files.ls()}
        if name is not None:
            check_name(name)
            file_id = self._session.account.file_id(name)
            names[file_id] = name
        return self._audit.log(file_id, names)

    def audit_verify(self) -> VerifiedHistory:
        """Check the account's whole history, its records and statements."""

        def chain() -> tuple[bytes, ...]:
            self._devices.catch_up()
            return self._file.contents.statements

        return self._audit.verify(chain)

    def audit_compare(self, note: bytes) -> tuple[int, int]:
        """Check that somebody else's checkpoint is of the log that we see; (his size, ours)."""
        return self._audit.compare(note)

    def checkpoint(self) -> bytes:
        """The newest proven checkpoint, a C2SP signed note, for others to compare."""
        return self._session.trust.newest.note

    def rotation_plan(self) -> RotationPlan:
        """What `rotate` would do."""
        return self._rotation.plan()

    def rotation_is_due(self) -> bool:
        """Whether the keys are due, the server asks for new ones, or a rotation is unfinished."""
        return self._key_status.is_due()

    def rotate(
        self,
        *,
        key_type: str | None = None,
        compromised: bool = False,
        names: Sequence[str] = (),
        drop_device: bytes | None = None,
    ) -> RotationResult:
        """Replace the account's keys, wrap every file anew, destroy the old ones; after a theft
        encrypt every content anew as well, or all versions of `names`, and leave a device out."""
        if names and not compromised:
            raise UsageError("only a rotation after a theft is for some files")
        return self._rotation.rotate(key_type, drop_device, compromised=compromised, names=names)

    def verify_rotation(self) -> RotationResult:
        """Check that nothing of an older generation than the present is left."""
        return self._rotation.verify()

    @property
    def link(self) -> str:
        """Which account this is, for paper; no secret."""
        return account_link(self._file.contents).to_text()

    def devices(self) -> list[DeviceInfo]:
        """The machines and backups that have the account's keys."""
        return self._devices.list_devices()

    def backup(
        self,
        path: str | os.PathLike[str],
        *,
        passphrase: Passphrase = None,
        no_passphrase: bool = False,
    ) -> None:
        """Write the account's keys to a new file, which `restore` opens the account with."""
        stated = None if no_passphrase else require_passphrase(passphrase)
        self._devices.backup(Path(path), stated)

    def has_recovery(self) -> bool:
        """Whether the account has a recovery code."""
        return self._devices.has_recovery()

    def check_recovery(self, code: str) -> None:
        """Raise `UsageError` where `code` is mistyped, `Denied` where the account's recovery code
        is another."""
        from sfsc.keys.recovery_code import RecoveryCode

        self._devices.check_recovery(RecoveryCode.parse(code))

    def set_recovery(self, code: str, old: str | None = None) -> None:
        """Commit the account to a recovery code; where it has one, the `old` one is needed."""
        from sfsc.keys.recovery_code import RecoveryCode

        before = None if old is None else RecoveryCode.parse(old)
        self._devices.set_recovery(RecoveryCode.parse(code), before)

    def whoami(self) -> Whoami:
        """Who we are."""
        return describe_account(self._file.contents)

    def status(self) -> Status:
        """How the account stands."""
        usage = self._session.call(Usage(), UsageAnswer)
        me, statement = self.whoami(), Statement.parse(self._file.contents.statements[-1])
        return Status(
            user=me.user,
            address=me.address,
            server_id=me.server_id,
            used=usage.used,
            quota=usage.quota,
            files=usage.files,
            log_size=self._session.trust.newest.size,
            generation=me.generation,
            due=statement.due,
            expires=statement.expires,
            log_vkey=self._session.trust.log_vkey,
        )

    def close(self) -> None:
        """Log out. Twice does no harm."""
        self.thread_guard.ended = True
        self._session.close()
        self._state.close()

    def _adopt_newer_keys(self) -> None:
        self._devices.catch_up()

    def _readers_of_new_file(self, name: str) -> tuple[ReaderEntry, ...]:
        return self._shared_folders.readers_of(name)

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

        return SharedFolders(self._session)

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
    """What is no regular file is left out; everything else ends the work."""
    if not isinstance(error, NotRegularFile):
        raise error
