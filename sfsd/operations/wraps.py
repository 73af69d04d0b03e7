"""All wraps of a user, own and of files shared with him, and many of them made anew: what a
rotation does between its beginning and its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, Self

from protocol.codec.errors import SignatureError
from protocol.codec.values import Value, changed
from protocol.records.records import Statement, record_hash
from protocol.records.signatures import Label, verify_signature
from protocol.wire.messages import Reply
from protocol.wire.messages.base import PIECE, GenerationSignature, SignedRecord, Wrap
from protocol.wire.messages.rotation import (
    MAX_BATCH,
    GetWraps,
    Rewrap,
    RewrapItem,
    Rewrapped,
    WrapItem,
    WrapsPage,
)
from sfsd.errors import Absent, Refused, require
from sfsd.operations.files import PAGE_BYTES, signed_size
from sfsd.rules.context import (
    REQUEST_WEIGHT,
    USER,
    Commit,
    Principal,
    ServerContext,
    draft,
    operation,
)
from sfsd.rules.record_rules import check_wrap
from sfsd.rules.users import User
from sfsd.state.documents import Document, SidecarWrite
from sfsd.state.file_index import OwnerFiles
from sfsd.storage.change import Change
from sfsd.storage.json_files import Sidecar, cached_record
from sfsd.storage.paths import parse_inbox_name

_OVERHEAD: Final = 1024
_ITEM_WEIGHT: Final = 1536
"""Bytes of a wrap that is made again, and two endorsements."""
KEPT_SIGNATURES: Final = 48
"""Of a record, its own and endorsements: a message has room for 64, a sidecar grows by each."""
_SCANNED: Final = 4096
"""Versions looked at for one page, whether or not they are in it."""
_AHEAD: Final = MAX_BATCH
"""Files looked up together: about those of a page, which has most often one version of each."""
_TOGETHER: Final = 32
"""Sidecars read together; as many as the first page has that our client asks for."""


class Keys(Value):
    """Of a user: what is new is signed by `generation` and wrapped to `key_id`; `undone` are the
    generations and the ids of their wrap keys that a recovery has undone."""

    user: str
    generation: int
    key_id: bytes
    undone: tuple[frozenset[int], frozenset[bytes]]

    @classmethod
    def of(cls, user: User) -> Self:
        # Once for many versions: what names a key is the hash of it.
        head = user.chain.head
        return cls(user.name, head.generation, head.key_id, user.chain.voided_keys())


@operation(GetWraps, access=USER, slow=True, weight=PIECE)
def get_wraps(server: ServerContext, who: Principal, message: GetWraps) -> WrapsPage:
    user = server.users.require_active(who.user)
    items: list[WrapItem] = []
    size = scanned = 0
    last, keys = message.after, Keys.of(user)
    for one in wraps_of(server, user.name, message.after):
        sidecar = one.document.value
        wrap = own_wrap(sidecar, user.name)
        if is_stale(one, wrap, keys) or (message.all_of_them and wrap is not None):
            size += sum(map(signed_size, _records(sidecar))) + _OVERHEAD
            size += 0 if wrap is None else len(wrap.wrapped)
            if items and size > PAGE_BYTES:
                return WrapsPage(tuple(items), last)
            items.append(_item(one, wrap))
        last, scanned = one.cursor, scanned + 1
        if len(items) == message.limit or scanned == _SCANNED:
            return WrapsPage(tuple(items), last)
    return WrapsPage(tuple(items), "")


@operation(
    Rewrap,
    access=USER,
    logged="rewrap",
    weight=lambda message: REQUEST_WEIGHT + _ITEM_WEIGHT * len(message.items),
)
def rewrap(server: ServerContext, who: Principal, message: Rewrap) -> Reply | Commit[Reply]:
    """Each item is compared with what stands there now; what is new already is left as it is."""
    user = server.users.require_active(who.user)
    places = [(item.owner, item.file_id, item.version) for item in message.items]
    require(bool(places) and len(set(places)) == len(places), "each version once")
    owner = message.items[0].owner
    require(all(item.owner == owner for item in message.items), "files of one owner")
    require(
        owner == user.name or not any(item.endorsements for item in message.items),
        "only an owner endorses records",
    )
    files = server.index.for_user(owner)
    written: list[SidecarWrite] = []
    rewritten: list[tuple[str, int]] = []
    expect = dict(user.expect)
    left: list[int] = []
    keys = Keys.of(user)
    _check(message.items, user.chain.head, keys)
    for place, item in enumerate(message.items):
        try:
            document, relied_on = _standing(server, user.name, item)
        except (Absent, Refused):
            left.append(place)  # not there, or not shared any more, which look the same
            continue
        # What was read first counts: a later item may have read the same sidecar again since.
        for path, digest in relied_on.items():
            expect.setdefault(path, digest)
        renewed = _renewed(document.value, item, user.chain.head, keys)
        if renewed is None:
            left.append(place)
        elif renewed is not document.value:
            written.append(SidecarWrite(document.path, renewed))
            rewritten.append((item.file_id, item.version))
    if not written:
        return Rewrapped(None, tuple(left))

    def then(seq: int) -> None:
        files.note_rewritten(seq, rewritten)
        for one in written:
            server.documents.remember(one)

    entry = draft(
        who,
        "rewrap",
        owner=owner,
        detail={"generation": user.chain.head.generation, "count": len(written)},
        accounts=tuple(sorted({owner, user.name})),
    )
    effects = tuple([one.effect for one in written])
    change = Change(entry, expect, effects, None, then)
    return Commit(change, lambda seq: Rewrapped(server.receipt(seq, who), tuple(left)))


def _check(items: Sequence[RewrapItem], head: Statement, keys: Keys) -> None:
    """Raise `Refused` unless all wraps are the user's, for his current key, and all endorsements by
    it. Of all items first, whatever stands there by now: a check behind other work takes longer."""
    for item in items:
        if item.wrap is not None:
            require(item.wrap.user == keys.user, "a wrap for somebody else")
            check_wrap(item.wrap, head, keys.key_id)
    for item in items:
        for endorsement in item.endorsements:
            digest, signature = endorsement.record_hash, endorsement.signature
            try:
                verify_signature(Label.ENDORSE, digest, signature, head.sign_pub)
            except SignatureError as exc:
                why = "an endorsement that the current key did not make"
                raise Refused("refused", why) from exc


def _standing(
    server: ServerContext, user: str, item: RewrapItem
) -> tuple[Document[Sidecar], dict[str, bytes | None]]:
    """What stands there, and what a change of it relies on: of a version of his own on its sidecar
    alone, of another's on what the last record says of readers too. Raises `Absent`, `Refused`."""
    if item.owner == user:
        document = server.index.for_user(user).cached_sidecar(item.file_id, item.version)
        return document, {document.path: document.digest}
    visible = server.visibility.version(user, item.owner, item.file_id, item.version)
    document = visible.document
    return document, {document.path: document.digest, **visible.head.expect()}


