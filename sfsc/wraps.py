"""The account's wraps, own and of files shared in, as the server lists them for a rotation."""

from __future__ import annotations

from collections.abc import Iterator

from protocol.messages.rotation import MAX_BATCH, GetWraps, WrapItem, WrapsPage
from sfsc.errors import ProtocolFailure
from sfsc.session import Session


def wrap_items(session: Session, *, everything: bool) -> Iterator[WrapItem]:
    """Versions by owner, file_id and number; those that a rotation has to see to, or `everything`.
    Nothing of it is verified. Raises `ProtocolFailure` for a list without an end."""
    after = ""
    while True:
        page = session.call(GetWraps(after, MAX_BATCH, everything), WrapsPage)
        yield from page.items
        if not page.next:
            return
        if page.next == after:
            raise ProtocolFailure("the server's wraps go round in circles")
        after = page.next
