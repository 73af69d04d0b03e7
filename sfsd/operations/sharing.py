"""Other people: whose key is whose, who may read a file, and what is shared with whom.

Who may read is in the file's last record, signed by its owner. This server only holds to it: a
dropped reader is refused, and his wraps are gone, from the acknowledgement of the record on.
"""

from __future__ import annotations

from typing import Final

from protocol.codec.values import changed
from protocol.log import checkpoint
from protocol.records.records import ACCESS, FileRecord
from protocol.wire.messages import FileView, Reply
from protocol.wire.messages.base import PIECE, Wrap
from protocol.wire.messages.sharing import (
    Identity,
    Inbox,
    InboxPage,
    Lookup,
    SetReaders,
    SharedFile,
    SignedStatement,
    VersionWrap,
)
from sfsd.errors import Refused, require
from sfsd.log.proofs import Consistency, Inclusion
from sfsd.operations.files import PAGE_BYTES, view_size
from sfsd.operations.records import Decided, commit
from sfsd.operations.uploads import repeated
from sfsd.operations.versions import kept_version
from sfsd.rules.context import (
    OWN_KEYS,
    USER,
    Access,
    Commit,
    Principal,
    ServerContext,
    operation,
    weight_of_parts,
)
from sfsd.rules.record_rules import (
    AdmittedRecord,
    FileHead,
    check_distinct,
    not_found,
    parse_record,
)
from sfsd.state.documents import Document
from sfsd.storage.json_files import Sidecar, StoredStatement

PER_PAGE: Final = 8
MAX_TOUCHED: Final = 128
"""Versions whose wraps one change of the readers adds or removes: a log line names each."""
MAX_READERS_CHANGED: Final = 64
"""Readers that one change adds and drops: a log line names each, with the note he gets."""
_SCANNED: Final = 4096
"""Notes looked at for one page of an inbox, whether or not they are in it."""


@operation(Lookup, access=OWN_KEYS, weight=PIECE)
def lookup(server: ServerContext, who: Principal, message: Lookup) -> Identity:
    """The chain of any enrolled user; with an older key or the recovery key, of the asker only."""
    if message.user != who.user and who.access is not Access.FULL:
        raise Refused("not-allowed", "this session may look up its own user only")
    chain = server.users.chain(message.user)
    if chain is None:
        raise Refused("not-found", "no such user")
    links = chain[0].links
    first = max(message.first, 1) - 1
    page = links[first : first + PER_PAGE]
    note = server.journal.checkpoint()
    size = checkpoint.read(note).size

    def proven(link: StoredStatement) -> SignedStatement:
        return SignedStatement(
            statement=link.body,
            signatures=link.signatures,
            index=link.seq,
            line=server.journal.line(link.seq),
            inclusion=server.journal.prove(Inclusion(link.seq, size)),
        )

    statements = tuple(proven(link) for link in page)
    consistency = server.journal.prove(Consistency(who.known_size, size))
    end = first + len(page)
    return Identity(statements, note, consistency, end + 1 if end < len(links) else 0)


# --- readers ----------------------------------------------------------------------------------


@operation(
    SetReaders,
    access=USER,
    logged="access",
    weight=lambda message: weight_of_parts(message.record, wraps=len(message.wraps)),
)
def set_readers(
    server: ServerContext, who: Principal, message: SetReaders
) -> Reply | Commit[Reply]:
    """Other readers, wraps for those who gain, and none for those who lose."""
    record = parse_record(message.record)
    require(record.op == ACCESS, f"a {record.op} record does not come this way")
    if record.owner != who.user:
        raise not_found()
    head = FileHead.load(server.index.for_user(who.user), record.file_id)
    if (receipt := repeated(server, who, head, message.record)) is not None:
        return receipt
    if head.document is None:
        raise not_found()
    admitted = server.admission.admit(record, message.record, message.signature, head)
    return commit(server, who, admitted, _readers(server, admitted, head.document, message))


