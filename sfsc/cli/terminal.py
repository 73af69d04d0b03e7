"""What a person or a script sees: answers on stdout, everything else on stderr.

Text from elsewhere (names, what a server says) passes through `printable` on its way to a terminal,
so that nobody else's bytes move a cursor, change a title or hide what was said.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from protocol.codec.terminal_text import human_time, printable
from sfsc.atomicfile import sync_to_disk
from sfsc.closing import Closing
from sfsc.errors import (
    IntegrityError,
    KeyringError,
    LocalError,
    NotRegularFile,
    SfscError,
    UsageError,
)

if TYPE_CHECKING:
    import rich.progress

SHOWN_AFTER: Final = 1.0
"""Seconds before a bar appears."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Around what writes to stdout: a fault of it is a `LocalError`, as with any other file. That
    whoever read the answer has left (`BrokenPipeError`) is none: `sfsc ls | head`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        hint = "what was done is done; only its answer is not whole"
        raise LocalError(f"cannot write to stdout: {exc.strerror}", hint) from exc


def write(text: str) -> None:
    """Text as it is, on stdout."""
    with answering():
        sys.stdout.write(text)


def answer(text: str) -> None:
    """One line of the answer, on stdout. The caller has made foreign text printable."""
    write(text + "\n")


def answer_json(value: Mapping[str, object]) -> None:
    """One JSON object on one line of stdout; ASCII, so it is safe on any terminal."""
    import json  # a millisecond, which no mistake and no --version is to pay

    write(json.dumps(value, separators=(",", ":")) + "\n")


def say(text: str) -> None:
    """One line beside the answer, on stderr."""
    sys.stderr.write(text + "\n")


def report(error: SfscError) -> None:
    """Cause, then hint, on stderr."""
    say(f"sfsc: {printable(error.cause)}")
    if error.hint:
        say(f"hint: {printable(error.hint)}")


class Failures:
    """Of many files, those that could not be done: each is reported, and the exit code remembers.

    A `NotRegularFile` file is reported too, but is no failure.
    """

    def __init__(self) -> None:
        self._count = 0
        self._worst: SfscError | None = None

    def __call__(self, what: str, error: SfscError) -> None:
        say(f"sfsc: {printable(what)}: {printable(error.cause)}")
        if isinstance(error, NotRegularFile):
            return
        self._count += 1
        # Tampering outweighs all else, else the first counts.
        if self._worst is None or isinstance(error, IntegrityError):
            self._worst = error

    def check(self) -> None:
        """Raise an error of the worst one's class, if there was any."""
        if self._worst is not None:
            cause = f"{self._count} could not be done, the others were"
            raise type(self._worst)(cause, self._worst.hint)


class Bar(Closing):
    """A line on stderr that says how far a long step is: on a terminal, after its first second.

    A context; what `sfsc.connect` takes as `progress`.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown and sys.stderr.isatty()
        self._begin = time.monotonic()
        self._expected = 0
        self._done = 0
        self._bar: rich.progress.Progress | None = None

    def expect(self, size: int) -> None:
        """`size` more bytes are to be moved."""
        self._expected += size

    def advance(self, size: int) -> None:
        """`size` more bytes were moved."""
        self._done += size
        if self._bar is None and self._shown and time.monotonic() - self._begin > SHOWN_AFTER:
            self._bar = _bar()
            self._bar.start()
            self._bar.add_task("", total=None)
        if self._bar is not None:
            # Ciphertext is a little longer than what it was made from.
            self._bar.update(self._bar.task_ids[0], completed=self._done)
            if self._expected:
                total = max(self._expected, self._done)
                self._bar.update(self._bar.task_ids[0], total=total)

    def close(self) -> None:
        """Leave the line to others. Twice does no harm."""
        if self._bar is not None:
            self._bar.stop()


def _bar() -> rich.progress.Progress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # Answers on the same terminal go above the bar; in a pipe they stay what they are.
        redirect_stdout=sys.stdout.isatty(),
    )


def human_size(size: int) -> str:
    """`size` bytes in the largest unit that leaves at least one: ``1.5 MiB``."""
    value = float(size)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes any size")


def until(expires: int) -> str:
    """`` until 2027-01-31 23:59:59Z`` for a grant that ends, nothing for one that does not (0)."""
    return f" until {human_time(expires)}" if expires else ""


def passphrase_source(prompt: str = "Passphrase: ") -> Callable[[], str] | None:
    """Where a keyring's passphrase comes from: None where the environment names it (the library
    reads that itself), else a prompt, which is shown only when a keyring needs it."""
    if _is_named():
        return None
    return lambda: _prompt(prompt)


def ask_secret(prompt: str) -> str:
    """A secret that is typed, or one line of stdin where that is no terminal."""
    if sys.stdin.isatty():
        return getpass.getpass(prompt, stream=sys.stderr)
    return sys.stdin.readline().rstrip("\r\n")


def is_interactive() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(prompt: str) -> str:
    """A line that is typed, or one of stdin where that is no terminal."""
    if sys.stdin.isatty():
        sys.stderr.write(prompt)
        sys.stderr.flush()
    return sys.stdin.readline().rstrip("\r\n")


def confirmed(question: str) -> bool:
    """Whether a person at a terminal answers `yes`; where there is none, nobody does."""
    return sys.stdin.isatty() and ask(f"{question} Type yes to do it: ") == "yes"


def qr(text: str) -> str:
    """`text` as a QR code of half blocks, dark on light."""
    import segno

    drawn = io.StringIO()
    segno.make(text, error="m", micro=False).terminal(drawn, compact=True)
    return drawn.getvalue()


def write_private(path: Path, data: bytes) -> None:
    """A new file (0600) with `data`, synced; `-` is stdout. Raises `LocalError`, also where there
    is one already."""
    if str(path) == "-":
        write(data.decode())
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                sync_to_disk(file.fileno())
        except BaseException:
            path.unlink()  # half of a key is none, and would stand in the way of the next try
            raise
    except OSError as exc:
        raise LocalError(f"cannot write {path}: {exc.strerror}", "name another file") from exc


def new_passphrase(of: str = "") -> str | None:
    """A passphrase for a new keyring, or for what `of` says, typed twice; None where the
    environment names it.

    Raises `UsageError` when the two differ or nothing was typed.
    """
    if _is_named():
        return None
    first = _prompt(f"New passphrase{of}: ")
    if not first:
        raise UsageError("an empty passphrase", "say --no-passphrase if you want none")
    if first != _prompt("Once more: "):
        raise UsageError("the two passphrases differ", "nothing was written; start again")
    return first


def _is_named() -> bool:
    """Whether the environment says what the passphrase is."""
    # Here, not above: it loads the cryptography, which help and mistakes do without.
    from sfsc.keys.home import PASSPHRASE, PASSPHRASE_FILE

    return PASSPHRASE in os.environ or PASSPHRASE_FILE in os.environ


def _prompt(text: str) -> str:
    if not sys.stdin.isatty():
        from sfsc.keys.home import PASSPHRASE, PASSPHRASE_FILE

        hint = f"set {PASSPHRASE} or {PASSPHRASE_FILE}"
        raise KeyringError("a passphrase is needed and there is no terminal", hint)
    return getpass.getpass(text, stream=sys.stderr)
