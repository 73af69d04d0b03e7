"""Real programs in processes of their own: what end-to-end tests, the benchmark and the demo drive.

Nothing here reaches into the product. A `Daemon` is ``sfsd`` over one root, a `Client` is ``sfsc``
over one home; both learn where to work, and the passphrase, from environment variables.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

REPOSITORY = Path(__file__).resolve().parent.parent
BYTECODE = Path(sys.prefix) / "bytecode"
"""Out of the tree, and where nobody else may write."""
PASSPHRASE = "correct horse battery staple"
START_SECONDS = 20.0
STOP_SECONDS = 15.0
COMMAND_SECONDS = 110.0


class CommandFailed(AssertionError):
    """A program ended with another exit code than the caller expected."""


@dataclass(frozen=True)
class Result:
    """How a program ended. `stdout` is exact; `stderr` is for people and decoded."""

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
        """Itself, when it ended with `code`. Raises `CommandFailed`."""
        if self.code != code:
            head = f"{' '.join(self.arguments)}: exit {self.code}, not {code}"
            stdout = self.stdout[-2000:].decode(errors="replace")
            raise CommandFailed(f"{head}\n--- stdout\n{stdout}\n--- stderr\n{self.stderr[-4000:]}")
        return self


def command(program: str) -> list[str]:
    """How to start `program` (``sfsd`` or ``sfsc``): the installed script, else this tree."""
    script = Path(sys.executable).with_name(program + (".exe" if os.name == "nt" else ""))
    if script.exists():
        return [str(script)]
    start = f"import sys; from {program}.cli import main; sys.exit(main())"
    return [sys.executable, "-c", start]


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without a developer's own sfs settings, then `own`.

    Programs are compiled once, as they are where they are installed: compiling them anew in each
    process would take longer than most of what they do.
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
    """Run `program` to its end. Raises `subprocess.TimeoutExpired` after `seconds`."""
    words = tuple(map(str, arguments))
    done = subprocess.run(
        [*command(program), *words],
        input=stdin,
        capture_output=True,
        env=environment(own),
        cwd=cwd,
        timeout=seconds,
        check=False,
    )
    stderr = done.stderr.decode(errors="replace")
    return Result((program, *words), done.returncode, done.stdout, stderr)


@dataclass
class Daemon(AbstractContextManager["Daemon"]):
    """One ``sfsd`` over `root`, reachable at `address` (``HOST:PORT``) while it runs.

    The first start takes a free port, later ones the same port again, so that clients find it.
    As a context manager it starts, and stops what still runs. `program` serves in the place of
    ``sfsd``.
    """

    root: Path
    address: str = "127.0.0.1:0"
    program: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def _environment(self) -> dict[str, str]:
        return {"SFSD_ROOT": str(self.root)}

    @property
    def log_path(self) -> Path:
        """What the daemon printed, over all starts."""
        return self.root.with_name(self.root.name + ".output")

    def run(
        self, *arguments: str | Path, code: int = 0, seconds: float = COMMAND_SECONDS
    ) -> Result:
        """Run ``sfsd ARGUMENTS``. Raises `CommandFailed` unless it ends with `code`."""
        return run("sfsd", arguments, self._environment, seconds=seconds).expect(code)

    def init(self) -> None:
        """Make the root."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.run("init")

    def start(self) -> Self:
        """Serve, and return once connections are accepted. Raises `CommandFailed`."""
        if self.process is not None:
            raise RuntimeError("already running")
        ready = self.root.with_name(self.root.name + ".ready")
        ready.unlink(missing_ok=True)
        arguments = ["serve", "--listen", self.address, "--ready-file", str(ready)]
        with self.log_path.open("ab") as output:
            self.process = subprocess.Popen(
                [*(self.program or command("sfsd")), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(self._environment),
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
        """SIGTERM, then the exit code. Raises `subprocess.TimeoutExpired` when it does not stop."""
        process = self._running()
        process.terminate()
        code = process.wait(STOP_SECONDS)
        self.process = None
        return code

    def kill(self) -> int:
        """SIGKILL (what a power cut leaves, but for the page cache), then the exit code."""
        process = self._running()
        process.kill()
        code = process.wait(STOP_SECONDS)
        self.process = None
        return code

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code of a daemon that ends by itself."""
        code = self._running().wait(seconds)
        self.process = None
        return code

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise RuntimeError("not running")
        return self.process

    def add_user(self, name: str) -> str:
        """The invitation of a new user, as the operator would send it."""
        return self.run("user", "add", name).text.strip()

    def client(self, name: str, home: Path, *options: str) -> Client:
        """Invite `name` and enrol him from `home`."""
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
    def _environment(self) -> dict[str, str]:
        return {"SFSC_HOME": str(self.home), "SFSC_PASSPHRASE": self.passphrase}

    def run(
        self,
        *arguments: str | Path,
        code: int = 0,
        stdin: bytes = b"",
        cwd: Path | None = None,
        seconds: float = COMMAND_SECONDS,
    ) -> Result:
        """Run ``sfsc ARGUMENTS``. Raises `CommandFailed` unless it ends with `code`."""
        return run(
            "sfsc", arguments, self._environment, stdin=stdin, cwd=cwd, seconds=seconds
        ).expect(code)

    def start(self, *arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        """Start ``sfsc ARGUMENTS`` with pipes, for a caller that feeds it slowly or kills it."""
        return subprocess.Popen(
            [*command("sfsc"), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(self._environment),
            cwd=cwd,
        )
