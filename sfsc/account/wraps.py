"""The account's wraps, own and of files shared in, as the server lists them for a rotation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.wire.messages.rotation import MAX_BATCH, GetWraps, WrapItem, WrapsPage
from sfsc.session.pipeline import pages
from sfsc.session.session import Session

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
