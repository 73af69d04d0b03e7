"""Runs the real programs in separate processes, for end-to-end tests, benchmarks and the demo.

Nothing here uses the product's internals. A `Daemon` is ``sfsd`` over one root, a `Client` is
``sfsc`` over one home. Environment variables give both their folder, and the passphrase.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.forked import Forked, ForkServer

REPOSITORY = Path(__file__).resolve().parent.parent
BYTECODE = Path(sys.prefix) / "bytecode"
"""Outside the repository, in a folder that no other user can write."""
PASSPHRASE = "correct horse battery staple"
START_SECONDS = 20.0
STOP_SECONDS = 15.0
COMMAND_SECONDS = 110.0
forks: ForkServer | None = None
"""If set, programs are forked from one process instead of being started. Not for measurements."""


class CommandFailed(AssertionError):
    """A program exited with an unexpected code."""


@dataclass(frozen=True)
class Result:
    """Result of a program: exact `stdout` bytes, and decoded `stderr`."""

    arguments: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def expect(self, code: int) -> Self:
        """Return self if the exit code is `code`, else raise `CommandFailed`."""
        if self.code != code:
            head = f"{' '.join(self.arguments)}: exit {self.code}, expected {code}"
            stdout = self.stdout[-2000:].decode(errors="replace")
            raise CommandFailed(f"{head}\n--- stdout\n{stdout}\n--- stderr\n{self.stderr[-4000:]}")
        return self


def command(program: str) -> list[str]:
    """Return the command for ``sfsd`` or ``sfsc``: the installed script, else this tree."""
    script = Path(sys.executable).with_name(program + (".exe" if os.name == "nt" else ""))
    if script.exists():
        return [str(script)]
    start = f"import sys; from {program}.cli import main; sys.exit(main())"
    return [sys.executable, "-c", start]


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without its sfs settings, updated with `own`.

    Bytecode is cached, as for installed programs: compiling in each process would take longer than
    most commands.
    """
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("SFSC_", "SFSD_"))
    }
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    path = os.pathsep.join(filter(None, [str(REPOSITORY), inherited.get("PYTHONPATH")]))
    ours = {"PYTHONPATH": path, "PYTHONUTF8": "1", "PYTHONPYCACHEPREFIX": str(BYTECODE)}
    return inherited | ours | dict(own)


def run(
    program: str,
    arguments: tuple[str | Path, ...],
    own: Mapping[str, str],
    *,
    stdin: bytes = b"",
    cwd: Path | None = None,
    seconds: float = COMMAND_SECONDS,
) -> Result:
    """Run `program` until it exits. Raises `subprocess.TimeoutExpired` after `seconds`."""
    words, variables = tuple(map(str, arguments)), environment(own)
    if forks is not None and forks.serves(words, variables):
        code, stdout, stderr = forks.run(program, words, variables, stdin, cwd, seconds)
    else:
        done = subprocess.run(
            [*command(program), *words],
            input=stdin,
            capture_output=True,
            env=variables,
            cwd=cwd,
            timeout=seconds,
            check=False,
            start_new_session=True,  # without a terminal, which it could ask
        )
        code, stdout, stderr = done.returncode, done.stdout, done.stderr
    return Result((program, *words), code, stdout, stderr.decode(errors="replace"))


