"""``make recording``: docs/first-session.txt, the first session of README.md on a real terminal.

Each command of that section is run by a shell on a pseudo-terminal of 80 columns, against a real
daemon, and the answers to its questions are typed. The recording has what the terminal showed, and
the time at which each command began. Codes and tokens in it are those of a store that was deleted.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import PASSPHRASE, REPOSITORY, command, environment
from tests.terminal import OWN_TERMINAL

RECORDING = REPOSITORY / "docs" / "first-session.txt"
SAMPLES = ("report.pdf", "notes.txt", "work/plan.txt", *(f"photos/2026/{x}.jpg" for x in "abc"))
COLUMNS, ROWS = 80, 24
_SECONDS = 60.0
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")


class RecordingError(Exception):
    """A command failed, or asked something that nobody answers."""


def commands_of(readme: str) -> list[tuple[str, str]]:
    """Return (machine, command) of each line with ``$`` in the section "First session"."""
    section = readme.partition("\n## First session\n")[2].partition("\n## ")[0]
    found, machine = [], "alice"
    for line in section.splitlines():
        if line.startswith("```"):
            machine = "operator" if line.endswith(" operator") else "alice"
        elif line.startswith("$ "):
            found.append((machine, line.removeprefix("$ ").partition("  #")[0].rstrip()))
    return found


@dataclass
class Terminal:
    """A pseudo-terminal; `screen` is what it has shown since the last command began."""

    descriptor: int
    screen: str = ""
    answered: int = 0
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    answers: list[tuple[str, str]] = field(default_factory=list)

    def read(self, seconds: float) -> bool:
        """Read what is shown within `seconds`, and type the answer to a question. Return False at
        the end."""
        if not select.select([self.descriptor], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.descriptor, 65_536)
        except OSError:  # Linux: the last process has closed its end
            return False
        self.screen += self.decoder.decode(data)
        if self.answers and self.answers[0][0] in self.screen[self.answered :]:
            self.answered = len(self.screen)
            os.write(self.descriptor, self.answers.pop(0)[1].encode() + b"\n")
        return bool(data)


def run(text: str, folder: Path, variables: dict[str, str], answers: list[tuple[str, str]]) -> str:
    """Run a line of shell and return what its terminal showed. Raises `RecordingError`."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        ["/bin/sh", "-c", OWN_TERMINAL, os.ttyname(theirs), "bash", "-c", text],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=environment({"TERM": "xterm", **variables}),
        start_new_session=True,
    )
    os.close(theirs)
    terminal, ends = Terminal(ours, answers=answers), time.monotonic() + _SECONDS
    while process.poll() is None:
        terminal.read(0.05)
        if time.monotonic() > ends:
            os.killpg(process.pid, signal.SIGKILL)
            raise RecordingError(f"{text}: still runs after {_SECONDS:g} s\n{terminal.screen}")
    while select.select([ours], [], [], 0.05)[0] and terminal.read(0.0):
        pass
    os.close(ours)
    if process.returncode or terminal.answers:
        raise RecordingError(f"{text}: exit {process.returncode}\n{terminal.screen}")
    return terminal.screen


def shown(screen: str) -> list[str]:
    """Return the lines of a screen as they are in the end: without colours, and without what was
    written over."""
    text = _ESCAPES.sub("", screen).replace("\r\n", "\n")
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def record(folder: Path) -> list[str]:
    """Run the session and return the lines of the recording."""
    files = folder / "files"
    for name in SAMPLES:
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text(f"{name} of alice\n")
    programs = Path(command("sfsc")[0]).parent
    variables = {
        "HOME": str(folder),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "SFSD_ROOT": str(folder / "sfs-root"),
        "SFSC_HOME": str(folder / "home"),
        "SFSC_AGENT": "0",
    }
    lines: list[str] = []
    began, invitation, daemon = time.monotonic(), "", None
    try:
        for machine, text in commands_of((REPOSITORY / "README.md").read_text("utf-8")):
            line = text.replace("files.example.lan:7373", "127.0.0.1:7373")
            line = line.replace("0.0.0.0:7373", "127.0.0.1:7373")
            lines += ["", f"[{time.monotonic() - began:5.1f} s] {machine}$ {text}"]
            if line.startswith("sfsd serve"):
                served = [command("sfsd")[0], *line.removesuffix("&").split()[1:]]
                served = [word.replace("~", str(folder)) for word in served]
                ready = folder / "ready"
                daemon = subprocess.Popen(
                    [*served, "--ready-file", str(ready)],
                    stderr=subprocess.DEVNULL,
                    env=environment(variables),
                )
                while not ready.exists():
                    time.sleep(0.05)
                continue
            asked = "assphrase"
            answers = [(asked, PASSPHRASE)] if machine == "alice" else []
            if text == "sfsc init -":
                answers = [("nvitation", invitation), (asked, PASSPHRASE), (asked, PASSPHRASE)]
            screen = run(line, files, variables, answers)
            if text.startswith("sfsd user add"):
                invitation = shown(screen)[-1]
            lines += shown(screen)
    finally:
        if daemon is not None:
            daemon.terminate()
            daemon.wait()
    lines += ["", f"[{time.monotonic() - began:5.1f} s] done"]
    return [line.replace(str(folder), "~") for line in lines]


def main() -> int:
    """Write the recording."""
    with tempfile.TemporaryDirectory() as folder:
        lines = record(Path(folder))
    head = "The first session of README.md, as `make recording` has shown it."
    RECORDING.write_text("\n".join([head, *lines]) + "\n", "utf-8")
    sys.stdout.write(f"{RECORDING}: {lines[-1]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
