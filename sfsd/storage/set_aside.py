"""Sets aside what the log names and no disk has any more, so that everything else is served.

A version whose bytes are gone is marked as lost. Its sidecar is made again from the records in the
log, without metadata and wraps, which the log does not have. If only the newest sidecar is gone,
its predecessor still has them, and the version is not lost. The settings of an account follow from
the log, but for the token of an invitation that was not used, and for the tag key, which tag.key
has too. Each of these changes is one entry of op ``lost``, whose actor is the server. Bytes that
are in place, but not as logged, go to stray/.

If the log was cut (`sfsd.log.cut`), a sidecar may be newer than the log. Then its metadata and
wraps are kept under the logged records: the signed record has the hash of the metadata, and a wrap
opens for its user or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from protocol.codec import merkle
from protocol.codec.errors import RemoteProtocolError
from protocol.codec.names import SERVER
from protocol.codec.values import Mutable, Value, changed, field
from protocol.log.auditlog import LOST, EntryDraft, LogEntry
from protocol.log.tags import check_tag_key
from protocol.records.chain import RENEWING
from protocol.records.records import FileRecord, Statement, record_hash
from protocol.wire.messages.base import SignedRecord
from sfsd.errors import Absent, DamagedError, JournalRangeError, RecoveryError, UnreadableError
from sfsd.fs.descriptors import store_error
from sfsd.fs.files import Files
from sfsd.log.journal import Journal
from sfsd.storage.change import Change, Effect, Remove, Write, digest_of
from sfsd.storage.derive import ExpectedFile
from sfsd.storage.json_files import (
    Sidecar,
    StoredAccount,
    parse_account,
    parse_sidecar,
    parse_statements,
)
from sfsd.storage.logged_file import LoggedFile
from sfsd.storage.paths import (
    VersionPaths,
    account_path,
    parse_version_path,
    statements_path,
    tag_key_path,
)
from sfsd.storage.store import DirectoryStore

STRAY: Final = "stray"
"""Folder in the root that takes files that the log does not know."""

_Parsed = TypeVar("_Parsed", Sidecar, StoredAccount)
_Version = tuple[str, str, int]


class _Missing(Value):
    """Missing paths, of versions and others, each with the entry that wrote it."""

    versions: dict[_Version, dict[str, int]]
    others: dict[str, int]

    @classmethod
    def group(cls, missing: Sequence[ExpectedFile]) -> _Missing:
        found = cls({}, {})
        for one in missing:
            version = parse_version_path(one.path)
            group = found.others if version is None else found.versions.setdefault(version, {})
            group[one.path] = one.seq
        return found


class _Logged(Mutable):
    """State according to the log of the files and accounts of which something is missing."""

    files: dict[tuple[str, str], LoggedFile]
    accounts: dict[str, StoredAccount | None]
    commits: dict[str, bytes] = field(default_factory=dict)
    """Commitments to the users' tag keys."""
    present: set[str] = field(default_factory=set)
    """The paths that the store should have."""
    lost: set[_Version] = field(default_factory=set)

    def apply(self, entry: LogEntry) -> None:
        if entry.op == LOST and entry.detail["why"] == LOST and entry.owner and entry.file:
            self.lost.add((entry.owner, entry.file, entry.version or 0))
        for path, digest in entry.paths.items():
            (self.present.discard if digest is None else self.present.add)(path)
        for file in self.files.values():
            file.apply(entry)
        if entry.owner in self.accounts:
            self.accounts[entry.owner] = _next_account(self.accounts[entry.owner], entry)
            if entry.op == "enrol" and entry.rec is not None:
                self.commits[entry.owner] = Statement.parse(entry.rec).tag_commit


def lost_changes(
    store: DirectoryStore,
    journal: Journal,
    missing: Sequence[ExpectedFile],
    *,
    after_cut: bool = False,
) -> Iterator[Change]:
    """Yield the changes that set `missing` aside. Commit each before asking for the next; then the
    store is what the log says. `after_cut` uses sidecars that are newer than the log. Raises
    StoreRefusedError."""
    if not missing:
        return  # the log is long, and a start must not read all of it
    found = _Missing.group(missing)
    users = [path.partition("/")[0] for path in found.others]
    logged = _Logged(
        {place[:2]: LoggedFile(*place[:2]) for place in found.versions},
        {user: None for user in users if account_path(user) in found.others},
    )
    for seq in range(journal.size):
        logged.apply(journal.entry(seq))
    for version, paths in found.versions.items():
        yield _version_change(store, journal, logged, version, paths, after_cut=after_cut)
    for path, seq in found.others.items():
        yield _other_change(store, journal, logged, path, seq)


