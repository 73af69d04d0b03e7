"""Endorse records that the server has built again from its log, where no endorsements are.

A record of a former key generation is valid only with the endorsement of a later one. Without it,
no device would accept the version, and no rotation could finish.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Final

from protocol.records.record_signatures import RecordSigner
from protocol.records.records import record_hash
from protocol.wire.messages.base import SignedRecord
from protocol.wire.messages.files import Stat, Stated
from protocol.wire.messages.rotation import Rewrap, RewrapItem, Rewrapped
from sfsc.session.session import Session
from sfsc.trust.server_log import SentChange

_BATCH: Final = 64


def endorse_rebuilt(
    session: Session, file_id: str, versions: Iterable[int], known: Container[bytes]
) -> None:
    """Endorse the records of versions without content that no valid key has signed or endorsed.
    Only those are endorsed whose hash is `known`: the caller has verified that the owner signed
    them."""
    account, author = session.account, session.author
    signer, items = session.record_signer(), list[RewrapItem]()
    for version in versions:
        view = session.call(Stat(account.user, file_id, version), Stated).view
        made: list[bytes] = []
        for signed in (view.content, view.head):
            if signed is None or _is_signed_by(signed, account.signers):
                continue
            if (digest := record_hash(signed.record)) in known:
                made.append(digest)
        if made and not view.wraps:
            items.append(RewrapItem(account.user, file_id, version, None, tuple(made)))
    for start in range(0, len(items), _BATCH):
        batch = tuple(items[start : start + _BATCH])
        receipt = session.call(rewrap_request(signer, batch), Rewrapped).receipt
        if receipt is not None:
            sent = SentChange("rewrap", author.actor, account.user, None, None, b"", {})
            session.accept_receipt(receipt, sent)
            session.link_receipts()


def rewrap_request(signer: RecordSigner, items: Sequence[RewrapItem]) -> Rewrap:
    """Return the request for items of one owner, with one endorsement of all their records.

    A record that two items name is endorsed once.
    """
    hashes = list(dict.fromkeys(digest for item in items for digest in item.endorsed))
    return Rewrap(tuple(items), signer.endorse(hashes) if hashes else b"")


def _is_signed_by(signed: SignedRecord, valid: Container[int]) -> bool:
    return any(one.generation in valid for one in signed.signatures)
