"""A user's own identity chain and key rotation: statements, their bundles, and new wraps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, TypeVar

from protocol.codec import merkle
from protocol.codec.fields import (
    AtMost,
    Between,
    Bytes32,
    Count,
    FileId,
    Possession,
    Signature,
    Struct,
    UserName,
)
from protocol.codec.values import changed
from protocol.records.record_signatures import SIGNATURE_SIZE
from protocol.records.records import (
    BATCH_ID_SIZE,
    WRAP_ITEM_SIZE,
    Version,
    version_leaf,
    wrap_leaf,
)
from protocol.wire.messages.base import (
    MAX_BUNDLE,
    DamagedVersion,
    Done,
    Receipt,
    RecordBytes,
    Reply,
    Request,
    SignedRecord,
    Wrap,
    message,
)

MAX_BATCH = 256
"""Most wraps in a page and in a `Rewrap`."""
_SHORT: Final = BATCH_ID_SIZE + WRAP_ITEM_SIZE
LOGGED_HASH_SIZE: Final = 16
"""Bytes of a hash by which the log names a stored wrap or an endorsed record."""

BundleBytes = Annotated[bytes, AtMost(MAX_BUNDLE)]


@message(128, replies=(Done,))
class NewStatement(Request):
    """Append the user's next statement, which keeps the generation, with its bundle.

    The first of `signatures` is by the statement's own key. `possession` is by the recovery key
    that the statement introduces, if any. Sending the same bytes again returns the same receipt. If
    the chain has grown, the answer is `conflict`, and `Lookup` shows how.
    """

    statement: RecordBytes
    signatures: Annotated[tuple[Signature, ...], AtMost(2)]
    bundle: BundleBytes
    possession: Possession = b""


@message(131)
class SealedBundle(Reply):
    """The bundle whose hash is in a statement."""

    bundle: BundleBytes


@message(130, replies=(SealedBundle,))
class GetBundle(Request):
    """Get the user's own bundle of statement `n` (0: the newest).

    Earlier bundles are kept for a time and given only to a session of the recovery key. The answer
    is `not-found` if the bundle is not kept.
    """

    n: Count


@message(132, replies=(Done,))
class RotateBegin(Request):
    """Append the user's next statement, which begins a generation, with its bundle.

    Like `NewStatement`, for the reasons that renew the keys. It lifts every restriction that an
    overdue or forced rotation has set.
    """

    statement: RecordBytes
    signatures: Annotated[tuple[Signature, ...], AtMost(2)]
    bundle: BundleBytes
    possession: Possession = b""


class WrapItem(Struct):
    """One version, for a rotation: its records and the user's own wrap (None: purged).

    `content` created the version. `head` is the file's last record if it is another one and in the
    same sidecar, else None.
    """

    owner: UserName
    file_id: FileId
    version: Version
    content: SignedRecord
    head: SignedRecord | None
    wrap: Wrap | None


@message(135)
class WrapsPage(Reply):
    """`next` is the next page's `after`, "" at the end. A short page need not be the last one.

    `damaged` are versions of this page whose sidecar is damaged: nothing else is known of them.
    Only the first wrap of a batch in a page holds the encrypted KEK (`with_short_wraps`).
    """

    items: Annotated[tuple[WrapItem, ...], AtMost(MAX_BATCH)]
    next: Annotated[str, AtMost(128)]
    damaged: Annotated[tuple[DamagedVersion, ...], AtMost(MAX_BATCH)] = ()


@message(134, replies=(WrapsPage,))
class GetWraps(Request):
    """List versions, own and shared, with a wrap or record of the user from an older generation.

    With `all_of_them`, list every own version, and every other one that has a wrap for the user.
    Damaged versions are always listed. The order is owner, file_id, version. `after` is the `next`
    of the page before, "" at first.
    """

    after: Annotated[str, AtMost(128)]
    limit: Annotated[int, Between(1, MAX_BATCH)]
    all_of_them: bool


class RewrapItem(Struct):
    """A version's wrap for the user's current key, and the records beside it that are endorsed.

    `wrap` is None if the version has none, or if its wrap cannot be opened. Such a wrap of an own
    version stays as it is; the user loses such a wrap of a shared one. `endorsed` are hashes of
    records.
    """

    owner: UserName
    file_id: FileId
    version: Version
    wrap: Wrap | None
    endorsed: Annotated[tuple[Bytes32, ...], AtMost(2)]

    @property
    def logged_hashes(self) -> tuple[bytes, ...]:
        """Return what the log entry names of this item: the wrap, and each endorsed record. An
        item that has none of these names its version."""
        made = tuple([logged_record(digest) for digest in self.endorsed])
        place = self.owner, self.file_id, self.version
        if self.wrap is not None:
            return (logged_wrap(*place, self.wrap), *made)
        return made or (merkle.leaf_hash(version_leaf(*place))[:LOGGED_HASH_SIZE],)


_Item = TypeVar("_Item", WrapItem, RewrapItem)


def with_short_wraps(items: Iterable[_Item]) -> tuple[_Item, ...]:
    """Return items as they travel: of several wraps of one batch, only the first holds the
    encrypted KEK; the others are `batch_id ‖ item`, 76 bytes."""
    found: list[_Item] = []
    keks: dict[bytes, bytes] = {}
    for item in items:
        if (wrap := item.wrap) is not None:
            batch, kek = _batch_of(wrap)
            if batch not in keks:
                keks[batch] = kek
            elif kek and keks[batch] == kek:
                raw = wrap.wrapped
                short = changed(wrap, wrapped=raw[:BATCH_ID_SIZE] + raw[-WRAP_ITEM_SIZE:])
                item = changed(item, wrap=short)
        found.append(item)
    return tuple(found)


def with_full_wraps(items: Iterable[_Item]) -> tuple[_Item, ...]:
    """Return items that were received, with the encrypted KEK in every wrap. A wrap whose batch no
    earlier one has stays short, and does not open."""
    found: list[_Item] = []
    keks: dict[bytes, bytes] = {}
    for item in items:
        if (wrap := item.wrap) is not None:
            batch, kek = _batch_of(wrap)
            if kek:
                keks.setdefault(batch, kek)
            elif batch in keks and len(wrap.wrapped) == _SHORT:
                raw = wrap.wrapped
                full = changed(
                    wrap, wrapped=raw[:BATCH_ID_SIZE] + keks[batch] + raw[BATCH_ID_SIZE:]
                )
                item = changed(item, wrap=full)
        found.append(item)
    return tuple(found)


def _batch_of(wrap: Wrap) -> tuple[bytes, bytes]:
    """Return what names the batch of a wrap, and its encrypted KEK, b"" in a short wrap."""
    return wrap.key_id + wrap.wrapped[:BATCH_ID_SIZE], wrap.wrapped[BATCH_ID_SIZE:-WRAP_ITEM_SIZE]


def logged_wrap(owner: str, file_id: str, version: int, wrap: Wrap) -> bytes:
    """Return the 16 bytes by which the log names a stored wrap: the start of its leaf hash in
    `RotationFinish.root`."""
    return merkle.leaf_hash(wrap_leaf(owner, file_id, version, wrap.wrapped))[:LOGGED_HASH_SIZE]


def logged_record(digest: bytes) -> bytes:
    """Return the 16 bytes by which the log names an endorsed record: the start of its hash."""
    return digest[:LOGGED_HASH_SIZE]


@message(137)
class Rewrapped(Reply):
    """Result of a `Rewrap`; `receipt` is None if no item was stored.

    `left` are the indexes of items that were not stored, because their version changed meanwhile or
    needs no change: they must be fetched again.
    """

    receipt: Receipt | None
    left: Annotated[tuple[Count, ...], AtMost(MAX_BATCH)]


@message(136, replies=(Rewrapped,))
class Rewrap(Request):
    """Store wraps and endorsements by the user's current keys, for files of one owner.

    The owner is the user, or another user who shares the files; their records are not endorsed.
    `endorsement` is the Ed25519 signature over the tree of all `endorsed` hashes in order, each of
    them once and at most 256 in all; it is empty if there are none. Only the first wrap of a batch
    holds the encrypted KEK, as in a `WrapsPage`.
    """

    items: Annotated[tuple[RewrapItem, ...], AtMost(MAX_BATCH)]
    endorsement: Annotated[bytes, AtMost(SIGNATURE_SIZE)]


@message(138, replies=(Done,))
class RotateFinish(Request):
    """Append the statement that ends older generations, with its bundle and a `RotationFinish`.

    Refused with `conflict` if the versions that are damaged, or that have a wrap or record of an
    older generation, are not those that the finish leaves out, or if other wraps have changed.
    """

    statement: RecordBytes
    signatures: Annotated[tuple[Signature, ...], AtMost(2)]
    bundle: BundleBytes
    finish: RecordBytes
    finish_signature: Signature
