"""Sharing: look up users' identity chains, change a file's readers, list the inbox and shorten it.

The readers of a file are in its last record, signed by its owner. The server enforces that record:
from its acknowledgement on, dropped readers are refused and their wraps are removed.

A reader who no longer wants a file leaves it, or blocks its owner (`sfsd.rules.reader_wishes`).
"""

from __future__ import annotations

from typing import Final

from protocol.codec.errors import RemoteProtocolError, SignatureError
from protocol.codec.values import changed
from protocol.records.records import LeaveRecord
from protocol.records.signatures import Label, verify_signature
from protocol.wire.messages import FileView, Reply
from protocol.wire.messages.base import PIECE, DamagedVersion, Wrap
from protocol.wire.messages.sharing import (
    MAX_BLOCKED,
    BlockedOwners,
    BlockOwner,
    Identity,
    Inbox,
    InboxPage,
    LeaveFile,
    ListBlocked,
    Lookup,
    SharedFile,
    SignedStatement,
)
from sfsd.errors import DamagedError, Refused, require
from sfsd.operations.files import PAGE_BYTES, view_size
from sfsd.operations.signed_change import (
    RecordEffects,
    SignedChange,
    commit_record,
    version_with_content,
)
from sfsd.rules.context import (
    OWN_KEYS,
    USER,
    Access,
    Principal,
    ServerContext,
    Transaction,
    draft,
    operation,
)
from sfsd.rules.record_rules import AdmittedRecord, check_distinct, only_removes, reader_names
from sfsd.rules.users import User, signing_key_id
from sfsd.storage.change import Change, Remove, Write
from sfsd.storage.json_files import Sidecar
from sfsd.storage.paths import inbox_path, parse_version_path, statements_path

PER_PAGE: Final = 8
"""Statements in one reply to Lookup."""
MAX_TOUCHED: Final = 128
"""Versions whose wraps one change of readers may add or remove: a log entry names each."""
MAX_READERS_CHANGED: Final = 64
"""Readers that one change may add and drop: a log entry names each inbox file."""
_SCANNED: Final = 4096
"""Maximum files examined for one page of an inbox."""


@operation(Lookup, access=OWN_KEYS, weight=PIECE)
def lookup(server: ServerContext, who: Principal, message: Lookup) -> Identity:
    """Return the identity chain of any enrolled user; sessions of other keys get only their own."""
    if message.user != who.user and who.access is not Access.FULL:
        raise Refused("not-allowed", "this session may look up its own user only")
    chain = server.users.chain(message.user)
    if chain is None:
        raise Refused("not-found", "no such user")
    links = chain[0].links
    first = max(message.first, 1) - 1
    statements = tuple(
        SignedStatement(
            statement=link.body,
            signatures=link.signatures,
            index=link.seq,
            line=server.journal.line(link.seq),
            possession=link.possession,
        )
        for link in links[first : first + PER_PAGE]
    )
    end = first + len(statements)
    account = server.users.readable_account(message.user)
    removed = account is not None and account.removed
    return Identity(statements, end + 1 if end < len(links) else 0, removed)


def change_readers(server: ServerContext, who: Principal, change: SignedChange) -> Transaction[int]:
    """Change a file's readers: store wraps for added readers and remove those of dropped ones."""
    newest = change.head.newest
    admitted = change.admit(server)
    effects = _readers_changed(server, admitted, newest.value, change)
    return commit_record(server, who, admitted, effects)


