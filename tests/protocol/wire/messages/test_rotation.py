"""Items of a rotation, as they travel and as the log names them."""

from __future__ import annotations

import pytest

from protocol.codec import encoding
from protocol.codec.values import changed
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.rotation import RewrapItem, with_full_wraps, with_short_wraps

ITEM = b"i" * 60
KEK, OTHER_KEK = b"k" * 1168, b"o" * 1168


def item(number: int, batch: bytes = b"b", kek: bytes = KEK, key_id: bytes = b"y") -> RewrapItem:
    wrap = Wrap("ada", key_id * 32, "xwing", batch * 16 + kek + bytes([number]) * 60)
    return RewrapItem("ada", f"{number:032x}", 1, wrap, ())


@pytest.mark.parametrize(
    ("items", "short"),
    [
        ([item(1), item(2), item(3)], [False, True, True]),
        ([item(1), item(2, b"c"), item(3), item(4, b"c")], [False, False, True, True]),
        ([item(1), item(2, key_id=b"z"), item(3)], [False, False, True]),
        # Somebody has stored wraps of one batch with two KEKs.
        ([item(1), item(2, kek=OTHER_KEK), item(3)], [False, False, True]),
        ([item(1, kek=b""), item(2), item(3, kek=b"")], [False, False, False]),
        ([changed(item(1), wrap=None), item(2), item(3)], [False, False, True]),
        ([], []),
    ],
)
def test_an_encrypted_kek_travels_once(items: list[RewrapItem], short: list[bool]) -> None:
    sent = with_short_wraps(items)
    assert [one.wrap is not None and one != was for one, was in zip(sent, items, strict=True)] == (
        short
    )
    assert all(
        one.wrap and len(one.wrap.wrapped) == 76
        for one, cut in zip(sent, short, strict=True)
        if cut
    )
    assert len(encoding.pack(items)) - len(encoding.pack(sent)) >= 1168 * sum(short)
    if b"" not in [one.wrap.wrapped[16:-60] for one in items if one.wrap]:
        assert with_full_wraps(sent) == tuple(items)


def test_a_wrap_of_an_unknown_batch_stays_short() -> None:
    """It does not open, and the server refuses its size."""
    first, second = with_short_wraps([item(1), item(2)])
    assert with_full_wraps([second, first]) == (second, first)
    other = item(3, key_id=b"z")
    assert with_full_wraps([other, second]) == (other, second)


def test_the_log_names_the_wrap_and_each_endorsed_record() -> None:
    wrapped = changed(item(1), endorsed=(b"r" * 32, b"s" * 32))
    assert wrapped.logged_hashes[1:] == (b"r" * 16, b"s" * 16)
    names = {
        wrapped.logged_hashes[0],
        item(1, kek=OTHER_KEK).logged_hashes[0],
        changed(item(1), version=2).logged_hashes[0],
        changed(item(1), owner="bob").logged_hashes[0],
        *changed(item(1), wrap=None).logged_hashes,
    }
    assert len(names) == 5
    assert all(len(name) == 16 for name in names)
    assert changed(wrapped, wrap=None).logged_hashes == (b"r" * 16, b"s" * 16)
