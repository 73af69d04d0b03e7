"""Files that were replaced are let go of, and not more of them held than may be."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from sfsd import releasing
from sfsd.files import Files
from sfsd.releasing import Releasing
from tests.waiting import until

if sys.platform == "linux":
    import resource

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is held elsewhere")


class Waiting(Files):
    """Closes nothing on another thread until it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.closed: list[tuple[int, str]] = []

    def close(self, handle: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert self.may.wait(30)
        super().close(handle)
        self.closed.append((handle, threading.current_thread().name))


def test_what_is_not_there_is_not_held(tmp_path: Path) -> None:
    assert Releasing(Files()).hold(tmp_path / "a") is None


def test_handles_are_closed_behind_and_past_the_most_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releasing, "MOST", 2)
    monkeypatch.setattr(releasing, "_LINGERS", 0.01)
    (tmp_path / "a").write_bytes(b"replaced")
    files = Waiting()
    held = Releasing(files)
    for _ in range(6):
        handle = held.hold(tmp_path / "a")
        assert handle is not None
        held.release(handle)
    here = [name for _, name in files.closed]
    # Two wait, and one may be about to be closed.
    assert here in (["MainThread"] * 3, ["MainThread"] * 4)
    files.may.set()
    until(lambda: len(files.closed) >= 6 and not held._running)
    assert [name for _, name in files.closed[len(here) :]] == ["releasing"] * (6 - len(here))


def test_a_quarter_of_the_handles_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, most in ((1024, 256), (8192, 2048), (1 << 20, 4096), (resource.RLIM_INFINITY, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _which, soft=soft: (soft, soft))
        assert Releasing(Files())._most == most


def test_few_are_let_go_of_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releasing, "_LINGERS", 0.01)
    (tmp_path / "a").write_bytes(b"replaced")
    files = Waiting()
    files.may.set()
    held = Releasing(files)
    handle = held.hold(tmp_path / "a")
    assert handle is not None
    held.release(handle)
    until(lambda: files.closed and not held._running)
    assert files.closed == [(handle, "releasing")]


def test_many_wait_for_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releasing, "_LINGERS", 30)
    monkeypatch.setattr(releasing, "TOGETHER", 3)
    (tmp_path / "a").write_bytes(b"replaced")
    files = Waiting()
    files.may.set()
    held = Releasing(files)
    for count in (1, 2, 3):
        assert files.closed == []
        handle = held.hold(tmp_path / "a")
        assert handle is not None
        held.release(handle)
        assert count == 3 or len(held._handles) == count
    until(lambda: len(files.closed) >= 3)