def _readers(
    server: ServerContext, admitted: AdmittedRecord, newest: Document[Sidecar], message: SetReaders
) -> Decided:
    record, head = admitted.record, admitted.head
    before = newest.value.head_record
    require(record.current == before.current, "who may read changes nothing else")
    old, new = _names(before), _names(record)
    added, dropped = tuple(sorted(new - old)), tuple(sorted(old - new))
    require(
        len(added) + len(dropped) <= MAX_READERS_CHANGED,
        f"at most {MAX_READERS_CHANGED} readers are changed at once",
    )
    expect = server.admission.check_readers(admitted, [one.wrap for one in message.wraps])
    sidecars = {head.version: newest.value}
    for version, wraps in _by_version(message.wraps).items():
        document = kept_version(head, version)
        expect[document.path] = document.digest
        sidecars[version] = _with_wraps(document.value, wraps)
    require(len(sidecars) <= MAX_TOUCHED, f"at most {MAX_TOUCHED} versions at once")
    if record.current:
        _check_can_open(sidecars[head.version], record.owner, added, message)
    readers = new | {record.owner}
    for version in range(head.version, 0, -1):
        if version not in sidecars:
            document = head.files.sidecar(record.file_id, version)
            if all(wrap.user in readers for wrap in document.value.wraps):
                continue
            if len(sidecars) == MAX_TOUCHED:
                break  # older ones go with the next such record; none can be read meanwhile
            expect[document.path] = document.digest
            sidecars[version] = document.value
        kept = tuple(wrap for wrap in sidecars[version].wraps if wrap.user in readers)
        sidecars[version] = changed(sidecars[version], wraps=kept)
    last = changed(sidecars[head.version], head=admitted.signed)
    sidecars[head.version] = last
    return Decided(
        version=None,
        sidecars=tuple((head, version, one) for version, one in sorted(sidecars.items())),
        expect=expect,
        detail={"added": list(added), "dropped": list(dropped)},
        added=added,
        dropped=dropped,
    )


def _names(record: FileRecord) -> set[str]:
    return {reader[0] for reader in record.readers}


def _by_version(wraps: tuple[VersionWrap, ...]) -> dict[int, list[Wrap]]:
    found: dict[int, list[Wrap]] = {}
    for one in wraps:
        found.setdefault(one.version, []).append(one.wrap)
    return found


def _with_wraps(sidecar: Sidecar, wraps: list[Wrap]) -> Sidecar:
    """With these in place of what their users had."""
    users = {wrap.user for wrap in wraps}
    kept = [wrap for wrap in sidecar.wraps if wrap.user not in users]
    check_distinct([*kept, *wraps])
    return changed(sidecar, wraps=(*kept, *wraps))


def _check_can_open(
    newest: Sidecar, owner: str, added: tuple[str, ...], message: SetReaders
) -> None:
    """Who is made a reader gets the key of what is current with it."""
    having = {wrap.user for wrap in newest.wraps}
    require(owner in having, "the owner keeps his own wrap")
    missing = [user for user in added if user not in having]
    if missing:
        raise Refused("stale-recipient", f"no wrap for {', '.join(missing)}")
    require(
        all(one.wrap.user != owner for one in message.wraps),
        "an owner's own wraps do not come this way",
    )


# --- the inbox --------------------------------------------------------------------------------


@operation(Inbox, access=USER, slow=True, weight=PIECE)
def inbox(server: ServerContext, who: Principal, message: Inbox) -> InboxPage:
    """Only what the last record of each file allows, at this moment."""
    owner, _, file_id = message.after.partition(".")
    found: list[SharedFile] = []
    size = 0
    notes = server.inboxes.for_user(who.user).after((owner, file_id), _SCANNED)
    for note in notes:
        view = _shared_view(server, who.user, *note)
        if view is not None:
            fresh = view.seq >= message.since_seq
            size += view_size(view) if fresh else 0
            if len(found) == message.limit or (found and size > PAGE_BYTES):
                return InboxPage(tuple(found), _cursor(found[-1].owner, found[-1].file_id))
            found.append(SharedFile(*note, view if fresh else None))
    return InboxPage(tuple(found), _cursor(*notes[-1]) if len(notes) == _SCANNED else "")


def _shared_view(server: ServerContext, user: str, owner: str, file_id: str) -> FileView | None:
    """The current version, None where there is none, or none for this user."""
    try:
        visible = server.visibility.newest(user, owner, file_id)
    except Refused:
        return None
    return visible.view() if visible.last.current and visible.sidecar.metadata else None


def _cursor(owner: str, file_id: str) -> str:
    return f"{owner}.{file_id}"
