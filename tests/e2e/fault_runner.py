"""Runs points of the fault sweep: a system call of a daemon on its root fails, then all is checked.

``python -m tests.e2e.fault_runner FOLDER``, with the shim `tests/e2e/fault_shim.c` in LD_PRELOAD,
reads one JSON request a line and answers each with one line. The daemons, clients and commands are
forks of this process, which has imported them: starting Python for each would take most of the
time. Each is a process of its own with real sockets and files, and is ended by a real signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import gc
import io
import json
import mmap
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import sfsc
import sfsc.account.enrol
import sfsd.commands.audit
import sfsd.commands.fsck
import sfsd.commands.serve
import sfsd.net.listener
import sfsd.storage.committer
from sfsc.errors import SfscError
from sfsc.store import Store
from sfsd import cli
from sfsd.storage.committer import Committer
from tests.e2e.accounts import enrolled, new_root
from tests.harness import Daemon

POINT_SIZE = 192
MOST_SEEN = 8000
OFF, COUNT, FAIL = range(3)
MODES = ("told", "client killed", "daemon killed")
READING = ("open-read", "stat", "fstat", "read")
"""Calls that change nothing; the long sweep has them too."""
NO_ROOM = "no room"
"""Mode of a disk that is full until there is room again: no sync fails, no bytes are lost."""
FAULTS = {
    "EIO": errno.EIO,
    "ENOSPC": errno.ENOSPC,
    "EMFILE": errno.EMFILE,
    "ENOMEM": errno.ENOMEM,
    "EACCES": errno.EACCES,
    "short": 0,
    "instead": -1,
    "after": -2,
}
"""What happens to the call. The daemon is killed `instead` of it, or `after` it succeeded."""
SETTLE_SECONDS = 0.005
PUBLISH_SECONDS = 0.2
"""How long a logged group waits for a descriptor or for room; a minute in the product."""
WAIT_SECONDS = 120.0
"""Far longer than needed on a busy machine, so that a timeout means a hang."""
MIB = 1 << 20


class Plan(ctypes.Structure):
    """`struct plan` of the shim."""

    _fields_ = (
        ("state", ctypes.c_int),
        ("number", ctypes.c_int),
        ("error", ctypes.c_int),
        ("lasting", ctypes.c_int),
        ("mode", ctypes.c_int),
        ("client", ctypes.c_int),
        ("reads", ctypes.c_int),
        ("point", ctypes.c_char * POINT_SIZE),
        ("matched", ctypes.c_int),
        ("fired", ctypes.c_int),
        ("doomed", ctypes.c_int),
        ("counted", ctypes.c_int),
        ("seen", (ctypes.c_char * POINT_SIZE) * MOST_SEEN),
    )
    state: int
    number: int
    error: int
    lasting: int
    mode: int
    client: int
    reads: int
    point: bytes
    matched: int
    fired: int
    doomed: int
    counted: int


@dataclass(frozen=True)
class Point:
    """The `number`th call of a kind on a class of paths (`call`) in a scenario, and what fails."""

    scenario: str
    call: str
    number: int
    fault: str
    mode: str
    lasting: bool

    def __str__(self) -> str:
        how = "lasting " if self.lasting else ""
        return f"{self.scenario}: {self.call} #{self.number}: {how}{self.fault}, {self.mode}"


class Broken(AssertionError):
    """What must hold after a fault does not."""


def check(holds: object, text: str) -> None:
    """Raise `Broken` unless `holds`."""
    if not holds:
        raise Broken(text)


# Scenarios: what the client does, and which contents may be there afterwards.

Contents = dict[tuple[str, str], bytes | None]
"""(user, name) → content, None if the user cannot see such a file. A name with "alice/" before it
is a file that alice shares."""
Step = tuple[Callable[[Store, Path], object], Contents]


def data(label: str, size: int) -> bytes:
    return (label.encode() + b" ") * (size // (len(label) + 1) + 1)


SMALL, LARGE, HUGE = 300, 5 * MIB // 2, 17 * MIB
MANY = 18
"""Files of one group of changes; enough that the daemon syncs the file system, not each file."""
BASE: Contents = {
    ("alice", "doc"): data("doc", SMALL),
    ("alice", "big"): data("big", LARGE),
    ("alice", "kept"): data("kept", SMALL),
    ("alice", "fresh"): None,
    ("alice", "huge"): None,
    ("alice", "moved"): None,
    **{("alice", f"many-{number:02}"): None for number in range(MANY)},
    ("alice", "gone"): data("gone", SMALL),
    ("alice", "lent"): data("lent", SMALL),
    ("alice", "secret"): data("secret", SMALL),
    ("bob", "alice/lent"): data("lent", SMALL),
    ("bob", "alice/secret"): None,
    ("bob", "own"): data("bob's own", SMALL),
    ("bob", "large"): None,
    ("carol", "own"): data("carol's own", LARGE),
}


def put(name: str, content: bytes, user: str = "alice") -> Step:
    def act(store: Store, folder: Path) -> None:
        source = folder / f"source-{user}-{name}"
        source.write_bytes(content)
        store.put(source, name=name)

    return act, {(user, name): content}


def put_many() -> Step:
    names = [f"many-{number:02}" for number in range(MANY)]

    def act(store: Store, folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes(data(name, SMALL))
        assert len(list(store.put_many((folder / name, name) for name in names))) == MANY

    return act, {("alice", name): data(name, SMALL) for name in names}


def transact() -> Step:
    sources = {"fresh": data("fresh", SMALL), "big": data("big 2", LARGE)}

    def act(store: Store, folder: Path) -> None:
        with store.transaction() as change:
            for name, content in sources.items():
                (folder / f"source-{name}").write_bytes(content)
                change.put(name, folder / f"source-{name}")
            change.delete("gone")
            change.move("doc", "moved")

    effect: Contents = {("alice", name): content for name, content in sources.items()}
    return act, effect | {
        ("alice", "gone"): None,
        ("alice", "doc"): None,
        ("alice", "moved"): BASE["alice", "doc"],
    }


SCENARIOS: dict[str, dict[str, tuple[Step, ...]]] = {
    "put small": {"alice": (put("doc", data("doc 2", SMALL)), put("fresh", data("fresh", SMALL)))},
    "put large": {"alice": (put("big", data("big 2", LARGE)),)},
    "put huge": {"alice": (put("huge", data("huge", HUGE)),)},
    "put many": {"alice": (put_many(),)},
    "two users": {
        "alice": (put("big", data("big 2", LARGE)), put("doc", data("doc 2", SMALL))),
        "bob": (put("own", data("own 2", SMALL), "bob"), put("large", data("own", LARGE), "bob")),
    },
    "delete": {
        "alice": (
            (lambda store, _: store.rm("gone"), {("alice", "gone"): None}),
            (lambda store, _: store.purge("gone"), {}),
        )
    },
    "share": {
        "alice": (
            (
                lambda store, _: store.share("secret", "bob"),
                {("bob", "alice/secret"): BASE["alice", "secret"]},
            ),
            (
                lambda store, _: store.unshare("lent", "bob", reencrypt=True),
                {("bob", "alice/lent"): None},
            ),
        )
    },
    "move": {
        "alice": (
            (
                lambda store, _: store.mv("doc", "moved"),
                {("alice", "doc"): None, ("alice", "moved"): BASE["alice", "doc"]},
            ),
            (lambda store, _: store.rm("kept"), {("alice", "kept"): None}),
            (lambda store, _: store.restore("kept"), {("alice", "kept"): BASE["alice", "kept"]}),
        )
    },
    "transaction": {"alice": (transact(),)},
    "rotate": {"alice": ((lambda store, _: store.rotate(), {}),)},
    "rotate compromised": {"alice": ((lambda store, _: store.rotate(compromised=True), {}),)},
    "start": {},
    "stop": {"alice": (put("fresh", data("fresh", SMALL)),)},
}
"""The steps of each user, which run at the same time. For "start" the root is one whose daemon was
killed before it settled its changes. For "stop" the change is made first, and the calls are those
after SIGTERM."""
ONE_CHANGE = ("put small", "put large", "put huge", "two users", "delete", "transaction")
"""Scenarios in which each step is one change, so that a refused step changes nothing."""
NOTHING_DONE = "nothing was done"


@dataclass(frozen=True)
class Outcome:
    """What one client was told: how many steps were acknowledged, and the text of the failure."""

    done: int
    text: str


def acceptable(
    scenario: str, outcomes: Mapping[str, Outcome]
) -> dict[tuple[str, str], set[bytes | None]]:
    """Return the contents that each file may have after what the clients were told.

    These are the contents after each user's acknowledged steps. Those after one more step of a user
    are acceptable too, unless the server said that it did nothing.
    """
    known: Contents = dict(BASE)
    possible: list[Contents] = []
    for user, steps in SCENARIOS[scenario].items():
        outcome = outcomes[user]
        for _, effect in steps[: outcome.done]:
            known |= effect
        if scenario not in ONE_CHANGE or NOTHING_DONE not in outcome.text:
            possible += [effect for _, effect in steps[outcome.done : outcome.done + 1]]
    allowed = {key: {content} for key, content in known.items()}
    for effect in possible:
        for key, content in effect.items():
            allowed[key].add(content)
    return allowed


# Processes.


@dataclass
class Process:
    """A fork. `output` is what it wrote to its pipe so far; `code` is -SIGNAL if it was killed."""

    pid: int
    reader: int
    output: bytes = b""
    code: int | None = None

    def read_until(self, word: bytes, seconds: float = WAIT_SECONDS) -> bool:
        """Wait for `word` or the end; return whether `word` came."""
        deadline = time.monotonic() + seconds
        while word not in self.output:
            left = deadline - time.monotonic()
            check(left > 0, f"no {word!r} after {seconds} s: {self.output!r}")
            if select.select([self.reader], [], [], left)[0]:
                more = os.read(self.reader, 65536)
                if not more:
                    return False
                self.output += more
        return True

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended(status)
        return self.code

    def wait(self, seconds: float = WAIT_SECONDS) -> int:
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            check(time.monotonic() < deadline, f"a process did not end within {seconds} s")
            time.sleep(0.002)
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            self._ended(status)

    def _ended(self, status: int) -> None:
        self.code = os.waitstatus_to_exitcode(status)
        while more := os.read(self.reader, 65536):
            self.output += more
        os.close(self.reader)


def fork(run: Callable[[int], int], output: Path | None = None) -> Process:
    """Run `run(pipe)` in a fork; its result is the exit code. An exception is written to both."""
    sys.stdout.flush()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return Process(pid, reader)
    code = 99
    try:
        os.close(reader)
        with open(os.devnull if output is None else output, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = run(writer)
        sys.stdout.flush()
    finally:
        if sys.exception() is not None:
            traceback.print_exc()
            os.write(writer, traceback.format_exc()[-3000:].encode())
        os._exit(code)  # the rest of the stack is the runner's


class Runner:
    """Runs points in `folder`. One root and its homes are made once and copied for each point."""

    def __init__(self, folder: Path) -> None:
        self._shared = mmap.mmap(-1, ctypes.sizeof(Plan))
        self.plan = Plan.from_buffer(self._shared)
        self._library = ctypes.CDLL(None)
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self._ready = folder / "ready"
        self._work = folder / "work"
        self._output = folder / "output"
        self._processes: list[Process] = []
        self._outcomes: dict[str, Outcome] = {}
        self.reads = False
        """Whether `count` counts calls of `READING` too."""

    # Daemons and commands.

    @property
    def root(self) -> Path:
        return self._work / "root"

    def _fork(self, run: Callable[[int], int]) -> Process:
        """Fork a process that ends with the point."""
        process = fork(run, self._output)
        self._processes.append(process)
        return process

    def _serve(self, settle: float, *, watched: bool = False, reopens: bool = False) -> int:
        """Run `sfsd serve` in this process. `reopens` lets it notice soon that there is room."""
        if reopens:
            setattr(sfsd.net.listener, "_TICK_SECONDS", 0.02)  # noqa: B010
            setattr(sfsd.net.listener, "_REOPEN_SECONDS", 1.0)  # noqa: B010
        (Committer.__init__.__kwdefaults__ or {})["settle_after"] = settle
        setattr(sfsd.storage.committer, "_PUBLISH_SECONDS", PUBLISH_SECONDS)  # noqa: B010
        if watched:
            folder = os.fsencode(os.path.realpath(self.root))
            self._library.fault_watch(ctypes.byref(self.plan), folder)
        words = ["serve", "--root", self.root, "--listen", self._address]
        return cli.main([*map(str, words), "--ready-file", str(self._ready)])

    def daemon(
        self, *, watched: bool = False, settle: float = SETTLE_SECONDS, reopens: bool = False
    ) -> Process:
        """Start `sfsd serve`; return at once. `watched` lets the shim see its calls."""
        self._ready.unlink(missing_ok=True)
        return self._fork(lambda _: self._serve(settle, watched=watched, reopens=reopens))

    def await_ready(self, daemon: Process) -> bool:
        """Wait until the daemon accepts connections; return False if it exits instead."""
        return self._wait_ready(daemon.poll)

    def _wait_ready(self, ended: Callable[[], int | None]) -> bool:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (self._ready.exists() and self._ready.read_bytes().endswith(b"\n")):
            if ended() is not None:
                return False
            check(time.monotonic() < deadline, "the daemon neither starts nor exits")
            time.sleep(0.002)
        return True

    def command(self, *words: str) -> None:
        """Run an `sfsd` command, which must succeed."""
        output = self._folder / "command"
        output.unlink(missing_ok=True)
        code = fork(lambda _: cli.main([*words, "--root", str(self.root)]), output).wait()
        told = output.read_text(errors="replace")
        check(code == 0, f"sfsd {' '.join(words)}: exit {code}: {told[-1500:]}")

    def serving(self, *, settle: float = SETTLE_SECONDS) -> Process:
        daemon = self.daemon(settle=settle)
        if not self.await_ready(daemon):
            raise Broken(f"the daemon does not start:\n{self._tail()}")
        return daemon

    def _tail(self) -> str:
        return self._output.read_text(errors="replace")[-2500:] if self._output.exists() else ""

    # Preparing.

    def warm_up(self) -> None:
        """Make the base root, as daemon and as client of it in this process itself.

        The forks then inherit every import and cache; filling them takes longer than a whole point.
        """
        self._work.mkdir()
        new_root(self.root)
        (self.root / "sfsd.toml").write_text(
            f'public = "{self._address}"\n[limits]\nrotations = 1000\n'
        )
        me = os.getpid()

        def enrol_then_stop(_: int) -> int:
            try:
                check(self._wait_ready(lambda: None), "no daemon")
                self._enrol()
            finally:
                os.kill(me, signal.SIGTERM)
            return 0

        enrolling = self._fork(enrol_then_stop)
        check(self._serve(SETTLE_SECONDS) == 0, "serving")
        check(enrolling.wait() == 0, f"enrolling: {enrolling.output.decode()}\n{self._tail()}")
        shutil.copytree(self._work, self._folder / "enrolled")
        daemon = self.serving()
        self._fill()
        for user in ("carol", "bob", "alice"):
            with sfsc.connect(self._work / user) as store:
                self._check_user(store, user, acceptable("start", {}))
        os.kill(daemon.pid, signal.SIGTERM)
        check(daemon.wait() == 0, "stopping")
        with contextlib.redirect_stdout(io.StringIO()):
            for words in (["fsck", "--read-data"], ["audit", "verify"]):
                check(cli.main([*words, "--root", str(self.root)]) == 0, words[0])
        check(threading.active_count() == 1, f"threads: {threading.enumerate()}")
        self._work.rename(self._folder / "base")
        gc.collect()
        gc.freeze()

    def base(self, *, unsettled: bool) -> Path:
        """Return a folder with a root and its users' homes. With `unsettled` the daemon was killed
        before it settled the last changes."""
        base = self._folder / ("base-unsettled" if unsettled else "base")
        if not base.exists():
            self._copy(self._folder / "enrolled")
            daemon = self.serving(settle=3600)
            filling = self._fork(lambda _: self._fill())
            check(filling.wait() == 0, f"preparing: {filling.output.decode()}")
            daemon.kill()
            self._work.rename(base)
        return base

    def _enrol(self) -> None:
        daemon = Daemon(self.root, self._address)
        for user in ("alice", "bob", "carol"):
            enrolled(daemon, user, self._work / user, "x25519")

    def _fill(self) -> int:
        for user in ("alice", "bob", "carol"):
            with sfsc.connect(self._work / user) as store:
                for (owner, name), content in BASE.items():
                    if owner == user and content is not None and "/" not in name:
                        (self._work / "source").write_bytes(content)
                        store.put(self._work / "source", name=name)
        with sfsc.connect(self._work / "alice") as store:
            store.share("lent", "bob", trust_first_use=True)
        return 0

    def _copy(self, base: Path) -> None:
        """Copy a base. The reserve is 16 MiB that are only ever removed, so it is linked."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._output.unlink(missing_ok=True)

        def copy(source: str, target: str) -> str:
            if source.endswith("/reserve"):
                os.link(source, target)
                return target
            return shutil.copy2(source, target)

        shutil.copytree(base, self._work, copy_function=copy)

    # Running one point.

    def _client(self, scenario: str, user: str) -> tuple[Process, int]:
        """Start a client with a session, which waits for a byte on the returned pipe."""
        gate, opened = os.pipe()

        def run(pipe: int) -> int:
            os.close(opened)
            with sfsc.connect(self._work / user, auto_rotate=False) as store:
                os.write(pipe, b"ready\n")
                os.read(gate, 1)
                try:
                    for act, _ in SCENARIOS[scenario][user]:
                        act(store, self._work)
                        os.write(pipe, b"acknowledged\n")
                except (SfscError, OSError) as exc:
                    os.write(pipe, f"failed {type(exc).__name__}: {exc}\n".encode())
                os.write(pipe, b"end\n")
            return 0

        process = self._fork(run)
        os.close(gate)
        if not process.read_until(b"ready\n"):
            raise Broken(f"the client gets no session: {process.output.decode()}\n{self._tail()}")
        return process, opened

    def _settled(self) -> bool:
        names = {path.name for path in (self.root / "staging").iterdir()}
        return names <= {"applied", ".spare"}

    def _arm(self, point: Point | None, client: int) -> None:
        plan = self.plan
        ctypes.memset(ctypes.byref(plan), 0, Plan.seen.offset)
        plan.client = client
        if point is not None:
            plan.number, plan.point = point.number, point.call.encode()
            plan.error, plan.lasting = FAULTS[point.fault], int(point.lasting)
            if point.mode == NO_ROOM:
                plan.lasting = 2
            plan.mode = MODES.index(point.mode) if point.mode in MODES else 0
        plan.reads = self.reads if point is None else point.call.split()[0] in READING
        plan.state = COUNT if point is None else FAIL

    def run(self, scenario: str, point: Point | None) -> None:
        """Run a scenario with the fault of `point`, or count its calls."""
        self._copy(self.base(unsettled=scenario == "start"))
        self._outcomes = {}
        if scenario == "start":
            self._arm(point, 0)
            daemon = self.daemon(watched=True)
            self.await_ready(daemon)
            self._linger(daemon, point)
        else:
            daemon = self.daemon(watched=True)
            check(self.await_ready(daemon), f"the prepared root does not start: {self._tail()}")
            daemon = self._run_clients(daemon, scenario, point)
        self._end(daemon, scenario, point)

    def _run_clients(self, daemon: Process, scenario: str, point: Point | None) -> Process:
        """Run the clients of a scenario; return the daemon that runs at the end."""
        clients = {user: self._client(scenario, user) for user in SCENARIOS[scenario]}
        first, _ = clients["alice"]
        if scenario != "stop":
            self._arm(point, first.pid)
        for _, opened in clients.values():
            os.write(opened, b"x")
            os.close(opened)
        for user, (client, _) in clients.items():
            daemon = self._await_client(client, daemon)
            text = client.output.decode()
            outcome = self._outcomes[user] = Outcome(text.count("acknowledged\n"), text)
            if point is None or scenario == "stop":
                check(outcome.done == len(SCENARIOS[scenario][user]), f"without a fault: {text}")
        self._linger(daemon, point)
        for client, _ in clients.values():
            killed = client is first and point is not None and point.mode == "client killed"
            client.kill() if killed else client.wait()
        return daemon

    def _await_client(self, client: Process, daemon: Process) -> Process:
        """Wait for the client's end. A daemon that was killed is started again meanwhile, because
        the client tries to continue; return the daemon that runs at the end."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            with contextlib.suppress(Broken):
                client.read_until(b"end\n", 0.02)
                return daemon
            check(time.monotonic() < deadline, "the client does not end")
            if daemon.poll() is not None:
                self.plan.state = OFF
                daemon = self.serving()

    def _linger(self, daemon: Process, point: Point | None) -> None:
        """Wait until the daemon has settled, or has had the fault and time to react."""
        deadline = time.monotonic() + WAIT_SECONDS
        while daemon.poll() is None:
            check(time.monotonic() < deadline, "the daemon does not settle")
            if point is not None and self.plan.fired:
                time.sleep(0.03)
                return
            if self._settled():
                time.sleep(0.01)
                if self._settled():
                    return
            time.sleep(0.002)

    def _end(self, daemon: Process, scenario: str, point: Point | None) -> None:
        """End the daemon while a lasting fault still lasts: kill it, or ask it to stop."""
        if scenario == "stop":
            self._arm(point, 0)
        elif point is None:
            self.plan.state = OFF
        if daemon.poll() is None and (scenario == "stop" or (point and point.number % 2)):
            os.kill(daemon.pid, signal.SIGTERM)
            daemon.wait()
        daemon.kill()
        self.plan.state = OFF

    def count(self, scenario: str) -> list[str]:
        """Return "CALL CLASS" of each call that the scenario makes, in order."""
        self.run(scenario, None)
        check(self.plan.counted <= MOST_SEEN, "too many calls")
        return [self.plan.seen[at].value.decode() for at in range(self.plan.counted)]

    def run_point(self, point: Point) -> Mapping[str, object]:
        """Run and check one point; return what is to be reported."""
        started = time.monotonic()
        answer: dict[str, object] = {"point": dataclasses.asdict(point), "fired": False}
        try:
            self.run(point.scenario, point)
            answer["fired"] = self.plan.fired > 0
            self.verify(point.scenario)
            check("Traceback" not in self._tail(), "a failure ends in a traceback")
        except Broken as exc:
            answer["broken"] = str(exc)
            answer["output"] = f"clients: {self._outcomes}\ndaemons: {self._tail()}"
        finally:
            self._end_processes()
        answer["seconds"] = round(time.monotonic() - started, 3)
        return answer

    # A lack of room that ends while the daemon runs.

    def run_without_room(self, point: Point) -> Mapping[str, object]:
        """Fill the disk from `point` on and make room later. Check that the daemon acknowledges
        nothing meanwhile, and goes on afterwards without a restart."""
        answer: dict[str, object] = {}
        self._outcomes = {}
        try:
            starting = point.scenario == "start"
            self._copy(self.base(unsettled=starting))
            if starting:
                for sidecar in self.root.glob("store/users/alice/files/*/*.json"):
                    sidecar.unlink()  # as if the power had failed; the stage has them
                self._arm(point, 0)
            daemon = self.daemon(watched=True, reopens=True)
            check(self.await_ready(daemon), f"the daemon does not start: {self._tail()}")
            if not starting:
                client, opened = self._client(point.scenario, "alice")
                self._arm(point, client.pid)
                os.write(opened, b"x")
                os.close(opened)
                client.read_until(b"end\n")
                self._outcomes["alice"] = Outcome(0, client.output.decode())
                check(b"until there is room" in client.output, client.output.decode())
            self._await_output("serving read-only metadata until there is room")
            refused = self._fork(lambda pipe: self._put_file(pipe, 0))
            refused.read_until(b"\n")
            check(refused.output.startswith(b"failed Unreachable: "), refused.output.decode())
            self._await_output("opening the root again")  # in vain
            self.plan.state = OFF
            stored = self._fork(lambda pipe: self._put_file(pipe, WAIT_SECONDS))
            check(stored.read_until(b"stored\n"), stored.output.decode())
            check(daemon.poll() is None, "the daemon has ended")
            os.kill(daemon.pid, signal.SIGTERM)
            check(daemon.wait() == 0, "the daemon does not stop cleanly")
            self.verify(point.scenario)
        except Broken as exc:
            answer["broken"] = str(exc)
            answer["output"] = f"clients: {self._outcomes}\ndaemons: {self._tail()}"
        finally:
            self._end_processes()
        return answer

    def _await_output(self, text: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while text not in self._output.read_text(errors="replace"):
            check(time.monotonic() < deadline, f"the daemon does not say: {text}")
            time.sleep(0.01)

    def _put_file(self, pipe: int, seconds: float) -> int:
        """Store a file, and try again for `seconds`; write the outcome to `pipe`."""
        deadline = time.monotonic() + seconds
        act, _ = put("kept", data("kept", SMALL))
        while True:
            try:
                with sfsc.connect(self._work / "alice", auto_rotate=False) as store:
                    act(store, self._work)
                os.write(pipe, b"stored\n")
                return 0
            except SfscError as exc:
                if time.monotonic() >= deadline:
                    os.write(pipe, f"failed {type(exc).__name__}: {exc}\n".encode())
                    return 0
            time.sleep(0.02)

    def _end_processes(self) -> None:
        for process in self._processes:
            process.kill()
        self._processes.clear()
        self.plan.state = OFF

    # Checking.

    def verify(self, scenario: str) -> None:
        """Check what must hold after any fault."""
        daemon = self.serving()
        checker = self._fork(lambda pipe: self._check_users(scenario, pipe))
        checker.read_until(b"\n")
        checker.wait()
        check(checker.output == b"good\n", checker.output.decode())
        os.kill(daemon.pid, signal.SIGTERM)
        check(daemon.wait() == 0, "the daemon does not stop cleanly")
        self.command("fsck", "--read-data")
        self.command("audit", "verify")
        # Every write was made, or reported as failed: no change may lose its bytes.
        log = (self.root / "logs" / "audit.jsonl").read_bytes()
        check(b'"op":"lost"' not in log, "bytes of a logged change are lost")

    def _check_users(self, scenario: str, pipe: int) -> int:
        try:
            allowed = acceptable(scenario, self._outcomes)
            for user in ("carol", "bob", "alice"):
                with sfsc.connect(self._work / user) as store:
                    found = self._check_user(store, user, allowed)
                    if user == "alice" and scenario == "transaction":
                        _check_whole(found, transact()[1])
                    if user in self._outcomes or user == "alice":
                        self._check_goes_on(store, scenario, user)
        except Broken as exc:
            os.write(pipe, f"{exc}".encode())
        except (SfscError, OSError) as exc:
            os.write(pipe, f"{type(exc).__name__}: {exc}\n{traceback.format_exc()}".encode())
        else:
            os.write(pipe, b"good\n")
        return 0

    def _check_user(
        self, store: Store, user: str, allowed: Mapping[tuple[str, str], set[bytes | None]]
    ) -> dict[str, bytes | None]:
        """Check the files that a user sees; return their contents by name."""
        seen: dict[str, bytes | None] = {}
        listed = {entry.name for entry in store.ls()}
        shared = {f"{one.owner}/{one.entry.name}": one for one in store.inbox()}
        mine = {name: contents for (owner, name), contents in allowed.items() if owner == user}
        check(
            listed | set(shared) <= set(mine), f"{user}: unexpected: {sorted(listed | set(shared))}"
        )
        for name, contents in mine.items():
            found: bytes | None = None
            if name in shared:
                one = shared[name]
                with store.open_shared(one.owner, one.entry.name, trust_first_use=True) as file:
                    found = file.read()
            elif name in listed:
                with store.open(name) as file:
                    found = file.read()
            seen[name] = found
            if found not in contents:
                text = "missing" if found is None else f"{len(found)} bytes {found[:20]!r}"
                raise Broken(f"{user}: {name}: {text} instead of one of {len(contents)} contents")
        for name in listed:
            for revision in store.history(name):
                if revision.kept and revision.version is not None:
                    with store.open(name, version=revision.version) as file:
                        check(len(file.read()) == revision.size, f"{name} v{revision.version}")
        return seen

    def _check_goes_on(self, store: Store, scenario: str, user: str) -> None:
        """Check that the account can do what was interrupted, and store other files."""
        outcome = self._outcomes.get(user)
        for act, _ in SCENARIOS[scenario][user][outcome.done :] if outcome else ():
            with contextlib.suppress(sfsc.UsageError, sfsc.NotFound):  # it is done already
                act(store, self._work)
        source = self._work / "after"
        for size in (SMALL, LARGE):
            source.write_bytes(data("after", size))
            store.put(source, name="after")
            with store.open("after") as file:
                check(file.read() == source.read_bytes(), "a file stored afterwards differs")
        if scenario.startswith("rotate"):
            store.verify_rotation()


def _check_whole(found: Mapping[str, bytes | None], effect: Contents) -> None:
    """Check that all files of a transaction are as before, or all as it makes them."""
    made = {name: found[name] == content for (_, name), content in effect.items()}
    kept = {name: found[name] == BASE["alice", name] for _, name in effect}
    check(all(made.values()) or all(kept.values()), f"a part of a transaction: {made}")


def main() -> None:
    """Answer requests, one a line: ``{"count": SCENARIO, "reads": BOOL}``, ``{"point": {...}}`` or
    ``{"without_room": {...}}``."""
    # The commands that run here set up their standard input, which must be unread for that.
    requests, sys.stdin = sys.stdin, open(os.devnull)  # noqa: SIM115 - until the end
    runner = Runner(Path(sys.argv[1]))
    runner.warm_up()
    for line in requests:
        request = json.loads(line)
        if "count" in request:
            runner.reads = request["reads"]
            answer: object = runner.count(request["count"])
        elif "without_room" in request:
            answer = runner.run_without_room(Point(**request["without_room"]))
        else:
            answer = runner.run_point(Point(**request["point"]))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
