"""The agent: what it forgets when, whom it answers, and what its process lets others read."""

from __future__ import annotations

import hashlib
import os
import selectors
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sfsc.agent import client
from sfsc.agent.memory import KeyPage
from sfsc.agent.messages import GET, KEEP, LOCK, STATUS, STOP, AgentAnswer, AgentRequest, frame
from sfsc.agent.messages import receive_answer as receive
from sfsc.agent.place import socket_path
from sfsc.agent.process import Agent, Clocks, KeyHolder
from tests.waiting import until

ID, OTHER, KEY = b"i" * 32, b"o" * 32, hashlib.sha256(b"key").digest()
IS_ROOT = sys.platform == "linux" and os.geteuid() == 0
NOBODY = 65534


class Time:
    """Two clocks that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asleep = 500.0

    @property
    def clocks(self) -> Clocks:
        return Clocks(lambda: self.now, lambda: self.now - self.asleep)

    def suspend(self, seconds: float) -> None:
        self.now += seconds
        self.asleep += seconds


def new_holder(time: Time) -> KeyHolder:
    return KeyHolder(KeyPage(all_locked=False), time.clocks)


def test_a_key_is_found_until_its_time_has_passed_without_use() -> None:
    time = Time()
    holder = new_holder(time)
    assert not holder.holds
    holder.keep(ID, KEY, 60)
    for _ in range(3):
        time.now += 59
        assert not holder.is_due()
        assert holder.find(ID) == KEY
    assert holder.find(OTHER) == b""
    time.now += 59
    assert holder.find(OTHER) == b""  # which is no use of it
    time.now += 1
    assert holder.is_due()
    holder.forget()
    assert not holder.is_due()
    assert holder.find(ID) == b""


@pytest.mark.parametrize(("asleep", "due"), [(0.5, False), (2, True), (3600, True)])
def test_a_key_is_due_after_a_suspension(asleep: float, due: bool) -> None:
    time = Time()
    holder = new_holder(time)
    time.suspend(100)  # before the key was given
    holder.keep(ID, KEY, 86_400)
    time.suspend(asleep)
    assert holder.is_due() == due


def test_a_forgotten_key_is_overwritten() -> None:
    page = KeyPage(all_locked=False)
    page.store(KEY)
    assert page.read() == KEY
    page.wipe()
    assert page.read() == bytes(32)


# --- the loop, in a thread ------------------------------------------------------------------


class Served:
    """An agent in a thread. `again` is what its `run` has returned."""

    def __init__(self, path: Path, time: Time, session: int) -> None:
        self.path, self.again = path, None
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self._agent = Agent(listener, path, session, new_holder(time), time.clocks)
        self._listener = listener
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    again: bool | None

    def _run(self) -> None:
        self.again = self._agent.run()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(str(self.path))
        return connection

    def ask(self, action: str, *fields: object) -> AgentAnswer:
        with self.connect() as connection:
            connection.sendall(frame(AgentRequest(action, *fields)))  # type: ignore[arg-type]
            return receive(connection)

    def end(self) -> None:
        if self._thread.is_alive():
            self.ask(STOP)
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._listener.close()


@contextmanager
def serving(folder: Path, time: Time | None = None, session: int = -1) -> Iterator[Served]:
    served = Served(folder / "socket", time or Time(), session)
    try:
        yield served
    finally:
        served.end()


def test_requests_and_answers(runtime: Path) -> None:
    with serving(runtime) as agent:
        answers = [
            agent.ask(STATUS),
            agent.ask(GET, ID),
            agent.ask(KEEP, ID, KEY, 60),
            agent.ask(GET, ID),
            agent.ask(GET, OTHER),
            agent.ask(STATUS),
        ]
        assert [one.key for one in answers] == [b"", b"", b"", KEY, b"", b""]
        assert [one.lock_id for one in answers] == [b"", b"", ID, ID, ID, ID]
        assert [one.left for one in answers] == [0, 0, 60, 60, 60, 60]
    assert agent.again is False
    assert not agent.path.exists()


@pytest.mark.parametrize("pause", ["suspension", "time-out"])
def test_the_first_request_after_a_pause_finds_nothing(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, pause: str
) -> None:
    monkeypatch.setattr("sfsc.agent.process._SECONDS", 1000.0)  # for a client that came before it
    time = Time()
    with serving(runtime, time) as agent, agent.connect() as early:
        agent.ask(KEEP, ID, KEY, 60)
        if pause == "suspension":
            time.suspend(30)
        else:
            time.now += 60
        early.sendall(frame(AgentRequest(GET, ID)))
        assert receive(early).key == b""
        until(lambda: agent.again)
    assert agent.path.exists()  # the same socket serves on


def test_a_locked_agent_asks_for_new_memory(runtime: Path) -> None:
    with serving(runtime) as agent:
        agent.ask(KEEP, ID, KEY, 60)
        assert agent.ask(LOCK).lock_id == b""
        until(lambda: agent.again)


HOSTILE = {
    "nothing": b"",
    "no length": b"\0\0",
    "length 0": bytes(4),
    "too long": b"\0\0\1\1" + bytes(257),
    "longest length": b"\xff" * 4,
    "no msgpack": b"\0\0\0\1\xc1",
    "deep": b"\0\0\0\xff" + b"\x91" * 255,
    "a map": b"\0\0\0\1\x80",
    "fields": b"\0\0\0\2\x91\xc0",
    "unknown action": b"\0\0\0\x0a\x94\xa3eat\xc4\0\xc4\0\0",
    "keep without a key": b"\0\0\0\x2d\x94\xa4keep\xc4\x20" + ID + b"\xc4\0\x3c\0",
    "get with a key": b"\0\0\0\x4d\x94\xa3get\xc4\x20" + ID + b"\xc4\x20" + KEY + b"\0",
    "time without end": b"\0\0\0\x52\x94\xa4keep\xc4\x20"
    + ID
    + b"\xc4\x20"
    + KEY
    + b"\xce"
    + ID[:4],
}


def test_hostile_requests_are_unanswered_and_end_nothing(runtime: Path) -> None:
    with serving(runtime) as agent:
        agent.ask(KEEP, ID, KEY, 60)
        for name, sent in HOSTILE.items():
            with agent.connect() as connection:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                with suppress(ConnectionResetError):  # of bytes that nobody has read
                    assert connection.recv(1) == b"", name
            assert agent.ask(GET, ID).key == KEY, name


def test_a_client_that_hangs_delays_nobody_and_is_dropped(runtime: Path) -> None:
    time = Time()
    with serving(runtime, time) as agent:
        agent.ask(KEEP, ID, KEY, 60)
        hanging = [agent.connect() for _ in range(40)]  # more than it serves at a time
        for one in hanging[20:]:
            with suppress(OSError):
                one.sendall(b"\0\0\0")
        assert agent.ask(GET, ID).key == KEY
        assert hanging[0].recv(1) == b""  # the oldest gave way
        time.now += 5
        agent.ask(STATUS)
        for one in hanging:
            with suppress(ConnectionResetError):
                assert one.recv(1) == b""
            one.close()
        assert agent.ask(GET, ID).key == KEY


@pytest.mark.parametrize("what", ["session", "folder", "another socket"])
def test_it_ends_when_the_user_logs_out(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("sfsc.agent.process._TICK", 0.01)
    reading, writing = os.pipe()
    folder = runtime / "sfsc"
    folder.mkdir()
    with serving(folder, session=reading) as agent:
        if what == "session":
            os.close(writing)  # which makes it readable, as the end of a process does
        else:
            shutil.rmtree(folder)
            if what == "another socket":
                folder.mkdir()
                agent.path.touch()
        until(lambda: agent.again is False)
        assert agent.path.exists() == (what == "another socket")
    os.close(reading)
    if what != "session":
        os.close(writing)


# --- real processes -------------------------------------------------------------------------


def test_an_agent_keeps_a_key_for_other_processes(home: Path) -> None:
    assert client.find_key(home, ID) is None
    assert not client.keep_key(home, ID, KEY, 60)
    assert client.start(home)
    assert not client.start(home)
    assert client.keep_key(home, ID, KEY, 60)
    assert client.find_key(home, ID) == KEY
    pid = client.status(home, ID).pid
    assert pid is not None
    assert socket_path(home).stat().st_mode & 0o777 == 0o600
    assert socket_path(home).parent.stat().st_mode & 0o777 == 0o700
    if IS_ROOT:
        assert KEY in memory_of(pid)
    assert client.lock(home)
    locked = client.status(home, ID)
    assert (locked.running, locked.unlocked, locked.pid) == (True, False, pid)
    if IS_ROOT:  # it has executed itself again: there is no copy left
        assert KEY not in memory_of(pid)
        status = Path(f"/proc/{pid}/status").read_text()
        assert int(status.split("VmLck:")[1].split()[0]) > 1000  # KiB: all that it has
        assert "PASSPHRASE" not in Path(f"/proc/{pid}/environ").read_text()
    assert client.stop(home)
    assert not client.stop(home)


def memory_of(pid: int) -> bytes:
    """Return the writable memory of a process."""
    found = b""
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, mode, *_ = line.split()
            if mode.startswith("rw"):
                start, end = (int(one, 16) for one in place.split("-"))
                memory.seek(start)
                with suppress(OSError):  # [vvar]
                    found += memory.read(end - start)
    return found


@pytest.mark.skipif(not IS_ROOT, reason="needs another user's processes")
def test_another_user_gets_no_answer(home: Path, runtime: Path) -> None:
    """The folder keeps other users out. Here it does not, and the socket itself still does."""
    client.start(home)
    client.keep_key(home, ID, KEY, 60)
    path = socket_path(home)
    runtime.chmod(0o755)
    path.parent.chmod(0o755)
    path.chmod(0o777)
    code = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[3]))\n"
        "one = socket.socket(socket.AF_UNIX); one.settimeout(20); one.connect(sys.argv[1])\n"
        "try: one.sendall(bytes.fromhex(sys.argv[2])); print(len(one.recv(999)))\n"
        "except ConnectionError: print('refused')"
    )
    request = frame(AgentRequest(GET, ID)).hex()
    answers = {}
    for user in (NOBODY, 0):
        arguments = [sys.executable, "-S", "-c", code, str(path), request, str(user)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        answers[user] = done.stdout.strip()
    assert answers[NOBODY] in ("0", "refused")
    assert int(answers[0]) > 32
    runtime.chmod(0o700)
    path.parent.chmod(0o700)
    assert client.find_key(home, ID) == KEY


@pytest.mark.skipif(not IS_ROOT, reason="becomes another user")
def test_the_memory_of_a_user_without_privileges_is_protected() -> None:
    code = (
        "import ctypes, os, resource\n"
        "from sfsc.agent.memory import KeyPage, protect_process\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"  # which a change of the user has reset
        "page = KeyPage(all_locked=protect_process())\n"
        "print(page.memory)\n"
        "print(open('/proc/self/status').read().split('VmLck:')[1].split()[0])\n"
        "print(os.stat('/proc/self/mem').st_uid, resource.getrlimit(resource.RLIMIT_CORE)[0])\n"
    )
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    # Root owns the memory of a process that nobody else may read.
    assert done.stdout.split() == ["key-locked", str(os.sysconf("SC_PAGE_SIZE") // 1024), "0", "0"]


@pytest.mark.skipif(sys.platform != "linux", reason="watches a process by its descriptor")
def test_the_agent_ends_with_the_session_that_started_it(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a runtime folder. The leader of the session is the shell."""
    home = runtime  # whose name is short
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    code = "import sys, pathlib; from sfsc.agent import client; client.start(pathlib.Path('.'))"
    shell = subprocess.Popen(
        ["sh", "-c", '"$0" -c "$1" && echo started && read line', sys.executable, code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=home,
        start_new_session=True,
    )
    assert shell.stdout is not None
    assert shell.stdout.readline() == b"started\n"
    pid = client.status(home, None).pid
    assert pid is not None
    ended = os.pidfd_open(pid)
    with selectors.DefaultSelector() as selector:
        selector.register(ended, selectors.EVENT_READ)
        assert not selector.select(0)
        shell.communicate(timeout=20)
        assert selector.select(20)
    os.close(ended)
    assert not socket_path(home).exists()
