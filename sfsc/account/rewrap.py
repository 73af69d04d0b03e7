"""Wrap every DEK of the account for its newest key, and endorse its records with that generation.

A rotation does this between its begin and finish statements. The server lists the wraps of own and
received files, page by page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Final

from protocol.codec import merkle
from protocol.codec.values import Mutable, Value, field
from protocol.records.record_signatures import MAX_SIGNED
from protocol.records.records import FileRecord, record_hash, version_leaf, wrap_leaf
from protocol.wire.messages import Error, Reply
from protocol.wire.messages.base import DamagedVersion, SignedRecord, Wrap
from protocol.wire.messages.rotation import (
    MAX_BATCH,
    GetWraps,
    Rewrap,
    RewrapItem,
    WrapItem,
    WrapsPage,
    logged_record,
    logged_wrap,
    with_full_wraps,
)
from sfsc.crypto.envelope import ContentKey, Recipient, WrapBatches, open_wraps
from sfsc.errors import (
    BadReceipt,
    BadRecord,
    Distrusted,
    Fork,
    IntegrityError,
    KeyringError,
    NotFound,
    Rollback,
    SfscError,
    WrongServer,
)
from sfsc.files.contacts import Contacts
from sfsc.files.endorse import rewrap_request, verify_rewrapped
from sfsc.log.rewraps import LoggedRewraps
from sfsc.session.pipeline import pages, pipelined
from sfsc.session.server_errors import damaged_version, to_exception
from sfsc.session.session import Session
from sfsc.trust.file_records import (
    FileOwner,
    KnownRevision,
    OwnAccount,
    check_names_content,
    parse_record,
)
from sfsc.trust.followed_log import LoggedHead, LoggedVersion
from sfsc.trust.server_log import REPORT

_FIRST: Final = 32
"""Wraps in the first page. It is small because nothing else can be done while waiting for it."""


Place = tuple[str, str, int]
"""A version: (owner, file_id, number)."""
LeftOut = dict[Place, SfscError]
"""Versions that a rotation cannot renew, each with the reason."""
SERVER_FAULTS: Final = (BadReceipt, Distrusted, Fork, WrongServer)
"""Errors about the whole server. They are never taken for the fault of one version."""


def wrap_items(
    session: Session, left_out: LeftOut | None = None, missing: LeftOut | None = None
) -> Iterator[WrapItem]:
    """Yield all versions, ordered by owner, file_id and number. Each page is requested while the
    one before is processed. No record is verified. Damaged versions are added to `left_out`
    instead, and those whose wrap is for the key of an attacker, although the log has no such wrap.
    At the end, the versions of own files that the log had before and that were not listed are added
    to `missing`. Raises like `pages`, and `BadRecord` if a version is listed twice."""

    def more(page: WrapsPage) -> GetWraps | None:
        return GetWraps(page.next, MAX_BATCH, all_of_them=True) if page.next else None

    since, user, listed = session.followed_size, session.account.user, dict[str, int]()
    last = ("", "", 0)
    first = GetWraps("", min(_FIRST, MAX_BATCH), all_of_them=True)
    by_attackers = LoggedRewraps(session, session.account.voided)
    for page in pages(session, first, WrapsPage, more):
        items = with_full_wraps(page.items)
        damaged: LeftOut = {_damaged_place(one): damaged_version(one) for one in page.damaged}
        false = _falsely_lost(session.account, by_attackers, items)
        if left_out is not None:
            left_out |= damaged | false
        for place in sorted([*map(place_of, items), *damaged]):
            if place <= last:
                raise BadRecord("the server lists a version twice", REPORT)
            (owner, file_id, version), last = place, place
            if owner == user and version == listed.get(file_id, 0) + 1:
                listed[file_id] = version
        yield from (one for one in items if place_of(one) not in false)
    if missing is not None:
        missing |= _unlisted(session, listed, since)


def _falsely_lost(account: OwnAccount, logged: LoggedRewraps, items: Iterable[WrapItem]) -> LeftOut:
    """Return the own versions with a wrap for an attacker's key that no re-wrap of the attacker has
    `logged`. If it were believed, the owner would give the version up, and sign its deletion."""
    wraps = {
        place_of(item): logged_wrap(*place_of(item), item.wrap)
        for item in items
        if item.owner == account.user and item.wrap is not None and account.is_lost((item.wrap,))
        if _generation_of(item.content) not in account.voided
    }
    missing = logged.missing_anywhere(wraps.values())
    cause = "the server shows a wrap of somebody with stolen keys, which its log lacks"
    return {place: BadRecord(cause, REPORT) for place, made in wraps.items() if made in missing}


def _unlisted(session: Session, listed: dict[str, int], since: int) -> LeftOut:
    """Return the first version that is not `listed` of each own file, of which the log had a newer
    one, or this, when it had `since` entries. `listed` has the versions before, by file_id."""
    user, found = session.account.user, LeftOut()
    for file_id, head in session.state.logged_heads().items():
        version = listed.get(file_id, 0) + 1
        if head.seq < since and version <= head.version:
            cause = f"the server does not list version {version} of a file that its log has"
            found[user, file_id, version] = Rollback(cause, REPORT)
    return found


def _damaged_place(one: DamagedVersion) -> Place:
    return one.owner, one.file_id, one.version


def compare_with_log(
    session: Session, items: Iterable[WrapItem], since: int
) -> dict[Place, BadRecord | None]:
    """Compare the records of own versions with the followed log. Return the versions whose records
    are not those that the log has for exactly that version: the error, or None if the file has
    changed since the log had `since` entries, which was before the items were asked for.

    An endorsement makes a record count that an older key has signed, permanently and for everybody.
    A thief with that key can sign records, but cannot have one logged after the key has ended.
    Raises as `Session.refresh_log`.
    """
    false = [item for item in items if item.owner == session.account.user]
    heads: dict[str, LoggedHead] = {}
    for follows in (False, True):
        if follows and false:
            session.refresh_log()  # what is shown may be newer than what was followed
        heads, versions = session.logged_versions([(one.file_id, one.version) for one in false])
        false = [
            item
            for item in false
            if not _is_logged(item, versions.get((item.file_id, item.version)))
        ]
    found: dict[Place, BadRecord | None] = {}
    for item in false:
        head = heads.get(item.file_id)
        shown = f"the server shows another record of version {item.version} than its log has"
        changed_since = head is not None and head.seq >= since
        found[place_of(item)] = None if changed_since else BadRecord(shown, REPORT)
    return found


def _is_logged(item: WrapItem, logged: LoggedVersion | None) -> bool:
    """Return whether the log has these records of exactly this version."""
    if logged is None or record_hash(item.content.record) != logged.content:
        return False
    return item.head is None or record_hash(item.head.record) == logged.last


_BATCHES: Final = 4
"""Batches in flight."""
_CHUNK: Final = 32
"""Versions rewrapped together: about 10 ms of work."""
_Batch = tuple[RewrapItem, ...]
Version = tuple[FileOwner | None, WrapItem, KnownRevision | None]
"""(owner, or None if it is us; what the server lists; what is known of the file, if it is ours)."""
Answer = tuple[RewrapItem | None, bytes | None, SfscError | None]


class RewrapResult(Mutable):
    """The result of one pass over all versions. `done` counts the wraps that were replaced, `left`
    the versions that changed meanwhile and need another pass. `leaves` holds the leaf hashes of all
    wraps for our present key, in the order of `RotationFinish.root`. `left_out` has the versions
    that cannot be renewed, `missing` those that the server did not list."""

    done: int = 0
    left: int = 0
    leaves: list[bytes] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=dict)
    missing: LeftOut = field(default_factory=dict)


class _RewrapJob(Mutable):
    """The work on one version: `signed` records are verified, those in `older` are endorsed (their
    hashes are `endorsed`), and the `wrap`, if any, is replaced. `owner` is None for our own file.
    `is_mixed_up` tells whether a record is of another owner's file, `error` why the version cannot
    be renewed."""

    owner: FileOwner | None
    item: WrapItem
    known: KnownRevision | None
    signed: list[SignedRecord]
    older: list[SignedRecord]
    wrap: Wrap | None
    records: list[FileRecord] = field(default_factory=list)
    content: FileRecord | None = None
    key: ContentKey | None = None
    endorsed: tuple[bytes, ...] = ()
    is_mixed_up: bool = False
    error: SfscError | None = None


class RewrapBuilder(Value):
    """Rewraps and endorses versions with the account's present keys, without a server. Called with
    versions, it returns for each what to send (or None), the leaf hash of our resulting wrap (or
    None), and why the version cannot be renewed (or None). The wrap of a shared version that cannot
    be renewed is given up, unless the server shows a file of another owner in its place. Each step
    runs for all versions before the next step, which keeps its code and tables in the processor's
    cache and saves an eighth of the time."""

    account: OwnAccount
    generation: int
    batches: dict[bytes, WrapBatches] = field(default_factory=dict)

    def __call__(self, versions: Sequence[Version]) -> list[Answer]:
        """Return the results in input order."""
        looked_at = [self._look(*version) for version in versions]
        renewed = [one for one in looked_at if one is not None]
        for step in (self._parse, self._check_record, self._open, self._wrap, self._endorse):
            for one in renewed:
                try:
                    step(one)
                except (IntegrityError, KeyringError) as exc:
                    # One version must never keep the others from being renewed. Our wrap of a
                    # shared one is dropped, so that nothing depends on the old key.
                    one.error = exc
                    if one.content is None:  # the records were not verified
                        one.older = []
                    one.signed, one.records = [], []
                    one.content = one.key = one.wrap = None
        pairs = zip(versions, looked_at, strict=True)
        return [self._answer(item, one) for (_, item, _), one in pairs]

    def has_work(self, item: WrapItem) -> bool:
        """Return whether an own version has a wrap or a record to renew, or a malformed record."""
        try:
            return self._look(None, item, None) is not None
        except BadRecord:
            return True

    def _look(
        self, owner: FileOwner | None, item: WrapItem, known: KnownRevision | None
    ) -> _RewrapJob | None:
        """Return the work on one version, or None if there is none."""
        wrap = item.wrap
        if owner is not None:
            # Only the owner endorses the records of a shared file.
            renews = wrap is not None and not self._is_new(wrap)
            return _RewrapJob(owner, item, known, [item.content], [], wrap) if renews else None
        if wrap is not None and self.account.is_lost((wrap,)):
            wrap = None  # wrapped for an attacker's key alone
        valid = valid_records(self.account, item)
        older = [one for one in valid if not _is_signed_by(one, self.generation)]
        if not older and (wrap is None or self._is_new(wrap)):
            return None
        if wrap is not None and item.content not in valid:
            valid.append(item.content)
        return _RewrapJob(None, item, known, valid, older, wrap)

    def _parse(self, one: _RewrapJob) -> None:
        one.records = [parse_record(signed) for signed in one.signed]

    def _check_record(self, one: _RewrapJob) -> None:
        whose, item, content = one.owner or self.account, one.item, None
        one.is_mixed_up = any(record.owner != item.owner for record in one.records)
        for signed, record in zip(one.signed, one.records, strict=True):
            judged = whose.verify_record(signed, item.file_id, record=record, known=one.known)
            if signed is item.content:
                content = judged
            elif content is not None:
                check_names_content(judged, signed.record, content, item.content.record)
        one.content = content

    def _open(self, one: _RewrapJob) -> None:
        if one.content is not None and one.wrap is not None and not self._is_new(one.wrap):
            first = (one.owner or self.account).first
            one.key = open_wraps(one.content, first, (one.wrap,), self.account.private_keys)

    def _wrap(self, one: _RewrapJob) -> None:
        if one.key is not None and one.wrap is not None:
            first = (one.owner or self.account).first
            batches = self.batches.get(first)
            if batches is None:
                batches = self.batches[first] = self.account.wrap_batches(one.owner)
            recipient = Recipient(self.account.user, self.account.own_key)
            (one.wrap,) = batches.wrap(one.key, [recipient])

    def _endorse(self, one: _RewrapJob) -> None:
        one.endorsed = tuple([record_hash(signed.record) for signed in one.older])

    def _answer(self, item: WrapItem, one: _RewrapJob | None) -> Answer:
        wrap, renewed, error = item.wrap, None, None
        if one is not None:
            wrap, endorsed, error = one.wrap, one.endorsed, one.error
            if error is None or endorsed or not (one.owner is None or one.is_mixed_up):
                renewed = RewrapItem(item.owner, item.file_id, item.version, wrap, endorsed)
        leaf = leaf_of(item, wrap) if wrap is not None and self._is_new(wrap) else None
        return renewed, leaf, error

    def _is_new(self, wrap: Wrap) -> bool:
        return wrap.key_id == self.account.own_key.key_id


class Rewrapper:
    """Rewraps all versions. The session has the new keys already."""

    def __init__(self, session: Session, contacts: Contacts) -> None:
        self._session = session
        self._contacts = contacts
        self._since = 0
        self._left: dict[Place, bytes] = {}  # `logged_wrap` of shared versions
        self._logged = LoggedRewraps(session, [session.author.generation])
        self._result = RewrapResult()
        self._owners: dict[str, FileOwner] = {}
        self.given_up: LeftOut = {}
        """Shared versions whose wraps do not open and were given up, in all passes."""

    def run_pass(self) -> RewrapResult:
        """Rewrap and endorse all versions once, except those whose records the log does not have.
        Raises `Distrusted`, and as `Session.refresh_log` and `Session.adopt_newest`."""
        self._result, self._since = RewrapResult(), self._session.refresh_log().size
        self._session.adopt_newest()
        generation = self._session.author.generation
        if generation not in self._logged.generations:
            self._logged = LoggedRewraps(self._session, [generation])
        for _ in pipelined(self._session, self._requests(), self._take, _BATCHES):
            pass
        self._session.link_receipts()
        return self._result

    def _requests(self) -> Iterator[tuple[tuple[int, _Batch], Rewrap]]:
        signer = self._session.record_signer()
        for batch in _batches(self._renewed()):
            if self._session.is_behind:
                self._result.left += len(batch)  # another device has rotated: start over
                return
            # Do not send signatures to a server that has meanwhile shown a split view.
            self._session.check_trusted()
            yield (signer.generation, batch), rewrap_request(signer, batch)

    def _renewed(self) -> Iterator[RewrapItem]:
        builder, versions = self.builder(), self._versions()
        while chunk := list(islice(versions, _CHUNK)):
            for (_, item, _), (renewed, leaf, error) in zip(chunk, builder(chunk), strict=True):
                if renewed is not None:
                    yield renewed
                if leaf is not None:
                    self._result.leaves.append(leaf)
                if error is not None:
                    ours = item.owner == self._session.account.user
                    left = self._result.left_out if ours or renewed is None else self.given_up
                    left[place_of(item)] = error

    def builder(self) -> RewrapBuilder:
        session = self._session
        return RewrapBuilder(session.account, session.author.generation)

    def _versions(self) -> Iterator[Version]:
        session = self._session
        account, generation = session.account, session.author.generation
        items = wrap_items(session, self._result.left_out, self._result.missing)
        while some := list(islice(items, _CHUNK)):
            session.progress.advance_items(len(some))
            check_logged(
                self._logged,
                [made for item in some for made in self._must_be_logged(account, generation, item)],
            )
            ours = [item for item in some if item.owner == account.user]
            builder = self.builder()
            renewed = [item for item in ours if builder.has_work(item)]
            false = compare_with_log(session, renewed, self._since)
            known = session.state.known_revisions([item.file_id for item in ours])
            for item in some:
                if session.account is not account:
                    self._result.left += 1  # another device has rotated: start over
                    return
                place = place_of(item)
                if place in false:
                    self._leave(place, false[place])
                elif item.owner == account.user:
                    yield None, item, known[item.file_id]
                else:
                    owner = self._owners.get(item.owner) or self._find_owner(item)
                    if owner is not None:
                        yield owner, item, None

    def _find_owner(self, item: WrapItem) -> FileOwner | None:
        """Return the owner of a shared version. If the server does not show a valid identity, leave
        the version out, unless it needs no new wrap, and return None."""
        try:
            self._owners[item.owner] = self._contacts.find(item.owner).owner
        except SERVER_FAULTS:
            raise
        except (IntegrityError, NotFound) as exc:
            account = self._session.account
            if item.wrap is not None and item.wrap.key_id == account.own_key.key_id:
                self._result.leaves.append(leaf_of(item, item.wrap))
            elif item.wrap is not None:
                self._result.left_out[place_of(item)] = exc
            return None
        return self._owners[item.owner]

    def _leave(self, place: Place, error: SfscError | None) -> None:
        """Leave out a version; without an error, until the next pass."""
        if error is None:
            self._result.left += 1
        else:
            self._result.left_out[place] = error

    def _take(self, sent: tuple[int, _Batch], reply: Reply) -> None:
        (generation, items), session = sent, self._session
        if isinstance(reply, Error):
            if reply.code == "stale-generation":
                session.renew_keys(reply)
            if session.author.generation == generation:
                raise to_exception(reply)
            self._result.left += len(items)  # another device has rotated: start over
            return
        left = verify_rewrapped(session, self._logged, items, reply)
        for index, item in enumerate(items):
            if item.wrap is None:
                continue
            if index not in left:
                self._result.done += 1
            elif item.owner != session.account.user:
                place = (item.owner, item.file_id, item.version)
                self._left[place] = logged_wrap(*place, item.wrap)
        self._result.left += len(left)

    def _must_be_logged(self, account: OwnAccount, generation: int, item: WrapItem) -> list[bytes]:
        """Return what `check_logged` must find of an item. A wrap of a shared version may also come
        from its owner, so only one that we have sent must be in the log."""
        if item.owner == account.user:
            return renewed_hashes(account, generation, item)
        sent = self._left.pop(place_of(item), None)
        shown = None if item.wrap is None else logged_wrap(*place_of(item), item.wrap)
        return [sent] if sent is not None and sent == shown else []


def renewed_hashes(account: OwnAccount, generation: int, item: WrapItem) -> list[bytes]:
    """Return the hashes by which the log names what a rotation to `generation`, whose keys the
    account has, stored of a version of ours: its wrap, and the endorsements of its records. There
    are none of another owner's version."""
    if item.owner != account.user:
        return []
    records = [item.content] if item.head is None else [item.content, item.head]
    found = [
        logged_record(record_hash(signed.record))
        for signed in records
        if _is_signed_by(signed, generation) and _generation_of(signed) != generation
    ]
    is_new = item.wrap is not None and item.wrap.key_id == account.own_key.key_id
    if is_new and item.wrap is not None and _generation_of(item.content) != generation:
        found.append(logged_wrap(*place_of(item), item.wrap))
    return found


