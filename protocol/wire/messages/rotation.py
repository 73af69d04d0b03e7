"""A user's own identity chain and its rotation: the next statement, the bundle that goes with the
newest, and every wrap made anew under it."""

from __future__ import annotations

from typing import Annotated, ClassVar

from protocol.codec.fields import (
    AtMost,
    Between,
    Bytes32,
    Count,
    FileId,
    Signature,
    Struct,
    UserName,
)
from protocol.records.records import Version
from protocol.wire.messages.base import (
    MAX_BUNDLE,
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
"""Wraps in one page, and in one `Rewrap`."""

BundleBytes = Annotated[bytes, AtMost(MAX_BUNDLE)]


@message(128)
class NewStatement(Request):
    """The asker's next statement (of a reason that keeps the generation), and its bundle.

    `signatures` has the own key's first. The same bytes again get the same receipt; where the chain
    has grown meanwhile the answer is `conflict`, and `Lookup` shows by what.
    """

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Done,)

    statement: RecordBytes
    signatures: Annotated[tuple[Signature, ...], AtMost(2)]
    bundle: BundleBytes


@message(131)
class SealedBundle(Reply):
    """The bundle that a statement names by its hash."""

    bundle: BundleBytes


@message(130)
class GetBundle(Request):
    """The asker's own, of statement `n`; 0: of the newest. An earlier one is kept for a time, and
    given to a session of the recovery key alone; `not-found` where it is not kept (any more)."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (SealedBundle,)

    n: Count


@message(132)
class RotateBegin(Request):
    """The asker's next statement, of a new generation, and its bundle: `NewStatement` for the
    reasons that renew the keys. It lifts every block."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Done,)

    statement: RecordBytes
    signatures: Annotated[tuple[Signature, ...], AtMost(2)]
    bundle: BundleBytes


class WrapItem(Struct):
    """One version as far as a rotation is concerned: the record that made it, the file's last where
    that stands in the same sidecar and is another, and the asker's own wrap (None: purged)."""

    owner: UserName
    file_id: FileId
    version: Version
    content: SignedRecord
    head: SignedRecord | None
    wrap: Wrap | None


@message(135)
class WrapsPage(Reply):
    """`next` is the next page's `after`, "" at the end. A page may be short, with more to come."""

    items: Annotated[tuple[WrapItem, ...], AtMost(MAX_BATCH)]
    next: Annotated[str, AtMost(128)]


@message(134)
class GetWraps(Request):
    """Versions, the asker's own and those shared with him, whose wrap for him, or whose record of
    his, is of an older generation; with `all_of_them` every one that he has a wrap of. By owner,
    file_id and version; `after` is what the server gave, "" at first."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (WrapsPage,)

    after: Annotated[str, AtMost(128)]
    limit: Annotated[int, Between(1, MAX_BATCH)]
    all_of_them: bool


class Endorsement(Struct):
    """The signature of a later generation over a record's hash."""

    record_hash: Bytes32
    signature: Signature


class RewrapItem(Struct):
    """A version's wrap for the asker's current key, and endorsements of the records that stand
    beside it. `wrap` is None where there is none, or for one that another shares and that does not
    open: he then has none any more."""

    owner: UserName
    file_id: FileId
    version: Version
    wrap: Wrap | None
    endorsements: Annotated[tuple[Endorsement, ...], AtMost(2)]


@message(137)
class Rewrapped(Reply):
    """What was new already needs no entry (`receipt` None where that holds for all). `left` are the
    places in the request of items that were changed meanwhile and are to be asked for again."""

    receipt: Receipt | None
    left: Annotated[tuple[Count, ...], AtMost(MAX_BATCH)]


@message(136)
class Rewrap(Request):
    """Wraps and endorsements under the asker's current keys, of files of one owner: his own, or
    another's who shares them with him, whose records he does not endorse."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Rewrapped,)

    items: Annotated[tuple[RewrapItem, ...], AtMost(MAX_BATCH)]


@message(138)
class RotateFinish(Request):
    """The statement that ends older generations, its bundle, and a signed `RotationFinish`.

    Refused with `conflict` while a wrap or record of an older generation is left, or where the
    store has changed since `as_of_seq`.
    """

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Done,)

    statement: RecordBytes
    signatures: Annotated[tuple[Signature, ...], AtMost(2)]
    bundle: BundleBytes
    finish: RecordBytes
    finish_signature: Signature