@dataclass
class Daemon(AbstractContextManager["Daemon"]):
    """One ``sfsd`` over `root`, reachable at `address` (``HOST:PORT``) while it runs.

    The first start takes a free port, and later ones reuse it, so that clients find the daemon.
    As a context manager it starts the daemon, and stops it at the end. `program` replaces ``sfsd``.
    """

    root: Path
    address: str = "127.0.0.1:0"
    program: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | Forked | None = field(default=None, init=False)

    @property
    def _environment(self) -> dict[str, str]:
        return {"SFSD_ROOT": str(self.root)}

    @property
    def log_path(self) -> Path:
        """The output of the daemon over all starts."""
        return self.root.with_name(self.root.name + ".output")

    def run(
        self, *arguments: str | Path, code: int = 0, seconds: float = COMMAND_SECONDS
    ) -> Result:
        """Run ``sfsd ARGUMENTS``. Raises `CommandFailed` unless its exit code is `code`."""
        return run("sfsd", arguments, self._environment, seconds=seconds).expect(code)

    def init(self) -> None:
        """Create the root."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.run("init")

    def start(self) -> Self:
        """Start serving; return when connections are accepted. Raises `CommandFailed`."""
        if self.process is not None:
            raise RuntimeError("already running")
        ready = self.root.with_name(self.root.name + ".ready")
        # In place: on a full disk, a new file could not be made.
        with suppress(FileNotFoundError), ready.open("r+b") as file:
            file.write(b"\n" * ready.stat().st_size)
        arguments = ["serve", "--listen", self.address, "--ready-file", str(ready)]
        variables = environment(self._environment)
        with self.log_path.open("ab") as output, open(os.devnull, "rb") as nothing:
            if not self.program and forks is not None and forks.serves(arguments, variables):
                streams = (nothing.fileno(), output.fileno(), output.fileno())
                self.process = forks.start("sfsd", arguments, variables, streams)
            else:
                self.process = subprocess.Popen(
                    [*(self.program or command("sfsd")), *arguments],
                    stdin=nothing,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=variables,
                )
        self.address = self._await(ready)
        return self

    def _await(self, ready: Path) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if ready.exists() and (address := ready.read_text().strip()):
                return address
            if self.process is None or self.process.poll() is not None:
                break
            time.sleep(0.01)
        output = self.log_path.read_text(errors="replace")[-4000:]
        code = self.kill()
        raise CommandFailed(f"sfsd serve did not become ready (exit {code})\n{output}")

    def stop(self) -> int:
        """Send SIGTERM and return the exit code. Raises `subprocess.TimeoutExpired`."""
        process = self._running()
        process.terminate()
        code = process.wait(STOP_SECONDS)
        self.process = None
        return code

    def kill(self) -> int:
        """Send SIGKILL and return the exit code; like a power cut, except for the page cache."""
        process = self._running()
        process.kill()
        code = process.wait(STOP_SECONDS)
        self.process = None
        return code

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for a daemon that exits by itself; return its exit code."""
        code = self._running().wait(seconds)
        self.process = None
        return code

    def _running(self) -> subprocess.Popen[bytes] | Forked:
        if self.process is None:
            raise RuntimeError("not running")
        return self.process

    def add_user(self, name: str) -> str:
        """Add a user and return the invitation."""
        return self.run("user", "add", name).text.strip()

    def client(self, name: str, home: Path, *options: str) -> Client:
        """Invite the user `name` and enrol the account in `home`."""
        client = Client(home)
        client.run("init", "-", *options, stdin=self.add_user(name).encode() + b"\n")
        return client

    def __enter__(self) -> Self:
        return self if self.process is not None else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process is None:
            return
        if error is not None:
            self.kill()
        elif (code := self.stop()) != 0 and os.name != "nt":
            raise CommandFailed(f"sfsd serve: exit {code} after SIGTERM")


@dataclass
class Client:
    """One user on one machine: ``sfsc`` over `home`."""

    home: Path
    passphrase: str = PASSPHRASE

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of ``sfsc``; the passphrase only if the keyring has one."""
        own = {"SFSC_HOME": str(self.home)}
        return own if self._is_unlocked() else own | {"SFSC_PASSPHRASE": self.passphrase}

    def _is_unlocked(self) -> bool:
        """Whether there is a keyring without a passphrase: byte 13 of the file, docs/format.md."""
        try:
            with (self.home / "keyring").open("rb") as file:
                return file.read(14)[13:] == b"\0"
        except OSError:  # a path that cannot be opened: for the command to report
            return False

    def run(
        self,
        *arguments: str | Path,
        code: int = 0,
        stdin: bytes = b"",
        cwd: Path | None = None,
        seconds: float = COMMAND_SECONDS,
    ) -> Result:
        """Run ``sfsc ARGUMENTS``. Raises `CommandFailed` unless its exit code is `code`."""
        variables = self.variables
        if arguments[:2] in (("key", "backup"), ("key", "export")):
            variables["SFSC_PASSPHRASE"] = self.passphrase  # of the file to be written
        return run("sfsc", arguments, variables, stdin=stdin, cwd=cwd, seconds=seconds).expect(code)

    def start(self, *arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        """Start ``sfsc ARGUMENTS`` with pipes, for callers that feed it slowly or kill it."""
        return subprocess.Popen(
            [*command("sfsc"), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(self.variables),
            cwd=cwd,
        )
