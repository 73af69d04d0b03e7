"""Every command of the README, the guide and the page on the library does what the page says.

A real daemon serves them. A page is run from its first command to its last. Commands are lines that
start with ``$`` in fenced ``console`` or ``sh`` blocks; ``python`` blocks are run as well. The word
after the language names the machine; without one it is alice's laptop. Placeholders are filled in
with what earlier commands printed. A command has to end with exit code 0, or with the one that the
page states after it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness import PASSPHRASE, REPOSITORY, Daemon, command, environment

PAGES = ("README.md", "docs/guide.md", "docs/library.md")
NOT_RUN = {
    "make demo": "takes a minute and stores 256 MiB",
    "make test": "runs this test",
    "sudo /usr/bin/python3 -m venv /opt/sfs": "changes the machine, as root",
    "sudo /opt/sfs/bin/pip install .": "changes the machine, as root",
    "python3 -m venv ~/sfs": "an installation takes too long",
    "~/sfs/bin/pip install .": "an installation takes too long",
    "pipx install .": "an installation takes too long, and pipx may be missing",
    "sfsc agent start --timeout 8h": "the keyrings of the guide have no passphrase here",
    "uv tool install .": "an installation takes too long, and uv may be missing",
}
"""Commands of the pages that no test can run, and why."""

LAPTOP = "alice"
SAMPLES = ("report.pdf", "notes.txt", "work/plan.txt", *(f"photos/2026/{x}.jpg" for x in "abc"))
"""Files that every machine has."""
CARRIED = {"sfs-keys": "tablet", "alice.checkpoint": "bob"}
"""Files that a person takes to another machine."""
PRINTED = {
    "sfsc key show": {"FINGERPRINT": r"^fingerprint +([0-9a-f]{64})$"},
    "sfsc key recovery": {
        "<ACCOUNT>": r"^sfs account\n((?:[A-Z2-7-]+\n)+)sfs",
        "<CODE>": r"^sfs recovery code\n((?:[A-Z2-7-]+\n)+)",
    },
    "sfsc device list": {"DEVICE": r"^([0-9a-f]{8})\t(?!this machine)"},
}
"""What the output of a command has for later ones, by the placeholder that it is for."""
TYPED = {
    "sfsc init --recovery": "<ACCOUNT><CODE>",
    "sfsc rotate --recovery --plan": "<CODE>",
    "sfsc rotate --recovery --yes": "<CODE>",
}
"""What the user types when a command asks."""
UNLOCKED = ("docs/guide.md", "docs/library.md")
"""Pages whose keyrings have no passphrase here: deriving the key from it takes as long as the rest
of a short command. README.md is run with a passphrase."""
LOCKING = ("sfsc init -", "sfsc key backup ", "sfsc key restore ")
"""Commands that choose a passphrase begin so."""
FILE_WRITING = ("sfsc key export ",)
"""Commands that lock a file with the passphrase in the environment begin so."""
SECONDS = 60.0


@dataclass(frozen=True)
class Step:
    """One command of a page, or one Python program. `place` is for messages."""

    place: str
    machine: str
    text: str
    is_program: bool = False


def steps_of(page: str) -> list[Step]:
    """Return what is to be run on `page`, in order."""
    steps: list[Step] = []
    language, machine, block = "", "", list[str]()
    for number, line in enumerate((REPOSITORY / page).read_text("utf-8").splitlines(), 1):
        text, place = line.strip(), f"{page}:{number}"
        if text.startswith("```") and language:
            if language == "python":
                steps.append(Step(place, machine, "\n".join(block), is_program=True))
            language, block = "", []
        elif text.startswith("```"):
            words = text.removeprefix("```").split()
            language, machine, *_ = [*words, *["text", LAPTOP][len(words) :]]
        elif language in ("console", "sh") and text.startswith("$ "):
            steps.append(Step(place, machine, text.removeprefix("$ ")))
        elif language:
            block.append(line)
    return steps


def stated_code(text: str) -> int:
    """Return the exit code that a comment of the command states, else 0."""
    stated = re.search(r"#.*exit code (\d)", text)
    return int(stated[1]) if stated else 0


@dataclass
class World:
    """A daemon, and machines with a home folder each."""

    folder: Path
    daemon: Daemon
    unlocked: bool
    printed: dict[str, str] = field(default_factory=dict)

    def run(self, machine: str, text: str) -> None:
        """Run a line of shell. Raises `AssertionError` if it ends with another exit code."""
        if text.startswith("sfsd serve "):  # on a free port, and until the end of the test
            self.daemon.start()
            return
        typed = TYPED.get(text, self._invitation(machine) if text == "sfsc init -" else "")
        shell = self._filled_in(text.replace(" --public files.example.lan:7373", ""))
        if self.unlocked and text.startswith(LOCKING):
            shell += " --no-passphrase"
        printed = self._execute(machine, ["bash", "-o", "pipefail", "-c", shell], typed, text)
        for placeholder, pattern in PRINTED.get(text, {}).items():
            self.printed[placeholder] = re.findall(pattern, printed, re.MULTILINE)[0]
        if text.startswith("sfsd user add "):
            self.printed["INVITATION"] = printed
        for name, other in CARRIED.items():
            if machine != other and (made := self._files(machine) / name).exists():
                shutil.copy(made, self._files(other))

    def run_program(self, machine: str, source: str) -> None:
        """Run a Python program. Raises `AssertionError` if it fails."""
        self._execute(machine, [sys.executable, "-c", source], "", "")

    def _execute(self, machine: str, words: list[str], typed: str, text: str) -> str:
        files = self._files(machine)
        programs = Path(command("sfsc")[0]).parent
        own = environment(
            {
                "HOME": str(files.parent),
                "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
                "SFSD_ROOT": str(self.daemon.root),
            }
        )
        own.pop("XDG_DATA_HOME", None)
        if not self.unlocked or text.startswith(FILE_WRITING):
            own["SFSC_PASSPHRASE"] = PASSPHRASE
        done = subprocess.run(
            words,
            input=self._filled_in(typed).encode(),
            capture_output=True,
            env=own,
            cwd=files,
            timeout=SECONDS,
            check=False,
        )
        stdout, stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        ended = f"exit {done.returncode}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        assert done.returncode == stated_code(text), ended
        return stdout

    def _files(self, machine: str) -> Path:
        """Return the working folder of `machine`, with the samples in it."""
        files = self.folder / machine / "files"
        if not files.exists():
            for name in SAMPLES:
                (files / name).parent.mkdir(parents=True, exist_ok=True)
                (files / name).write_text(f"{name} of {machine}\n")
        return files

    def _filled_in(self, text: str) -> str:
        for placeholder, value in self.printed.items():
            text = text.replace(placeholder, value)
        return text

    def _invitation(self, user: str) -> str:
        return self.printed.pop("INVITATION", None) or f"{self.daemon.add_user(user)}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the pages are written for a Linux shell")
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page(page: str, tmp_path: Path) -> None:
    steps = steps_of(page)
    assert steps
    world = World(tmp_path, Daemon(tmp_path / "operator" / "sfs-root"), page in UNLOCKED)
    try:
        if all(not step.text.startswith("sfsd init ") for step in steps):
            # The reader of this page has a server already, and a colleague who uses it.
            world.daemon.init()
            world.daemon.start()
            world.run("bob", "sfsc init -")
        for step in steps:
            try:
                if step.is_program:
                    world.run_program(step.machine, step.text)
                elif step.text not in NOT_RUN:
                    world.run(step.machine, step.text)
            except AssertionError as exc:
                pytest.fail(f"{step.place}: {step.text}\n{exc}", pytrace=False)
    finally:
        if world.daemon.process is not None:
            world.daemon.stop()


def test_every_exception_is_on_a_page() -> None:
    stated = {step.text for page in PAGES for step in steps_of(page)}
    assert set(NOT_RUN) <= stated
