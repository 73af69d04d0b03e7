"""Files that were replaced are let go of, and not more of them held than may be."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

import pytest

from sfsd.fs.files import Files
from sfsd.storage import releasing
from sfsd.storage.releasing import Releasing, most_waiting, raise_descriptor_limit
from tests.waiting import until

if sys.platform != "linux":
    pytest.skip("nothing is held elsewhere", allow_module_level=True)

import resource


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
        held.release(handle, size=1)
    here = [name for _, name in files.closed]
    # Two wait, and one may be about to be closed.
    assert here in (["MainThread"] * 3, ["MainThread"] * 4)
    files.may.set()
    until(lambda: len(files.closed) >= 6 and not held._running)
    assert [name for _, name in files.closed[len(here) :]] == ["releasing"] * (6 - len(here))


@pytest.mark.parametrize(
    ("soft", "most"),
    [
        (1024, 256),
        (8192, 2048),
        (20_000, 5000),
        (32_768, 8192),
        (1 << 20, 16 * 1024),
        (resource.RLIM_INFINITY, 16 * 1024),
    ],
)
def test_handles_are_left_to_others(monkeypatch: pytest.MonkeyPatch, soft: int, most: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, soft))
    assert most_waiting() == most


def test_a_daemon_may_have_as_many_handles_as_it_is_let(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 524_288)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, both: limits.append(both))
    raise_descriptor_limit()
    raise_descriptor_limit()
    assert limits == [(1024, 524_288), (524_288, 524_288)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((256, 2**63 - 1), (10_240, 2**63 - 1)),
        ((256, 4096), (4096, 4096)),
        ((60_000, 2**63 - 1), None),
    ],
)
def test_on_macos_it_asks_for_what_there_is(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: tuple[int, int] | None
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(resource, "getrlimit", lambda _which: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _which, both: asked.append(both))
    raise_descriptor_limit()
    assert asked == ([] if after is None else [after])


@pytest.mark.parametrize("error", [ValueError("not allowed"), PermissionError(1, "no")])
def test_a_system_that_does_not_let_us_have_more(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 524_288))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_descriptor_limit()


def test_few_are_let_go_of_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releasing, "_LINGERS", 0.01)
    (tmp_path / "a").write_bytes(b"replaced")
    files = Waiting()
    files.may.set()
    held = Releasing(files)
    handle = held.hold(tmp_path / "a")
    assert handle is not None
    held.release(handle, size=1)
    until(lambda: files.closed and not held._running)
    assert files.closed == [(handle, "releasing")]


def released(held: Releasing, path: Path, count: int, size: int = 1) -> None:
    for _ in range(count):
        handle = held.hold(path)
        assert handle is not None
        held.release(handle, size=size)


def test_the_oldest_go_once_nearly_as_many_wait_as_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releasing, "_LINGERS", 30)
    monkeypatch.setattr(releasing, "MOST", 64)
    monkeypatch.setattr(releasing, "TOGETHER", 3)
    (tmp_path / "a").write_bytes(b"replaced")
    files = Waiting()
    files.may.set()
    held = Releasing(files)
    enough = held._enough
    assert enough == 60
    released(held, tmp_path / "a", enough - 1)
    oldest = [handle for handle, _ in held._handles][:3]
    assert files.closed == []
    released(held, tmp_path / "a", 1)
    until(lambda: len(files.closed) == 3)
    assert files.closed == [(handle, "releasing") for handle in oldest]
    assert len(held._handles) == enough - 3


def test_small_ones_wait_while_more_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no clock: each look of the thread is made to find that one has come, or none."""
    looks: list[int] = []
    (tmp_path / "a").write_bytes(b"replaced")
    files = Waiting()
    files.may.set()
    held = Releasing(files)
    held._running = True  # the thread is played here
    more = True

    def look(_full: object, _seconds: float) -> bool:
        looks.append(len(held._handles))
        if more:
            # By the thread that waits, so that the lock is held already, as it is not elsewhere.
            held._handles.append((0, 1))
            held._came = True
        return False

    monkeypatch.setattr(held._changed, "wait_for", look)
    assert len(held._next()) == 10  # at last, however many come
    assert looks == list(range(10))
    held._handles.extend(((0, 1), (0, 1)))
    more = False
    assert held._next() == [0, 0]
    assert held._next() == []
    assert not held._running


def test_large_ones_go_soon_though_more_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"replaced")
    held = Releasing(Waiting())
    held._running = True
    looks = 0

    def look(_full: object, _seconds: float) -> bool:
        nonlocal looks
        looks += 1
        held._came = True
        return False

    released(held, tmp_path / "a", 2)
    released(held, tmp_path / "a", 1, size=releasing.ROOM - 1)
    monkeypatch.setattr(held._changed, "wait_for", look)
    handles = held._next()
    assert (len(handles), looks) == (3, 1)
    assert held._bytes == 0
    for handle in handles:
        os.close(handle)


def test_one_that_cannot_be_closed_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releasing, "_LINGERS", 0.01)

    class Failing(Files):
        def __init__(self) -> None:
            self.closed: list[int] = []

        def close(self, handle: int) -> None:
            super().close(handle)
            self.closed.append(handle)
            if len(self.closed) == 1:
                raise OSError(errno.EIO, "broken")

    files = Failing()
    held = Releasing(files)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"")
        handle = held.hold(tmp_path / name)
        assert handle is not None
        held.release(handle, size=1)
        until(lambda: not held._running)
    assert len(files.closed) == 2
