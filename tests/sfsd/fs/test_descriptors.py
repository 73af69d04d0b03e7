"""How many descriptors there may be, and who may have them."""

from __future__ import annotations

import sys

import pytest

from sfsd.config import ConnectionLimits
from sfsd.fs.descriptors import DescriptorBudget, descriptor_limit
from sfsd.net.listener import _within_handles
from sfsd.storage.releasing import most_waiting

if sys.platform != "win32":
    import resource


@pytest.mark.skipif(sys.platform == "win32", reason="it states no limit")
@pytest.mark.parametrize(("stated", "most"), [(256, 256), (524_288, 524_288), (None, 1 << 20)])
def test_what_the_system_allows(
    monkeypatch: pytest.MonkeyPatch, stated: int | None, most: int
) -> None:
    soft = resource.RLIM_INFINITY if stated is None else stated
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, soft))
    assert descriptor_limit() == most
    share = DescriptorBudget()
    assert share.acquire(most // 4)
    assert not share.acquire(1)


@pytest.mark.skipif(sys.platform != "linux", reason="nothing waits to be closed elsewhere")
@pytest.mark.parametrize("soft", [128, 1024, 12_000, 16_384, 24_576, 32_768, 65_536, 1 << 20])
def test_a_quarter_is_left_for_the_log_and_the_store(
    monkeypatch: pytest.MonkeyPatch, soft: int
) -> None:
    """However many connections were asked for, and whatever users hold."""
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, soft))
    connections = _within_handles(ConnectionLimits(connections=1_000_000)).connections
    share = DescriptorBudget()
    assert share.acquire(soft // 4)
    assert not share.acquire(1)
    assert connections + most_waiting() + soft // 4 <= soft - soft // 4


def test_a_share_is_taken_whole_or_not_at_all() -> None:
    share = DescriptorBudget(5)
    assert share.acquire(2)
    assert not share.acquire(4)
    assert share.acquire(3)
    assert not share.acquire(1)
    share.release(2)
    assert not share.acquire(3)
    assert share.acquire(2)