def _renewed(sidecar: Sidecar, item: RewrapItem, head: Statement, keys: Keys) -> Sidecar | None:
    """The sidecar with what the item brings, which was checked; itself where it has that already,
    None where it is about something else by now. A wrap to a key that was undone is none of the
    user's."""
    own = own_wrap(sidecar, keys.user)
    if own is not None and own.key_id in keys.undone[1]:
        own = None
    if item.owner != keys.user and item.wrap is None and own is not None:
        # What another shared and does not open: a reader may give up his own wrap.
        return changed(sidecar, wraps=tuple(wrap for wrap in sidecar.wraps if wrap is not own))
    if (own is None) != (item.wrap is None):
        return None
    wraps, content, last = sidecar.wraps, sidecar.content, sidecar.head
    if item.wrap is not None and own is not None and own.key_id != keys.key_id:
        wraps = (*(wrap for wrap in wraps if wrap is not own), item.wrap)
    for endorsement in item.endorsements:
        added = GenerationSignature(head.generation, endorsement.signature)
        if endorsement.record_hash == record_hash(content.record):
            content = _endorsed(content, added)
        elif last is not None and endorsement.record_hash == record_hash(last.record):
            last = _endorsed(last, added)
        else:
            return None
    if wraps is sidecar.wraps and content is sidecar.content and last is sidecar.head:
        return sidecar
    return changed(sidecar, wraps=wraps, content=content, head=last)


def _endorsed(signed: SignedRecord, added: GenerationSignature) -> SignedRecord:
    kept = signed.signatures
    if any(one.generation == added.generation for one in kept):
        return signed
    if len(kept) > 1:
        own = cached_record(signed.record).generation
        vouched = sorted(kept, key=lambda one: (one.generation != own, one.generation))
        # Its own stays, and the newest of those that vouch for it: each had seen the one before.
        kept = (*vouched[:1], *vouched[1:][2 - KEPT_SIGNATURES :])
    return SignedRecord(signed.record, (*kept, added))


