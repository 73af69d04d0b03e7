"""Which passphrases are called weak."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfsc.keys.passphrase_strength import estimate_guesses, is_weak


@pytest.mark.parametrize(
    ("passphrase", "weak"),
    [
        ("", True),
        ("password", True),
        ("P@ssw0rd123", True),
        ("summer2024!", True),
        ("aaaaaaaaaaaaaaaa", True),
        ("abcdefghijklmnop", True),
        ("qwertyuiop987654", True),
        ("dragon1999dragon", True),
        ("kX9#mQ2$vL", False),
        ("late moss orbit five", False),
        ("tumor revenge dakota ohio", False),
    ],
)
def test_known_parts_make_a_passphrase_weak(passphrase: str, *, weak: bool) -> None:
    assert is_weak(passphrase) is weak


@given(st.text(max_size=40), st.text(max_size=5))
def test_more_characters_are_never_worth_less_than_a_guess(first: str, more: str) -> None:
    assert 1 <= estimate_guesses(first) <= 10.0 ** len((first + more).lower())
