"""A search that finds nothing proves something only if it would have found it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contrib.search import SHORTEST, forms, search

NEEDLE = b"a needle that is sought"


@pytest.mark.parametrize("before", range(18))
@pytest.mark.parametrize("after", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("length", [SHORTEST, SHORTEST + 1, len(NEEDLE)])
def test_found_wherever_it_stands(tmp_path: Path, before: int, after: int, length: int) -> None:
    needle, path = NEEDLE[:length], tmp_path / "file"
    path.write_bytes(b"x" * before + needle + b"y" * after)
    assert list(search([needle], [path])) == [(needle, path)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), start=st.integers(0, 190), other=st.binary(min_size=15))
def test_agrees_with_python(tmp_path: Path, data: bytes, start: int, other: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    needles = {n for n in (data[start : start + 20], other) if len(n) >= SHORTEST}
    assert {needle for needle, _ in search(needles, [path])} == {n for n in needles if n in data}


def test_one_changed_byte_is_not_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for index in range(len(NEEDLE)):
        path.write_bytes(NEEDLE[:index] + b"\x00" + NEEDLE[index + 1 :])
        assert not list(search([NEEDLE], [path]))


def test_a_short_needle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="14 bytes"):
        list(search([bytes(14)], []))


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("after", range(4))
def test_a_form_is_found_in_base64_and_hex(tmp_path: Path, before: int, after: int) -> None:
    text = bytes(range(before)) + NEEDLE + b"\xff" * after
    for coded in (base64.b64encode(text), text.hex().encode(), text):
        path = tmp_path / "file"
        path.write_bytes(b"[" + coded + b"]")
        assert list(search(forms(NEEDLE), [path]))