def check_logged(logged: LoggedRewraps, hashes: Iterable[bytes]) -> None:
    """Raise `BadReceipt` if the log does not have all that the server shows as stored, whichever
    device has sent it. Raises as `AccountLog.entries`."""
    if logged.missing_anywhere(hashes):
        raise BadReceipt("the server shows wraps as stored that its log does not have", REPORT)


def valid_records(account: OwnAccount, item: WrapItem) -> list[SignedRecord]:
    """Return the item's records, without those that an attacker signed before a recovery."""
    signed = [one for one in (item.content, item.head) if one is not None]
    return [one for one in signed if not account.is_voided_signed(one)]


def leaf_of(item: WrapItem, wrap: Wrap) -> bytes:
    """Return the leaf hash of this wrap in `RotationFinish.root`."""
    return merkle.leaf_hash(wrap_leaf(item.owner, item.file_id, item.version, wrap.wrapped))


def place_of(item: WrapItem) -> Place:
    """Return the place of the item's version."""
    return item.owner, item.file_id, item.version


def left_out_root(left_out: LeftOut) -> bytes:
    """Return `RotationFinish.left_out_root` of these versions."""
    return merkle.root([merkle.leaf_hash(version_leaf(*place)) for place in sorted(left_out)])


def _is_signed_by(signed: SignedRecord, generation: int) -> bool:
    return any(one.generation == generation for one in signed.signatures)


def _generation_of(signed: SignedRecord) -> int:
    """Return the generation of a record; 0 if it is malformed."""
    try:
        return parse_record(signed).generation
    except BadRecord:
        return 0


def _batches(items: Iterator[RewrapItem]) -> Iterator[_Batch]:
    """Split the items into batches, each of one owner's files, and with as many records to endorse
    as one signature covers."""
    for _, owned in groupby(items, key=lambda item: item.owner):
        batch: list[RewrapItem] = []
        endorsed: set[bytes] = set()
        for item in owned:
            added = [digest for digest in item.endorsed if digest not in endorsed]
            full = len(batch) == MAX_BATCH or len(endorsed) + len(added) > MAX_SIGNED
            if batch and full:
                yield tuple(batch)
                batch, endorsed = [], set()
            batch.append(item)
            endorsed.update(item.endorsed)
        if batch:
            yield tuple(batch)
