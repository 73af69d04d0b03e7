"""Endorse records that the server has built again from its log, where no endorsements are.

A record of a former key generation is valid only with the endorsement of a later one. Without it,
no device would accept the version, and no rotation could finish.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Final

from protocol.codec.base64text import to_text
from protocol.codec.errors import LocalProtocolError
from protocol.log.auditlog import REWRAP
from protocol.records.record_signatures import RecordSigner
from protocol.records.records import record_hash
from protocol.wire.messages import FileView, Reply
from protocol.wire.messages.base import SignedRecord
from protocol.wire.messages.files import Stat, Stated
from protocol.wire.messages.rotation import Rewrap, RewrapItem, Rewrapped, with_short_wraps
from sfsc.errors import BadReceipt
from sfsc.log.rewraps import LoggedRewraps
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.trust.server_log import REPORT, SentChange

_BATCH: Final = 64


def endorse_rebuilt(
    session: Session, file_id: str, versions: Iterable[int], known: Container[bytes]
) -> None:
    """Endorse the records of versions without content that no valid key has signed or endorsed.
    Only those are endorsed whose hash is `known`: the caller has verified that the owner signed
    them."""
    account = session.account
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
    logged = LoggedRewraps(session, [signer.generation])
    for start in range(0, len(items), _BATCH):
        some = items[start : start + _BATCH]
        verify_rewrapped(session, logged, some, session.ask(rewrap_request(signer, some)))
        session.link_receipts()


def rewrap_request(signer: RecordSigner, items: Sequence[RewrapItem]) -> Rewrap:
    """Return the request for items of one owner, with one endorsement of all their records.

    A record that two items name is endorsed once. Raises `LocalProtocolError` for items of several
    owners: a signature and a batch of wraps are valid for the files of one owner.
    """
    if len({item.owner for item in items}) > 1:
        raise LocalProtocolError("wraps of several owners' files cannot be stored together")
    hashes = list(dict.fromkeys(digest for item in items for digest in item.endorsed))
    return Rewrap(with_short_wraps(items), signer.endorse(hashes) if hashes else b"")


def verify_rewrapped(
    session: Session, logged: LoggedRewraps, items: Sequence[RewrapItem], reply: Reply
) -> frozenset[int]:
    """Return the indexes of the items of a `rewrap_request` that the log does not show as stored.
    Call `link_receipts` before the others count as done. `logged` is of the generation that the
    request is for.

    After a lost connection the request was sent twice, and the server leaves what the first one has
    stored. Raises `BadReceipt` unless the reply has a log entry of exactly the items that it does
    not leave; and as `Session.refresh_log`.
    """
    answer, left = expect_reply(reply, Rewrapped), dict[int, RewrapItem]()
    stored, hashes = 0, list[bytes]()
    for index, item in enumerate(items):
        if index in answer.left:
            left[index] = item
        else:
            stored += 1
            hashes += item.logged_hashes
    if answer.receipt is not None:
        owner, actor = items[0].owner, session.author.actor
        sent = SentChange(REWRAP, actor, owner, None, None, b"", {})
        detail = session.accept_receipt(answer.receipt, sent).detail
        is_ours = detail.get("generation") in logged.generations
        expected = stored, to_text(b"".join(hashes))
        if not is_ours or (detail.get("count"), detail.get("items")) != expected:
            raise BadReceipt("the log entry of stored wraps is that of another request", REPORT)
    elif stored:
        raise BadReceipt("the server shows no log entry of wraps that it has stored", REPORT)
    missing = logged.missing(made for item in left.values() for made in item.logged_hashes)
    return frozenset(
        index for index, item in left.items() if not missing.isdisjoint(item.logged_hashes)
    )


def is_endorsed(view: FileView, valid: Container[int]) -> bool:
    """Return whether keys of the `valid` generations have signed or endorsed both records."""
    shown = (view.content, view.head)
    return all(signed is None or _is_signed_by(signed, valid) for signed in shown)


def _is_signed_by(signed: SignedRecord, valid: Container[int]) -> bool:
    return any(one.generation in valid for one in signed.signatures)
