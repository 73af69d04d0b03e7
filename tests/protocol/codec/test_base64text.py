"""Base64 with one spelling for each value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.base64text import from_text, to_text


@given(st.binary(max_size=100))
def test_what_is_spelled_is_read_back(data: bytes) -> None:
    assert from_text(to_text(data)) == data


@pytest.mark.parametrize(
    "text",
    ["QQ", "QQ=", "QR==", "QQ==\n", " QQ==", "Q Q==", "QQ==QQ==", "Q_==", "=", "QQ===", "é"],
)
def test_any_other_spelling_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_text(text)
