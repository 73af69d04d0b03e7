"""A user's identity chain, and the rotation of their keys.

A rotation begins with a statement of the next generation; from then on writes need the new keys.
The client then rewraps every file key to the new key in batches (GetWraps, Rewrap), and endorses
the user's records with it. When no wrap or record depends on an older generation, a second
statement retires the older generations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, Self

from protocol.codec import merkle
from protocol.codec.base64text import to_text
from protocol.codec.errors import RemoteProtocolError, SignatureError
from protocol.codec.values import Value, changed
from protocol.records.chain import KEEPING, RENEWING
from protocol.records.record_signatures import MAX_SIGNED, RecordTree
from protocol.records.records import (
    DEVICE,
    FINISH,
    RECOVERY,
    RECOVERY_KEY,
    RotationFinish,
    Statement,
    record_hash,
    version_leaf,
    wrap_leaf,
)
from protocol.records.signatures import Label, verify_signature
from protocol.wire.messages.base import (
    PIECE,
    DamagedVersion,
    GenerationSignature,
    SignedRecord,
    Wrap,
)
from protocol.wire.messages.rotation import (
    MAX_BATCH,
    GetBundle,
    GetWraps,
    NewStatement,
    Rewrap,
    RewrapItem,
    Rewrapped,
    RotateBegin,
    RotateFinish,
    SealedBundle,
    WrapItem,
    WrapsPage,
    with_full_wraps,
    with_short_wraps,
)
from sfsd.errors import Absent, DamagedError, Refused, require
from sfsd.operations.files import PAGE_BYTES, signed_size
from sfsd.rules import bundles
from sfsd.rules.context import (
    JOINING,
    OWN_KEYS,
    RECOVERING,
    REQUEST_WEIGHT,
    USER,
    Access,
    Decision,
    Principal,
    ServerContext,
    Transaction,
    draft,
    operation,
)
from sfsd.rules.record_rules import check_wrap
from sfsd.rules.users import User, possession_detail, validate_next_statement
from sfsd.settings.kinds import DAY
from sfsd.state.documents import Document, SidecarWrite
from sfsd.state.file_index import OwnerFiles
from sfsd.storage.change import Change, Effect, Write
from sfsd.storage.json_files import Sidecar, StoredStatement, cached_record, encode_statements
from sfsd.storage.paths import account_path, bundle_path, parse_inbox_name, statements_path

PER_RECOVERY: Final = 5
"""Rotations allowed for each recovery allowed. An account that is stolen more often needs the
operator, who can raise `limits.rotations`."""
NEWEST_ENDORSEMENTS: Final = 8
"""Endorsements kept for a record in any case, besides its own signature. Each takes up to 432 bytes
of the sidecar."""
MAX_SIGNATURES: Final = 64
"""Most signatures of a record: as many as a message has room for."""
_OVERHEAD: Final = 1024
_ITEM_WEIGHT: Final = 1536
"""Bytes of a renewed wrap and the endorsements of two records."""
_SCANNED: Final = 4096
"""Maximum versions examined for one page."""
_FILE_BATCH: Final = MAX_BATCH
"""Files looked up at once: about one page's, since most files have one version."""
_READ_BATCH: Final = 32
"""Sidecars read at once: as many as the first page that our client requests."""


@operation(NewStatement, access=JOINING, logged="statement", weight=PIECE)
def new_statement(server: ServerContext, who: Principal, message: NewStatement) -> Decision:
    """Append a statement that keeps the keys, by compare-and-swap on the chain.

    It is allowed even if the user must rotate before writing. A session that was opened without a
    device may only change the devices.
    """
    reasons = {DEVICE} if who.access is Access.JOINING else {DEVICE, RECOVERY_KEY}
    return _append(server, who, message, "statement", frozenset(reasons), message.possession)


