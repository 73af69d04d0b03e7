"""States sent to the service manager over a real socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sfsd.service.notify import Notifier

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Yield the value of NOTIFY_SOCKET and the socket behind it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@sfsd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0"))
        receiver.setblocking(False)
        yield address, receiver


def received(receiver: socket.socket) -> list[str]:
    states = []
    while True:
        try:
            states.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return states


def test_states(manager: tuple[str, socket.socket]) -> None:
    address, receiver = manager
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000", "OTHER": "1"}
    notifier = Notifier(environment)
    assert environment == {"OTHER": "1"}
    assert notifier.watchdog_seconds == 3.0
    notifier.ready()
    notifier.status("two\nlines")
    notifier.status("two\nlines")  # not sent again
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.alive()
    notifier.stopping()
    states = received(receiver)
    reloading, _, moment = states.pop(2).partition("\nMONOTONIC_USEC=")
    assert reloading == "RELOADING=1"
    assert before <= int(moment) <= time.monotonic_ns() // 1000
    assert states == ["READY=1", "STATUS=two lines", "WATCHDOG=1", "STOPPING=1"]
    notifier.close()
    notifier.ready()
    assert received(receiver) == []


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "x"},
        {"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"},
    ],
)
def test_no_watchdog_for_this_process(
    manager: tuple[str, socket.socket], variables: dict[str, str]
) -> None:
    with closing(Notifier({"NOTIFY_SOCKET": manager[0], **variables})) as notifier:
        assert notifier.watchdog_seconds is None
        notifier.alive()
    assert received(manager[1]) == []


def test_without_a_manager_nothing_is_sent(tmp_path: Path) -> None:
    for address in ("", "relative/path", "vsock:1:2"):
        Notifier({"NOTIFY_SOCKET": address}).ready()


def test_a_manager_that_is_gone_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})) as notifier:
        notifier.ready()
        notifier.stopping()
    assert len(caplog.records) == 1