def _version_change(
    store: DirectoryStore,
    journal: Journal,
    logged: _Logged,
    version: _Version,
    missing: dict[str, int],
    *,
    after_cut: bool,
) -> Change:
    owner, file_id, number = version
    paths = VersionPaths.for_version(owner, file_id, number)
    known = _stored_before(store, journal, paths.sidecar, parse_sidecar)
    file = logged.files[owner, file_id]
    try:
        bare = file.sidecar_without_content(number)
    except Absent as exc:
        raise RecoveryError("the log has no record of this version", path=paths.sidecar) from exc
    newer = _stored_after(store, paths.sidecar, bare, file.last_record) if after_cut else None
    if known is not None and known.content.record == bare.content.record:
        bare = changed(bare, content=known.content)  # with endorsements, which the log lacks
    else:
        known = None
    effects: list[Effect] = []
    if paths.ciphertext not in logged.present:
        why = "the sidecar of a version without content"
        made = changed(bare, lost=version in logged.lost)
    elif known is not None and known.metadata is not None and missing.keys() == {paths.sidecar}:
        why, made = "the newest sidecar; the one before it is used", changed(known, head=bare.head)
    elif newer is not None and missing.keys() == {paths.sidecar}:
        why, made = "newer than the log; its content is kept", newer
    else:
        why, made = LOST, changed(bare, lost=True)
        for path in (paths.ciphertext, paths.leaves):
            move_aside(store.files, store.users, path)
            effects.append(Remove(path))
    draft = EntryDraft(
        op=LOST,
        actor=SERVER,
        owner=owner,
        file=file_id,
        version=number,
        detail={"why": why, "entries": sorted(set(missing.values()))},
        accounts=(owner,),
    )
    return Change(draft, {}, (*effects, Write(paths.sidecar, made.encode)))


def _other_change(
    store: DirectoryStore, journal: Journal, logged: _Logged, path: str, seq: int
) -> Change:
    owner = path.partition("/")[0]
    effect: Effect = Remove(path)
    why = "a file of the account"
    account = logged.accounts.get(owner) if path == account_path(owner) else None
    if account is not None:
        why = "the account's settings, made again from the log"
        known = _stored_before(store, journal, path, parse_account)
        if known is not None and known.token_expires == account.token_expires:
            account = changed(account, token_sha256=known.token_sha256)
        if account.used_by is not None:
            commit = logged.commits[owner]
            account = changed(account, tag_key=_tag_key(store, known, owner, commit))
    if account is not None and (account.used_by is None or account.tag_key is not None):
        effect = Write(path, account.encode)
    else:
        why = "a file of the account"
        move_aside(store.files, store.users, path)
    draft = EntryDraft(
        op=LOST,
        actor=SERVER,
        owner=owner,
        detail={"why": why, "entries": [seq]},
        accounts=(owner,),
    )
    return Change(draft, {}, (effect,))


def _tag_key(
    store: DirectoryStore, known: StoredAccount | None, user: str, commit: bytes
) -> bytes | None:
    """Return the account's tag key, None if it is lost."""
    stored = [] if known is None or known.tag_key is None else [known.tag_key]
    with suppress(Absent, UnreadableError):
        stored.append(store.read(tag_key_path(user)))
    return next((key for key in stored if check_tag_key(key, commit)), None)


def move_aside(files: Files, users: Path, path: str) -> None:
    """Move a file of the store that the log does not know to stray/. A missing file is no error.
    Raises StoreRefusedError."""
    target = users.parent.parent / STRAY / path
    try:
        files.make_folder(target.parent)
        files.move(users / path, target)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise store_error(exc, f"moving a file to {STRAY}/") from exc