def _readers_changed(
    server: ServerContext, admitted: AdmittedRecord, newest: Sidecar, change: SignedChange
) -> RecordEffects:
    """Return the effects of an access record."""
    record, head = admitted.record, admitted.head
    before = newest.head_record
    require(record.current == before.current, "an access record changes only the readers")
    old, new = reader_names(before), reader_names(record)
    # A reader who has left the file gets it again with a wrap that the owner makes for them.
    given_to = {wrap.user for _, wrap in change.wraps}
    again = {
        user
        for user in old & new & given_to
        if server.wishes.has_left(user, record.owner, record.file_id)
    }
    added, dropped = tuple(sorted((new - old) | again)), tuple(sorted(old - new))
    require(
        len(added) + len(dropped) <= MAX_READERS_CHANGED,
        f"one change adds and drops at most {MAX_READERS_CHANGED} readers",
    )
    expect = server.admission.check_readers(admitted, [wrap for _, wrap in change.wraps])
    sidecars = {head.version: newest}
    for version, wraps in _by_version(change.wraps).items():
        document = version_with_content(head, version)
        expect[document.path] = document.digest
        sidecars[version] = _with_wraps(document.value, wraps)
    require(len(sidecars) <= MAX_TOUCHED, f"one change touches at most {MAX_TOUCHED} versions")
    if record.current:
        _check_can_open(sidecars[head.version], record.owner, added, change)
    # A reader who is added has no other wraps than those of this request: what is left from an
    # earlier time may be for a key that they have destroyed.
    keeping = (new | {record.owner}).difference(added)
    given = {(version, wrap.user) for version, wrap in change.wraps}
    for version in range(head.version, 0, -1):
        if version not in sidecars:
            older = head.files.undamaged_sidecar(record.file_id, version)
            # Nobody can read a damaged version.
            if older is None or all(wrap.user in keeping for wrap in older.value.wraps):
                continue
            if len(sidecars) == MAX_TOUCHED:
                break  # the next access record strips older ones; nobody can read them meanwhile
            expect[older.path] = older.digest
            sidecars[version] = older.value
        kept = tuple(
            wrap
            for wrap in sidecars[version].wraps
            if wrap.user in keeping or (version, wrap.user) in given
        )
        sidecars[version] = changed(sidecars[version], wraps=kept)
    sidecars[head.version] = changed(sidecars[head.version], head=admitted.signed)
    return RecordEffects(
        version=None,
        sidecars=tuple((head, version, one) for version, one in sorted(sidecars.items())),
        expect=expect,
        detail={"added": list(added), "dropped": list(dropped)},
        accounts=tuple(sorted({*admitted.accounts, *again})),
        added=added,
        dropped=dropped,
        exceeds_quota=not change.wraps and only_removes(record, before),
    )


def _by_version(wraps: tuple[tuple[int, Wrap], ...]) -> dict[int, list[Wrap]]:
    found: dict[int, list[Wrap]] = {}
    for version, wrap in wraps:
        found.setdefault(version, []).append(wrap)
    return found


def _with_wraps(sidecar: Sidecar, wraps: list[Wrap]) -> Sidecar:
    """Return the sidecar with `wraps` replacing earlier wraps of the same users."""
    users = {wrap.user for wrap in wraps}
    kept = [wrap for wrap in sidecar.wraps if wrap.user not in users]
    check_distinct([*kept, *wraps])
    return changed(sidecar, wraps=(*kept, *wraps))


def _check_can_open(
    newest: Sidecar, owner: str, added: tuple[str, ...], change: SignedChange
) -> None:
    """Check that added readers have a wrap of the current version. Raises `Refused`."""
    having = {wrap.user for wrap in newest.wraps}
    require(owner in having, "the owner keeps their own wrap")
    missing = [user for user in added if user not in having]
    if missing:
        raise Refused("stale-recipient", f"no wrap for {', '.join(missing)}")
    require(
        all(wrap.user != owner for _, wrap in change.wraps),
        "an access record has no wraps for the owner",
    )


@operation(Inbox, access=USER, slow=True, weight=PIECE)
def inbox(server: ServerContext, who: Principal, message: Inbox) -> InboxPage:
    """List the files shared with the user that they may read now, by each file's last record."""
    owner, _, file_id = message.after.partition(".")
    found: list[SharedFile] = []
    damaged: list[DamagedVersion] = []
    size = 0
    last = message.after
    notes = server.inboxes.for_user(who.user).after((owner, file_id), _SCANNED)
    for note in notes:
        listed = len(found) + len(damaged)
        try:
            view = _shared_view(server, who.user, *note)
        except DamagedError as exc:
            if listed == message.limit:
                return InboxPage(tuple(found), last, tuple(damaged))
            if (place := parse_version_path(exc.path)) is None:
                raise
            damaged.append(DamagedVersion(*place))
            last = _cursor(*note)
            continue
        if view is not None:
            fresh = view.seq >= message.since_seq
            size += view_size(view) if fresh else 0
            if listed == message.limit or (found and size > PAGE_BYTES):
                return InboxPage(tuple(found), last, tuple(damaged))
            found.append(SharedFile(*note, view if fresh else None))
            last = _cursor(*note)
    following = _cursor(*notes[-1]) if len(notes) == _SCANNED else ""
    return InboxPage(tuple(found), following, tuple(damaged))


