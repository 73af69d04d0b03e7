"""Wrap every DEK of the account for its newest key, and endorse its records by that generation.

This is what a rotation does between its beginning and its end.

The server lists the wraps of own files and of files shared in, page by page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from protocol.codec import merkle
from protocol.codec.values import Mutable, Value, field
from protocol.records.records import FileRecord, record_hash, wrap_leaf
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages.base import SignedRecord, Wrap
from protocol.wire.messages.rotation import (
    MAX_BATCH,
    Endorsement,
    GetWraps,
    Rewrap,
    RewrapItem,
    Rewrapped,
    WrapItem,
    WrapsPage,
)
from sfsc.crypto.envelope import ContentKey, Recipient, open_wraps
from sfsc.errors import IntegrityError
from sfsc.files.contacts import Contacts
from sfsc.session.pipeline import Window, pages
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.trust.file_records import FileOwner, KnownRevision, OwnAccount, parse_record
from sfsc.trust.server_log import SentChange

_FIRST: Final = 32
"""Wraps in the first page, which nobody has other work to wait beside."""


def wrap_items(session: Session) -> Iterator[WrapItem]:
    """All versions, by owner, file_id and number; each page is asked for while the one before is
    worked on. Nothing of it is verified. Raises as `pages`."""

    def more(page: WrapsPage) -> GetWraps | None:
        return GetWraps(page.next, MAX_BATCH, all_of_them=True) if page.next else None

    first = GetWraps("", min(_FIRST, MAX_BATCH), all_of_them=True)
    for page in pages(session, first, WrapsPage, more):
        yield from page.items


_BATCHES: Final = 4
"""Batches under way."""
_CHUNK: Final = 32
"""Versions that are renewed together: about 10 ms of work."""
_Batch = tuple[RewrapItem, ...]
Version = tuple[FileOwner | None, WrapItem, KnownRevision | None]
"""Whose it is (None: ours), what the server lists, and what is known of the file, if it is ours."""
Answer = tuple[RewrapItem | None, bytes | None]


class Sweep(Mutable):
    """The result of one pass over all versions.

    `done` counts the wraps that were renewed, `left` the versions that were changed meanwhile and
    need another pass. `leaves` are the leaf hashes of all wraps for our present key, in the order
    of `RotationFinish.root`.
    """

    done: int = 0
    left: int = 0
    leaves: list[bytes] = field(default_factory=list)


class _Renewed(Mutable):
    """A version on its way: what is `signed` is to be judged, what of it is `older` endorsed, the
    `wrap`, where there is one, made anew. `owner` is None where it is ours."""

    owner: FileOwner | None
    item: WrapItem
    known: KnownRevision | None
    signed: list[SignedRecord]
    older: list[SignedRecord]
    wrap: Wrap | None
    records: list[FileRecord] = field(default_factory=list)
    content: FileRecord | None = None
    key: ContentKey | None = None
    endorsements: tuple[Endorsement, ...] = ()


class Renewal(Value):
    """What is made of versions, without a server, by the keys that the account has now.

    Called with some, it gives for each what is to be
    sent, None for nothing, and the leaf hash of our wrap as it is then, None where there is none.

    Each step is taken for all before the next: a step that finds its code and tables still at hand
    takes an eighth less of a processor's time than one behind other steps.
    """

    account: OwnAccount
    generation: int
    signing: SigningKey

    def __call__(self, versions: Sequence[Version]) -> list[Answer]:
        """Raises `BadRecord`, `Tampered` for a version of ours that is not what was signed."""
        looked_at = [self._look(*version) for version in versions]
        renewed = [one for one in looked_at if one is not None]
        for step in (self._parse, self._judge, self._open, self._wrap, self._endorse):
            for one in renewed:
                try:
                    step(one)
                except IntegrityError:
                    if one.owner is None:
                        raise
                    # One that does not open is given up, as it never could be read: else who
                    # shares rubbish with us would keep us from ever finishing.
                    one.signed, one.records = [], []
                    one.content = one.key = one.wrap = None
        pairs = zip(versions, looked_at, strict=True)
        return [self._answer(item, one) for (_, item, _), one in pairs]

    def _look(
        self, owner: FileOwner | None, item: WrapItem, known: KnownRevision | None
    ) -> _Renewed | None:
        """None where there is nothing to be done."""
        wrap = item.wrap
        if owner is not None:
            # The records of what another shares are for him to endorse.
            renews = wrap is not None and not self._is_new(wrap)
            return _Renewed(owner, item, known, [item.content], [], wrap) if renews else None
        if wrap is not None and self.account.is_lost((wrap,)):
            wrap = None  # a thief has it, and nobody else
        stand = standing_records(self.account, item)
        older = [one for one in stand if not _is_signed_by(one, self.generation)]
        if not older and (wrap is None or self._is_new(wrap)):
            return None
        if wrap is not None and item.content not in stand:
            stand.append(item.content)
        return _Renewed(None, item, known, stand, older, wrap)

    def _parse(self, one: _Renewed) -> None:
        one.records = [parse_record(signed) for signed in one.signed]

    def _judge(self, one: _Renewed) -> None:
        whose, item = one.owner or self.account, one.item
        for signed, record in zip(one.signed, one.records, strict=True):
            judged = whose.verify_record(signed, item.file_id, record=record, known=one.known)
            if signed is item.content:
                one.content = judged

    def _open(self, one: _Renewed) -> None:
        if one.content is not None and one.wrap is not None:
            first = (one.owner or self.account).first
            one.key = open_wraps(one.content, first, (one.wrap,), self.account.private_keys)

    def _wrap(self, one: _Renewed) -> None:
        if one.key is not None and one.wrap is not None and not self._is_new(one.wrap):
            whose, own = one.owner or self.account, self.account.own_key
            recipient = Recipient(self.account.user, own)
            (one.wrap,) = one.key.wrap_for(whose.server_id, whose.first, [recipient])

    def _endorse(self, one: _Renewed) -> None:
        one.endorsements = tuple([self._endorsed(signed) for signed in one.older])

    def _endorsed(self, signed: SignedRecord) -> Endorsement:
        digest = record_hash(signed.record)
        return Endorsement(digest, self.signing.sign(Label.ENDORSE, digest))

    def _answer(self, item: WrapItem, one: _Renewed | None) -> Answer:
        wrap, renewed = item.wrap, None
        if one is not None:
            wrap, endorsements = one.wrap, one.endorsements
            renewed = RewrapItem(item.owner, item.file_id, item.version, wrap, endorsements)
        if wrap is None or not self._is_new(wrap):
            return renewed, None
        return renewed, leaf_of(item, wrap)

    def _is_new(self, wrap: Wrap) -> bool:
        return wrap.key_id == self.account.own_key.key_id


class Rewrapping:
    """Over one session, whose keys are the new ones already. `judge`, where there is one, is shown
    each of our records that an older generation signed, and raises for one not to be endorsed."""

    def __init__(
        self,
        session: Session,
        people: Contacts,
        judge: Callable[[SignedRecord], None] | None,
    ) -> None:
        self._session = session
        self._people = people
        self._judge = judge

    def sweep(self) -> Sweep:
        """Raises as `Renewal`, what `judge` does, and `Distrusted`."""
        sweep = Sweep()
        window = Window[_Batch](self._session, _BATCHES)
        try:
            for batch in _batches(self._renewed(sweep)):
                if window.full:
                    self._take(window, sweep)
                # What was signed for a server that has told two stories by now stays here.
                self._session.check_trusted()
                window.send(batch, Rewrap(batch))
            while window:
                self._take(window, sweep)
        finally:
            window.abandon()
        self._session.link_receipts()
        return sweep

    def _renewed(self, sweep: Sweep) -> Iterator[RewrapItem]:
        renewal, versions = self.renewal(), self._versions(sweep)
        while chunk := list(islice(versions, _CHUNK)):
            for renewed, leaf in renewal(chunk):
                if renewed is not None:
                    yield renewed
                if leaf is not None:
                    sweep.leaves.append(leaf)

    def renewal(self) -> Renewal:
        session = self._session
        return Renewal(session.account, session.author.generation, session.signing_key())

    def _versions(self, sweep: Sweep) -> Iterator[Version]:
        session, owner = self._session, None
        account, items = session.account, wrap_items(session)
        while some := list(islice(items, _CHUNK)):
            ours = [item.file_id for item in some if item.owner == account.user]
            known = session.state.known_revisions(ours)
            for item in some:
                if session.account is not account:
                    sweep.left += 1  # another machine has rotated: all is to be looked at again
                    return
                if item.owner == account.user:
                    self._check(item)
                    yield None, item, known[item.file_id]
                else:
                    if owner is None or owner.user != item.owner:
                        owner = self._people.find(item.owner).owner
                    yield owner, item, None

    def _check(self, item: WrapItem) -> None:
        if self._judge is not None:
            for one in standing_records(self._session.account, item):
                if not _is_signed_by(one, self._session.author.generation):
                    self._judge(one)

    def _take(self, window: Window[_Batch], sweep: Sweep) -> None:
        batch, reply = window.take()
        answer = expect_reply(reply, Rewrapped)
        if answer.receipt is not None:
            sent = SentChange(
                "rewrap", self._session.author.actor, batch[0].owner, None, None, b"", {}
            )
            with self._session.keeping_fork_evidence():
                self._session.trust.verify_receipt(answer.receipt, sent)
        left = frozenset(answer.left)
        sweep.done += sum(
            [one.wrap is not None for place, one in enumerate(batch) if place not in left]
        )
        sweep.left += len(left)


def standing_records(account: OwnAccount, item: WrapItem) -> list[SignedRecord]:
    """The item's records, but those that a thief has signed before he was undone."""
    signed = [one for one in (item.content, item.head) if one is not None]
    return [one for one in signed if not account.is_voided_signed(one)]


def leaf_of(item: WrapItem, wrap: Wrap) -> bytes:
    """What stands for it in `RotationFinish.root`, hashed."""
    return merkle.leaf_hash(wrap_leaf(item.owner, item.file_id, item.version, wrap.wrapped))


def _is_signed_by(signed: SignedRecord, generation: int) -> bool:
    return any(one.generation == generation for one in signed.signatures)


def _batches(items: Iterator[RewrapItem]) -> Iterator[_Batch]:
    """Of one owner's files each."""
    batch: list[RewrapItem] = []
    for item in items:
        if batch and (len(batch) == MAX_BATCH or batch[0].owner != item.owner):
            yield tuple(batch)
            batch = []
        batch.append(item)
    if batch:
        yield tuple(batch)