@operation(RotateBegin, access=RECOVERING, logged="rotate-begin", weight=PIECE)
def rotate_begin(server: ServerContext, who: Principal, message: RotateBegin) -> Decision:
    """Append a statement of the next generation, which must sign every record from then on. The
    session of a recovery key may only recover."""
    reasons = frozenset({RECOVERY}) if who.access is Access.RECOVERY else RENEWING
    return _append(server, who, message, "rotate-begin", reasons, message.possession)


@operation(RotateFinish, access=USER, logged="rotate-finish", slow=True, weight=PIECE)
def rotate_finish(server: ServerContext, who: Principal, message: RotateFinish) -> Decision:
    """Retire the older generations, after checking that no wrap or record depends on them.

    Versions that cannot be renewed do not block this if the user has signed which ones they are.
    """
    user = server.users.require_active(who.user)
    if user.chain.links[-1].body == message.statement:
        return server.done(user.chain.links[-1].seq, who)
    finish = _parse_finish(user, message)
    # A sidecar that was damaged since it was cached is only found by reading it.
    if not (_matches(server, user, finish, cached=True) or _matches(server, user, finish)):
        why = "the wraps have changed, or one depends on an older generation"
        raise Refused("conflict", why)
    detail = {
        "finish": to_text(message.finish),
        "finish_sig": to_text(message.finish_signature),
        "files": finish.files,
        "left_out": finish.left_out,
    }
    return _append(server, who, message, "rotate-finish", frozenset({FINISH}), detail=detail)


def _matches(
    server: ServerContext, user: User, finish: RotationFinish, *, cached: bool = False
) -> bool:
    """Return whether the user's wraps, and the versions left out, are those that they signed."""
    leaves: list[bytes] = []
    left_out: list[bytes] = []
    keys = CurrentKeys.from_user(user)
    for item in readable_versions(server, user.name, cached=cached):
        wrap = None if item.document is None else own_wrap(item.document.value, user.name)
        if item.document is None or is_stale(item.owner, item.document.value, wrap, keys):
            left_out.append(merkle.leaf_hash(version_leaf(*item.place)))
        elif wrap is not None and wrap.key_id == keys.key_id:
            leaves.append(merkle.leaf_hash(wrap_leaf(*item.place, wrap.wrapped)))
        if len(left_out) > finish.left_out or len(leaves) > finish.files:
            return False
    signed = finish.files, finish.root, finish.left_out, finish.left_out_root
    return signed == (len(leaves), merkle.root(leaves), len(left_out), merkle.root(left_out))


def _parse_finish(user: User, message: RotateFinish) -> RotationFinish:
    """Parse and verify the signed summary of a finished rotation. Raises `Refused`."""
    head = user.chain.head
    try:
        verify_signature(
            Label.ROTATION_FINISH, message.finish, message.finish_signature, head.sign_pub
        )
        finish = RotationFinish.parse(message.finish)
    except SignatureError as exc:
        raise Refused("refused", "the finish is not signed by the current key") from exc
    except RemoteProtocolError as exc:
        raise Refused("bad-request", f"malformed finish: {exc}") from exc
    require(
        (finish.server, finish.user) == (head.server, head.user),
        "the finish is for another account",
    )
    require(
        finish.statement == record_hash(message.statement), "the finish is for another statement"
    )
    require(finish.generation == head.generation, "the finish is for another generation")
    return finish


