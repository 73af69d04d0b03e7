"""Canonical base64: one text for each value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.base64text import from_text, to_text


@given(st.binary(max_size=100))
def test_round_trip(data: bytes) -> None:
    assert from_text(to_text(data)) == data


@pytest.mark.parametrize(
    "text",
    ["QQ", "QQ=", "QR==", "QQ==\n", " QQ==", "Q Q==", "QQ==QQ==", "Q_==", "=", "QQ===", "é"],
)
def test_non_canonical_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_text(text)