def _stored_before(
    store: DirectoryStore,
    journal: Journal,
    path: str,
    parse: Callable[[str, bytes], _Parsed],
) -> _Parsed | None:
    """Return the file that is in place if an earlier entry wrote exactly that, None otherwise."""
    try:
        raw = store.read(path)
        found = parse(path, raw)
        written = journal.paths(found.seq).get(path)
    except (Absent, DamagedError, JournalRangeError):
        return None
    return found if written == digest_of(path, raw) else None


def _stored_after(
    store: DirectoryStore, path: str, bare: Sidecar, last: FileRecord
) -> Sidecar | None:
    """Return `bare`, which has the logged records of a version, with the content of the sidecar in
    place, which a lost entry may have written. None if that is not of the same version, or damaged.
    Readers are those of the `last` record."""
    try:
        found = parse_sidecar(path, store.read(path))
    except (Absent, DamagedError):
        return None
    record = bare.content_record
    if found.content.record != bare.content.record or found.metadata is None:
        return None
    if hashlib.sha256(found.metadata).digest() != record.metadata_sha256:
        return None
    if found.leaves is not None:
        hashes = [
            found.leaves[at : at + merkle.HASH_SIZE]
            for at in range(0, len(found.leaves), merkle.HASH_SIZE)
        ]
        if merkle.root(hashes) != record.segments_root:
            return None
    users = {last.owner, *(reader for reader, _, _ in last.readers)}
    wraps = tuple(wrap for wrap in found.wraps if wrap.user in users)
    generation = _generation(store, last.owner)
    head = None if bare.head is None else _endorsed(bare.head, found.last, generation)
    return changed(
        bare,
        content=_endorsed(bare.content, found.content, generation),
        head=head,
        metadata=found.metadata,
        wraps=wraps,
        leaves=found.leaves,
    )


def _endorsed(logged: SignedRecord, found: SignedRecord, generation: int) -> SignedRecord:
    """Return `logged` with those signatures of `found` that keys up to `generation` made."""
    if logged.record != found.record:
        return logged
    signatures = {
        one.generation: one
        for one in (*found.signatures, *logged.signatures)
        if one.generation <= generation
    }
    return SignedRecord(logged.record, tuple(signatures[one] for one in sorted(signatures)))


def _generation(store: DirectoryStore, user: str) -> int:
    """Return the newest generation of the user's keys, which recovery made what the log says; 0 if
    it cannot be read."""
    path = statements_path(user)
    try:
        return parse_statements(path, store.read(path))[-1].statement.generation
    except (Absent, DamagedError):
        return 0


def _administered(account: StoredAccount, entry: LogEntry) -> StoredAccount:
    """Return the settings after an entry of the operator that changes them."""
    detail = entry.detail
    match entry.op:
        case "user-access" if detail["disabled"]:
            return changed(account, disabled=True)
        case "user-access":
            return changed(account, disabled=False, revoked=0, removal=0)
        case "user-revoke":
            return changed(account, revoked=detail["statements"])
        case "user-remove":
            return changed(account, disabled=True, removal=detail["removal"])
        case "user-erase":
            return changed(account, removed=True)
    return changed(account, quota=detail["quota"])


def _next_account(account: StoredAccount | None, entry: LogEntry) -> StoredAccount | None:
    """Return the settings after `entry`, which belongs to the account."""
    detail = entry.detail
    if entry.op == "user-add":
        expires, quota = detail["expires"], detail["quota"]
        return StoredAccount(0, None, expires, None, disabled=False, quota=quota, forced=None)
    if account is None:
        return None
    match entry.op:
        case "enrol" if entry.rec is not None:
            return changed(account, used_by=record_hash(entry.rec))
        case "user-access" | "user-revoke" | "user-remove" | "user-erase" | "user-quota":
            return _administered(account, entry)
        case "rotate-force":
            return changed(account, forced=detail["reason"])
        case "block":
            others = {one for one in account.blocked if one != detail["user"]}
            now = others | {detail["user"]} if detail["blocked"] else others
            return changed(account, blocked=tuple(sorted(now)))
        case "rotation-due":
            return changed(account, fell_due=detail["generation"])
    if entry.rec is not None and account.forced is not None:
        try:
            if Statement.parse(entry.rec).reason in RENEWING:
                return changed(account, forced=None)
        except RemoteProtocolError:
            pass  # a file record, or a login
    return account