def _shared_view(server: ServerContext, user: str, owner: str, file_id: str) -> FileView | None:
    """Return the current version of a shared file, None if there is none that the user may see."""
    try:
        visible = server.visibility.newest(user, owner, file_id)
    except Refused:
        return None
    return visible.view() if visible.last.current and visible.sidecar.metadata else None


def _cursor(owner: str, file_id: str) -> str:
    return f"{owner}.{file_id}"


@operation(LeaveFile, access=USER, logged="leave")
def leave_file(server: ServerContext, who: Principal, message: LeaveFile) -> Transaction[Reply]:
    """Take a file out of the reader's inbox, as the reader has signed, and log it for both.

    The owner's last record still names the reader, until the owner's client drops them. A record
    that the owner signed meanwhile is a conflict: it may have made the user a reader again.
    """
    user = server.users.require_active(who.user)
    leave = _parse_leave(server, user, message)
    visible = server.visibility.newest(who.user, leave.owner, leave.file_id)
    if visible.head.hash != leave.record:
        raise Refused("conflict", "the file has changed", head=visible.view())
    signer = signing_key_id(user.chain.signing_keys[leave.generation])
    note = (leave.owner, leave.file_id)
    path = inbox_path(who.user, *note)
    entry = draft(
        who,
        "leave",
        owner=leave.owner,
        file=leave.file_id,
        rec=message.record,
        sigs={signer: message.signature},
        accounts=tuple(sorted({leave.owner, who.user})),
    )
    expect = {**user.expect, **visible.head.expect(), path: server.store.stored_digest(path)}

    def on_published(_seq: int) -> None:
        server.inboxes.for_user(who.user).note_changed(note, present=False)

    change = Change(entry, expect, (Remove(path),), None, on_published)
    return Transaction(change, lambda seq: server.done(seq, who))


def _parse_leave(server: ServerContext, user: User, message: LeaveFile) -> LeaveRecord:
    """Parse a leave record and check that the user signed it. Raises `Refused`."""
    try:
        leave = LeaveRecord.parse(message.record)
    except RemoteProtocolError as exc:
        raise Refused("bad-request", f"not a leave record: {exc}") from exc
    require(leave.server == server.identity.server_id, "the record is for another server")
    named = (leave.user, leave.first)
    require(named == (user.name, user.chain.first_hash), "the record is of another user")
    present = user.chain.head.generation
    if leave.generation < present:
        raise Refused("stale-generation", f"the current key generation is {present}")
    require(leave.generation == present, "the record's generation does not exist yet")
    try:
        public = user.chain.signing_keys[present]
        verify_signature(Label.LEAVE, message.record, message.signature, public)
    except SignatureError as exc:
        raise Refused("refused", "the record is not signed by its generation's key") from exc
    return leave


@operation(BlockOwner, access=USER, logged="block")
def block_owner(server: ServerContext, who: Principal, message: BlockOwner) -> Transaction[Reply]:
    """Block an owner or end that. It is in the log of the blocking user only.

    The inbox stays as it is, so that the files are shown again after the block ends.
    """
    require(message.owner != who.user, "nobody blocks themselves")
    user = server.users.require_active(who.user)
    blocked = set(user.account.value.blocked)
    # An invited user looks like a missing one.
    if message.blocked and not server.documents.is_logged(statements_path(message.owner)):
        raise Refused("not-found", "no such user")
    (blocked.add if message.blocked else blocked.discard)(message.owner)
    if len(blocked) > MAX_BLOCKED:
        raise Refused("denied", f"you block {MAX_BLOCKED} users already")
    account = changed(user.account.value, blocked=tuple(sorted(blocked)))
    entry = draft(
        who,
        "block",
        owner=who.user,
        detail={"user": message.owner, "blocked": message.blocked},
        accounts=(who.user,),
    )
    change = Change(entry, user.expect, (Write(user.account.path, account.encode),))
    return Transaction(change, lambda seq: server.done(seq, who))


@operation(ListBlocked, access=USER)
def list_blocked(server: ServerContext, who: Principal, message: ListBlocked) -> BlockedOwners:  # noqa: ARG001
    """List the owners that the user blocks."""
    return BlockedOwners(server.users.require_active(who.user).account.value.blocked)
