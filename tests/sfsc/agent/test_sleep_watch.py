"""The agent forgets before the machine sleeps: a real bus, on which the test plays logind."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sfsc.agent import client
from sfsc.agent.sleep_watch import SleepWatch
from tests.waiting import until

jeepney: Any = pytest.importorskip("jeepney")
blocking: Any = pytest.importorskip("jeepney.io.blocking")
pytestmark = pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="needs dbus-daemon")

ID, KEY = b"i" * 32, b"k" * 32
CONFIGURATION = """
<busconfig><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context="default">
<allow own="*"/><allow user="*"/><allow send_destination="*"/><allow receive_sender="*"/>
</policy></busconfig>
"""


class Logind:
    """Owner of logind's name on a bus; answers calls of Inhibit with the end of a pipe."""

    def __init__(self, address: str) -> None:
        self.calls = list[tuple[str, ...]]()
        self.locks = list[int]()
        """Reading ends: at their end once the lock is released."""
        self._connection = blocking.open_dbus_connection(address, enable_fds=True)
        rule = jeepney.message_bus.RequestName("org.freedesktop.login1")
        self._connection.send_and_get_reply(rule)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                call = self._connection.receive()
            except (ConnectionError, OSError):
                return
            if call.header.message_type is jeepney.MessageType.method_call:
                reading, writing = os.pipe()
                self._connection.send(jeepney.new_method_return(call, "h", (writing,)))
                os.close(writing)
                self.locks.append(reading)
                self.calls.append(call.body)

    def announce(self, *, begins: bool) -> None:
        place = jeepney.DBusAddress(
            "/org/freedesktop/login1", interface="org.freedesktop.login1.Manager"
        )
        self._connection.send(jeepney.new_signal(place, "PrepareForSleep", "b", (begins,)))

    def is_released(self, number: int) -> bool:
        os.set_blocking(self.locks[number], False)
        try:
            return os.read(self.locks[number], 1) == b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        with suppress(OSError):  # it has ended with the bus
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        self._connection.close()
        for one in self.locks:
            os.close(one)


@pytest.fixture
def bus(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A system bus of the test's own: its address and its process."""
    configuration = runtime / "bus.conf"
    configuration.write_text(CONFIGURATION.format(runtime / "bus"))
    command = ["dbus-daemon", f"--config-file={configuration}", "--nofork", "--print-address"]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    address = daemon.stdout.readline().strip()
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    yield address, daemon
    daemon.terminate()
    daemon.communicate(timeout=20)


def test_the_key_is_forgotten_before_the_machine_sleeps(
    bus: tuple[str, subprocess.Popen[str]], home: Path
) -> None:
    logind = Logind(bus[0])
    client.start(home)
    client.keep_key(home, ID, KEY, 3600)
    until(lambda: logind.locks)
    assert logind.calls == [("sleep", "sfsc", "the agent forgets its key", "delay")]
    assert not logind.is_released(0)
    assert client.find_key(home, ID) == KEY
    logind.announce(begins=True)
    until(lambda: logind.is_released(0))
    assert client.find_key(home, ID) is None
    until(lambda: len(logind.locks) == 2)  # it has executed itself again
    logind.announce(begins=False)
    until(lambda: len(logind.locks) == 3)
    until(lambda: logind.is_released(1))
    client.keep_key(home, ID, KEY, 3600)
    assert client.find_key(home, ID) == KEY
    assert not logind.is_released(2)
    logind.close()


def test_an_agent_outlives_the_bus(bus: tuple[str, subprocess.Popen[str]], home: Path) -> None:
    address, daemon = bus
    logind = Logind(address)
    client.start(home)
    client.keep_key(home, ID, KEY, 3600)
    until(lambda: logind.locks)
    daemon.kill()
    until(lambda: logind.is_released(0))
    assert client.find_key(home, ID) == KEY
    logind.close()


@pytest.fixture
def pair() -> Iterator[tuple[SleepWatch, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with SleepWatch(ours) as watch, theirs:
        yield watch, theirs


def signal(member: bytes, value: int, order: str = "<") -> bytes:
    name = struct.pack(f"{order}I", len(member)) + member + b"\0"
    field = b"\3\1s\0" + name
    start = (b"l" if order == "<" else b"B") + b"\4\1\1"
    head = start + struct.pack(f"{order}III", 4, 1, len(field)) + field
    return head + bytes(-len(head) % 8) + struct.pack(f"{order}I", value)


@pytest.mark.parametrize("order", ["<", ">"])
def test_signals(pair: tuple[SleepWatch, socket.socket], order: str) -> None:
    watch, bus = pair
    assert watch.receive() is None
    whole = signal(b"NameAcquired", 1, order) + signal(b"PrepareForSleep", 1, order)
    for at in range(len(whole)):
        bus.send(whole[at : at + 1])
        assert watch.receive() is (True if at == len(whole) - 1 else None)
    bus.send(signal(b"PrepareForSleep", 0, order))
    assert watch.receive() is None


@pytest.mark.parametrize(
    "sent", [b"l\4\1\1" + b"\xff" * 12, b"", b"l\4\1\1" + struct.pack("<III", 65_536, 1, 0)]
)
def test_a_bus_that_sends_something_else_is_left(
    pair: tuple[SleepWatch, socket.socket], sent: bytes
) -> None:
    watch, bus = pair
    bus.send(sent)
    if not sent:
        bus.shutdown(socket.SHUT_RDWR)
    assert watch.receive() is False


@pytest.mark.parametrize(
    "address", ["unix:path=/nonexistent", "tcp:host=127.0.0.1,port=1", "unix:abstract=x", ""]
)
def test_without_a_bus_there_is_no_watch(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    assert SleepWatch.connect() is None


@pytest.mark.parametrize(
    "answer", [b"REJECTED EXTERNAL\r\n", b"x" * 300, b"OK 1\r\nERROR\r\n", b""]
)
def test_a_bus_that_does_not_let_us_in(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    path = runtime / "bus"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(ConnectionResetError):  # it leaves with bytes unread
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1000):  # until the other side has left
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        watch = SleepWatch.connect()
        if watch is not None:
            watch.close()
        thread.join()
        assert watch is None