def _append(
    server: ServerContext,
    who: Principal,
    message: NewStatement | RotateBegin | RotateFinish,
    op: str,
    reasons: frozenset[str],
    possession: bytes = b"",
    *,
    detail: dict[str, object] | None = None,
) -> Decision:
    """Return the change that appends a statement and its bundle to the user's chain."""
    user = server.users.require_active(who.user)
    links = user.chain.links
    if links[-1].body == message.statement:
        return server.done(links[-1].seq, who)
    statement, sigs = validate_next_statement(
        user.chain,
        message.statement,
        message.signatures,
        message.bundle,
        possession,
        reasons=reasons,
        policy=server.config.rotation,
        now=server.now,
    )
    _check_rate(server, user, statement.reason)

    def chain(seq: int) -> bytes:
        signatures = message.signatures
        added = StoredStatement(message.statement, signatures, seq, statement, possession)
        return encode_statements((*links, added))

    about = {"n": statement.n, "reason": statement.reason, "generation": statement.generation}
    entry = draft(
        who,
        op,
        owner=user.name,
        rec=message.statement,
        sigs=sigs,
        detail={**about, **possession_detail(possession), **(detail or {})},
        accounts=(user.name,),
        identity=(user.chain.first_hash, statement.n),
    )
    effects: list[Effect] = [
        Write(statements_path(user.name), chain),
        Write(bundle_path(user.name), bytes(message.bundle)),
        *bundles.keep_newest_bundle(server, user.chain),
    ]
    if statement.reason in RENEWING and user.account.value.forced is not None:
        released = changed(user.account.value, forced=None)
        effects.append(Write(account_path(user.name), released.encode))
    change = Change(entry, user.expect, tuple(effects))
    return Transaction(change, lambda seq: server.done(seq, who))