class Version(Value):
    owner: str
    file_id: str
    version: int
    document: Document[Sidecar]

    @property
    def cursor(self) -> str:
        return f"{self.owner}.{self.file_id}.{self.version}"


def wraps_of(
    server: ServerContext, user: str, after: str = "", *, known: bool = False
) -> Iterator[Version]:
    """Every version that `user` has or may read, by owner, file_id and number, past the one that
    the cursor `after` names ("": from the start); own ones, where `known`, as
    `Documents.cached_sidecar` gives them."""
    owner, file_id, version = _place(after)
    if owner < user:
        yield from _shared_in(server, user, (owner, file_id), version, before=user)
    mine = (file_id, version) if owner == user else ("", 0)
    if owner <= user:
        yield from _versions(server.index.for_user(user), *mine, known=known)
    start = (owner, file_id) if owner > user else (user, "g")  # past every hexadecimal id
    yield from _shared_in(server, user, start, version, before=None)


def _place(cursor: str) -> tuple[str, str, int]:
    """(owner, file_id, version) that a cursor names; that of the start for what is none."""
    name, _, number = cursor.rpartition(".")
    note = parse_inbox_name(name)  # what no user and no file can be called is not looked for
    if note is None or not number.isascii() or not number.isdigit():
        return "", "", 0
    return *note, int(number[:10])


def _shared_in(
    server: ServerContext, user: str, after: tuple[str, str], version: int, before: str | None
) -> Iterator[Version]:
    """The versions of files that others share, from owners before `before` (None: all of them)."""
    inbox = server.inboxes.for_user(user)
    notes = [after] if version and after[1] and after[0] != user else []
    while notes or (notes := inbox.after(after, _AHEAD)):
        for owner, file_id in notes:
            if before is not None and owner >= before:
                return
            first = version if (owner, file_id) == after else 0
            try:
                head = server.visibility.newest(user, owner, file_id).head
            except Refused:
                continue  # shared no more, or expired: nobody opens it with a wrap that is left
            for number in range(first + 1, head.version + 1):
                document = head.files.sidecar(file_id, number)
                yield Version(owner, file_id, number, document)
        after, notes = notes[-1], []


def _versions(files: OwnerFiles, file_id: str, version: int, *, known: bool) -> Iterator[Version]:
    """Every version of every file, in order, past the one named ("": from the start)."""
    places = _places(files, file_id, version)
    while some := list(islice(places, _TOGETHER)):
        if known:
            documents = [files.cached_sidecar(*place) for place in some]
        else:
            documents = files.sidecars(some)
        for place, document in zip(some, documents, strict=True):
            yield Version(files.owner, *place, document)


def _places(files: OwnerFiles, file_id: str, version: int) -> Iterator[tuple[str, int]]:
    """As `_versions`: file_id and number."""
    if file_id:
        for number in range(version + 1, files.newest(file_id) + 1):
            yield file_id, number
    while page := files.after(file_id, _AHEAD):
        for one, newest, _ in page:
            for number in range(1, newest + 1):
                yield one, number
        file_id = page[-1][0]


def is_stale(one: Version, own: Wrap | None, keys: Keys) -> bool:
    """Whether `own`, the user's wrap, or a record of his is of an older generation, and nothing is
    newer.

    What a thief has wrapped for himself, or signed, before his generation was voided cannot be made
    anew by the owner: it counts for nothing, and must not keep him from finishing.
    """
    sidecar, (generations, wrap_keys) = one.document.value, keys.undone
    if own is not None and own.key_id != keys.key_id and own.key_id not in wrap_keys:
        return True
    if one.owner != keys.user:
        return False  # its records are for its owner to endorse
    older = [
        signed
        for signed in _records(sidecar)
        if all(signature.generation != keys.generation for signature in signed.signatures)
    ]
    if not generations:
        return bool(older)  # the usual case, in which no record has to be parsed
    return any(cached_record(signed.record).generation not in generations for signed in older)


def _item(one: Version, wrap: Wrap | None) -> WrapItem:
    sidecar = one.document.value
    return WrapItem(one.owner, one.file_id, one.version, sidecar.content, sidecar.head, wrap)


def _records(sidecar: Sidecar) -> list[SignedRecord]:
    return [sidecar.content] if sidecar.head is None else [sidecar.content, sidecar.head]


def own_wrap(sidecar: Sidecar, user: str) -> Wrap | None:
    for wrap in sidecar.wraps:
        if wrap.user == user:
            return wrap
    return None