def _check_rate(server: ServerContext, user: User, reason: str) -> None:
    """Check how many such statements came within the days that older bundles are kept.

    Rotations may be `limits.rotations`, statements that keep the keys twice as many, recoveries a
    fifth. Each statement rewrites the whole chain on the committer's thread, which makes every
    user's changes, so the chain's length must be bounded. By default rotations are fewer than
    `MAX_SIGNATURES`: a thief who keeps rotating cannot push out the owner's last endorsement
    before the owner recovers. A recovery, for which only the owner has the key, resets what the
    thief used up. Raises `Refused`.
    """
    head, most, days = user.chain.head, server.config.limits.rotations, bundles.KEPT_DAYS
    if reason == FINISH:
        # This bounds their number by that of rotations.
        require(head.oldest < head.generation, "the older generations are retired already")
    elif reason == RECOVERY:
        recoveries = max(1, most // PER_RECOVERY)
        if _count_recent(server, user, frozenset({RECOVERY}), since_recovery=False) >= recoveries:
            why = f"{recoveries} recoveries within {days} days"
            raise Refused("denied", f"{why}; the operator may set limits.rotations higher")
    elif reason in RENEWING:
        if (begun := _count_recent(server, user, RENEWING)) >= most:
            raise Refused("denied", f"{begun} rotations within {days} days; wait, or recover")
    elif (added := _count_recent(server, user, KEEPING - {FINISH})) >= 2 * most:
        raise Refused("denied", f"{added} statements within {days} days; wait, or recover")


def _count_recent(
    server: ServerContext, user: User, reasons: frozenset[str], *, since_recovery: bool = True
) -> int:
    """Return how many statements with these reasons were logged in the last `KEPT_DAYS`."""
    since, found = server.now - bundles.KEPT_DAYS * DAY, 0
    for link in reversed(user.chain.links):
        recovers = link.statement.reason == RECOVERY
        if (recovers and since_recovery) or server.logged_at(link.seq) < since:
            break
        found += link.statement.reason in reasons
    return found


@operation(GetBundle, access=OWN_KEYS)
def get_bundle(server: ServerContext, who: Principal, message: GetBundle) -> SealedBundle:
    """Return the newest sealed bundle, or for the recovery key the one of statement `n`."""
    if message.n and who.access is not Access.RECOVERY:
        raise Refused("not-allowed", "only the recovery key may read earlier bundles")
    with server.store.publishing_paused():
        chain = server.users.require_active(who.user).chain
        return SealedBundle(bundles.read_bundle(server, chain, message.n or chain.head.n))


class CurrentKeys(Value):
    """A user's current generation and wrapping key id, and those that a recovery voided."""

    user: str
    generation: int
    key_id: bytes
    voided_generations: frozenset[int]
    voided_key_ids: frozenset[bytes]

    @classmethod
    def from_user(cls, user: User) -> Self:
        """Compute once for many versions: a key id is the hash of its key."""
        head = user.chain.head
        return cls(user.name, head.generation, head.key_id, *user.chain.voided_keys())


@operation(GetWraps, access=USER, slow=True, weight=PIECE)
def get_wraps(server: ServerContext, who: Principal, message: GetWraps) -> WrapsPage:
    """List the versions whose wrap or records need renewal; with `all_of_them`, every own version
    and every wrap.

    Damaged versions are named.
    """
    user = server.users.require_active(who.user)
    items: list[WrapItem] = []
    damaged: list[DamagedVersion] = []
    size = scanned = 0
    last, keys = message.after, CurrentKeys.from_user(user)
    for one in readable_versions(server, user.name, message.after):
        if one.document is None:
            damaged.append(DamagedVersion(*one.place))
        else:
            sidecar = one.document.value
            wrap = own_wrap(sidecar, user.name)
            stale = is_stale(one.owner, sidecar, wrap, keys)
            listed = wrap is not None or one.owner == user.name
            if stale or (message.all_of_them and listed):
                size += sum(map(signed_size, _records(sidecar))) + _OVERHEAD
                size += 0 if wrap is None else len(wrap.wrapped)
                if items and size > PAGE_BYTES:
                    return WrapsPage(with_short_wraps(items), last, tuple(damaged))
                items.append(WrapItem(*one.place, sidecar.content, sidecar.head, wrap))
        last, scanned = one.cursor, scanned + 1
        if len(items) + len(damaged) == message.limit or scanned == _SCANNED:
            return WrapsPage(with_short_wraps(items), last, tuple(damaged))
    return WrapsPage(with_short_wraps(items), "", tuple(damaged))


@operation(
    Rewrap,
    access=USER,
    logged="rewrap",
    weight=lambda message: REQUEST_WEIGHT + _ITEM_WEIGHT * len(message.items),
)
def rewrap(server: ServerContext, who: Principal, message: Rewrap) -> Decision:
    """Replace the user's wraps and add endorsements; skip items that changed meanwhile.

    The reply lists the skipped items, and those that need no change.
    """
    user = server.users.require_active(who.user)
    items = with_full_wraps(message.items)
    places = [(item.owner, item.file_id, item.version) for item in items]
    require(bool(places) and len(set(places)) == len(places), "each version must be listed once")
    owner = items[0].owner
    require(all(item.owner == owner for item in items), "the files have several owners")
    require(
        owner == user.name or not any(item.endorsed for item in items),
        "only the owner of a file endorses its records",
    )
    files = server.index.for_user(owner)
    written: list[SidecarWrite] = []
    rewritten: list[tuple[str, int]] = []
    logged: list[bytes] = []
    expect = dict(user.expect)
    left: list[int] = []
    keys = CurrentKeys.from_user(user)
    _check_wraps(items, user.chain.head, keys)
    endorsed = _check_endorsement(server, user, message)
    kept = _kept_generations(server, user) if endorsed else frozenset()
    for place, (item, found) in enumerate(
        zip(items, _read_items(server, user.name, items), strict=True)
    ):
        if found is None:
            # Missing, no longer shared, or damaged since it was listed; the reply is the same.
            left.append(place)
            continue
        document, relied_on = found
        # The digest read first wins: a later item may have read the same sidecar again since.
        for path, digest in relied_on.items():
            expect.setdefault(path, digest)
        made = {digest: endorsed[digest] for digest in item.endorsed}
        renewed = _renewed(document.value, item, made, keys, kept)
        if renewed is None or renewed is document.value:
            left.append(place)
        else:
            written.append(SidecarWrite(document.path, renewed))
            rewritten.append((item.file_id, item.version))
            logged += item.logged_hashes
    if not written:
        return Rewrapped(None, tuple(left))

    def on_published(seq: int) -> None:
        places = zip(rewritten, written, strict=True)
        files.note_rewritten(seq, [(*place, one.size) for place, one in places])
        for one in written:
            server.documents.remember(one)

    entry = draft(
        who,
        "rewrap",
        owner=owner,
        detail={
            "generation": user.chain.head.generation,
            "count": len(written),
            "items": to_text(b"".join(logged)),
        },
        accounts=tuple(sorted({owner, user.name})),
    )
    change = Change(entry, expect, tuple([one.effect for one in written]), None, on_published)
    return Transaction(change, lambda seq: Rewrapped(server.receipt(seq, who), tuple(left)))


def _check_wraps(items: Sequence[RewrapItem], head: Statement, keys: CurrentKeys) -> None:
    """Check that all wraps are the user's, for their current key.

    All items are checked before any sidecar is read, because interleaving is slower. Raises
    `Refused`.
    """
    for item in items:
        if item.wrap is not None:
            require(item.wrap.user == keys.user, "the wrap is for another user")
            check_wrap(item.wrap, head, keys.key_id)


def _check_endorsement(server: ServerContext, user: User, message: Rewrap) -> dict[bytes, bytes]:
    """Check that the user's current key endorsed exactly the records that the items name.

    Return the packed endorsement of each by record hash. A record that two sidecars hold is
    endorsed once. Raises `Refused`.
    """
    hashes = list(dict.fromkeys(digest for item in message.items for digest in item.endorsed))
    if not hashes:
        require(not message.endorsement, "an endorsement of no records")
        return {}
    require(len(hashes) <= MAX_SIGNED, f"at most {MAX_SIGNED} records are endorsed at once")
    head, tree = user.chain.head, RecordTree.of_records(hashes)
    body = tree.signed_body(server.identity.server_id, user.chain.first_hash, head.generation)
    try:
        verify_signature(Label.ENDORSEMENTS, body, message.endorsement, head.sign_pub)
    except SignatureError as exc:
        raise Refused("refused", "the records are not endorsed by the current key") from exc
    return dict(zip(hashes, tree.pack(message.endorsement), strict=True))


def _kept_generations(server: ServerContext, user: User) -> frozenset[int]:
    """Return the generations whose endorsements are kept however many newer ones there are.

    These are the generation in force `KEPT_DAYS` ago and those that followed it. An owner may
    recover for as long: then the endorsement by the last generation before the thief's must still
    be there, although the thief may have rotated many times (decision 0036).
    """
    since, found = server.now - bundles.KEPT_DAYS * DAY, set[int]()
    undone, _ = user.chain.voided_keys()
    for link in reversed(user.chain.links):
        if link.statement.generation not in undone:
            found.add(link.statement.generation)
            if server.logged_at(link.seq) < since:
                break
    return frozenset(found)


def _read_items(
    server: ServerContext, user: str, items: Sequence[RewrapItem]
) -> list[tuple[Document[Sidecar], dict[str, bytes | None]] | None]:
    """Return the sidecar of each item of one owner, and the documents that a change of it relies
    on: for an own version its sidecar, for a shared one also the readers in the file's last record.
    None for an item that the user cannot change."""
    owner, found = items[0].owner, list[tuple[Document[Sidecar], dict[str, bytes | None]] | None]()
    if owner == user:
        places = [(item.file_id, item.version) for item in items]
        for document in _own_sidecars(server.index.for_user(user), places):
            if document is None:
                found.append(None)
            else:
                found.append((document, {document.path: document.digest}))
        return found
    for item in items:
        try:
            visible = server.visibility.version(user, owner, item.file_id, item.version)
        except (Absent, Refused, DamagedError):
            found.append(None)
        else:
            document = visible.document
            relied_on = {document.path: document.digest, **visible.head.expect()}
            found.append((document, relied_on))
    return found


def _own_sidecars(
    files: OwnerFiles, places: Sequence[tuple[str, int]]
) -> list[Document[Sidecar] | None]:
    """Return the sidecars of these versions (file_id, number), None for one that is missing or
    damaged."""
    try:
        found = files.readable_sidecars(places, cached=True)
    except Absent:
        if len(places) == 1:
            return [None]
        return [one for place in places for one in _own_sidecars(files, [place])]
    return [None if isinstance(one, DamagedError) else one for one in found]


def _renewed(
    sidecar: Sidecar,
    item: RewrapItem,
    endorsed: Mapping[bytes, bytes],
    keys: CurrentKeys,
    kept: frozenset[int],
) -> Sidecar | None:
    """Return the sidecar with a checked item applied; `sidecar` itself if nothing changes.

    `endorsed` maps the item's record hashes to packed endorsements, and endorsements by the `kept`
    generations stay. Return None if the item no longer matches. A wrap for a voided key does not
    count as the user's.
    """
    own = own_wrap(sidecar, keys.user)
    if own is not None and own.key_id in keys.voided_key_ids:
        own = None
    if item.owner != keys.user and item.wrap is None and own is not None:
        # The wrap of a shared file does not open: a reader may remove their own wrap.
        return changed(sidecar, wraps=tuple(wrap for wrap in sidecar.wraps if wrap is not own))
    if own is None and item.wrap is not None:
        return None
    # Without a new wrap, one that its owner cannot open stays as it is.
    wraps, content, last = sidecar.wraps, sidecar.content, sidecar.head
    if item.wrap is not None and own is not None and own.key_id != keys.key_id:
        wraps = (*(wrap for wrap in wraps if wrap is not own), item.wrap)
    for digest, packed in endorsed.items():
        added = GenerationSignature(keys.generation, packed)
        if digest == record_hash(content.record):
            content = _endorsed(content, added, keys, kept)
        elif last is not None and digest == record_hash(last.record):
            last = _endorsed(last, added, keys, kept)
        else:
            return None
    if wraps is sidecar.wraps and content is sidecar.content and last is sidecar.head:
        return sidecar
    return changed(sidecar, wraps=wraps, content=content, head=last)


def _endorsed(
    signed: SignedRecord,
    added: GenerationSignature,
    keys: CurrentKeys,
    kept: frozenset[int],
) -> SignedRecord:
    """Return the record with an endorsement added.

    Its own signature stays. Of the endorsements, those by voided generations go first; the newest
    `NEWEST_ENDORSEMENTS` and those by the `kept` generations stay, newest first, up to
    `MAX_SIGNATURES`. Each signer had verified the endorsement before its own.
    """
    present = signed.signatures
    if any(one.generation == added.generation for one in present):
        return signed
    if len(present) > NEWEST_ENDORSEMENTS:
        made_by = cached_record(signed.record).generation
        own = [one for one in present if one.generation == made_by]
        valid = [
            one
            for one in present
            if one.generation != made_by and one.generation not in keys.voided_generations
        ]
        valid.sort(key=lambda one: one.generation, reverse=True)
        stay = [
            one
            for place, one in enumerate(valid)
            if place < NEWEST_ENDORSEMENTS - 1 or one.generation in kept
        ]
        present = (*own, *reversed(stay[: MAX_SIGNATURES - 2]))
    return SignedRecord(signed.record, (*present, added))


class StoredVersion(Value):
    """One version of a file and its sidecar, None if that is damaged."""

    owner: str
    file_id: str
    version: int
    document: Document[Sidecar] | None

    @property
    def place(self) -> tuple[str, str, int]:
        """The version's (owner, file_id, number)."""
        return self.owner, self.file_id, self.version

    @property
    def cursor(self) -> str:
        """The cursor from which a listing goes on after this version."""
        return f"{self.owner}.{self.file_id}.{self.version}"


def readable_versions(
    server: ServerContext, user: str, after: str = "", *, cached: bool = False
) -> Iterator[StoredVersion]:
    """Yield every version that `user` owns or may read, past the cursor `after` ("": all).

    The order is by owner, file_id and number. Damaged versions are included. With `cached`, own
    sidecars come from `Documents.cached_sidecar`.
    """
    owner, file_id, version = _parse_cursor(after)
    if owner < user:
        yield from _shared_versions(server, user, (owner, file_id), version, before=user)
    mine = (file_id, version) if owner == user else ("", 0)
    if owner <= user:
        yield from _own_versions(server.index.for_user(user), *mine, cached=cached)
    start = (owner, file_id) if owner > user else (user, "g")  # past every hexadecimal id
    yield from _shared_versions(server, user, start, version, before=None)


def _parse_cursor(cursor: str) -> tuple[str, str, int]:
    """Return the cursor's (owner, file_id, version); a malformed one gives the start."""
    name, _, number = cursor.rpartition(".")
    note = parse_inbox_name(name)  # also checks that user name and file_id are valid
    if note is None or not number.isascii() or not number.isdigit():
        return "", "", 0
    return *note, int(number[:10])


def _shared_versions(
    server: ServerContext, user: str, after: tuple[str, str], version: int, before: str | None
) -> Iterator[StoredVersion]:
    """Yield versions of files shared with `user`, by owners before `before` (None: by all)."""
    inbox = server.inboxes.for_user(user)
    notes = [after] if version and after[1] and after[0] != user else []
    while notes or (notes := inbox.after(after, _FILE_BATCH)):
        for owner, file_id in notes:
            if before is not None and owner >= before:
                return
            first = version if (owner, file_id) == after else 0
            files = server.index.for_user(owner)
            try:
                newest = server.visibility.newest(user, owner, file_id).head.version
            except Refused:
                continue  # no longer shared, or expired: a remaining wrap opens nothing
            except DamagedError:
                # Nothing tells whether the file is still shared, so none of its wraps is renewed.
                for number in range(first + 1, files.newest(file_id) + 1):
                    yield StoredVersion(owner, file_id, number, None)
                continue
            for number in range(first + 1, newest + 1):
                document = files.undamaged_sidecar(file_id, number)
                yield StoredVersion(owner, file_id, number, document)
        after, notes = notes[-1], []


def _own_versions(
    files: OwnerFiles, file_id: str, version: int, *, cached: bool
) -> Iterator[StoredVersion]:
    """Yield every version of an owner's files, past the given one ("": from the start)."""
    places = _places(files, file_id, version)
    while some := list(islice(places, _READ_BATCH)):
        documents = files.readable_sidecars(some, cached=cached)
        for place, document in zip(some, documents, strict=True):
            whole = None if isinstance(document, DamagedError) else document
            yield StoredVersion(files.owner, *place, whole)


def _places(files: OwnerFiles, file_id: str, version: int) -> Iterator[tuple[str, int]]:
    """Yield (file_id, number) of every version, past the given one ("": from the start)."""
    if file_id:
        for number in range(version + 1, files.newest(file_id) + 1):
            yield file_id, number
    while page := files.after(file_id, _FILE_BATCH):
        for one, newest, _ in page:
            for number in range(1, newest + 1):
                yield one, number
        file_id = page[-1][0]


def is_stale(owner: str, sidecar: Sidecar, own: Wrap | None, keys: CurrentKeys) -> bool:
    """Whether `own`, the user's wrap, or one of their records depends on an older generation.

    What a thief wrapped or signed with a voided generation does not count: the owner cannot renew
    it, so it must not keep them from finishing.
    """
    if own is not None and own.key_id != keys.key_id and own.key_id not in keys.voided_key_ids:
        return True
    if owner != keys.user:
        return False  # only the owner endorses its records
    older = [
        signed
        for signed in _records(sidecar)
        if all(signature.generation != keys.generation for signature in signed.signatures)
    ]
    voided = keys.voided_generations
    if not voided:
        return bool(older)  # the usual case: no record has to be parsed
    return any(cached_record(signed.record).generation not in voided for signed in older)


def _records(sidecar: Sidecar) -> list[SignedRecord]:
    """Return the one or two records in a sidecar."""
    return [sidecar.content] if sidecar.head is None else [sidecar.content, sidecar.head]


def own_wrap(sidecar: Sidecar, user: str) -> Wrap | None:
    """Return the user's wrap of a version, None if they have none."""
    return next((wrap for wrap in sidecar.wraps if wrap.user == user), None)
