"""What a person or a script sees: answers on stdout, everything else on stderr.

Text from elsewhere (names, what a server says) passes through `printable` on its way to a terminal,
so that nobody else's bytes move a cursor, change a title or hide what was said.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from sfsc.errors import KeyringError, SfscError, UsageError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
# Format characters (Cf) hold the bidirectional overrides, which make one name look like another.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str) -> str:
    """`text` with every control, format, private and unassigned character shown as an escape."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(_escape(char) if _unsafe(char) else char for char in text)


def _unsafe(char: str) -> bool:
    return unicodedata.category(char) in _UNSAFE


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def answer(text: str) -> None:
    """One line of the answer, on stdout. The caller has made foreign text printable."""
    sys.stdout.write(text + "\n")


def answer_json(value: Mapping[str, object]) -> None:
    """One JSON object on one line of stdout; ASCII, so it is safe on any terminal."""
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")


def say(text: str) -> None:
    """One line beside the answer, on stderr."""
    sys.stderr.write(text + "\n")


def report(error: SfscError) -> None:
    """Cause, then hint, on stderr."""
    say(f"sfsc: {printable(error.cause)}")
    if error.hint:
        say(f"hint: {printable(error.hint)}")


def human_size(size: int) -> str:
    """`size` bytes in the largest unit that leaves at least one: ``1.5 MiB``."""
    value = float(size)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes any size")


def human_time(seconds: int) -> str:
    """Unix seconds as ``2026-11-24 09:30:00Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def passphrase_source() -> Callable[[], str] | None:
    """Where a keyring's passphrase comes from: None where the environment names it (the library
    reads that itself), else a prompt, which is shown only when a keyring needs it."""
    if _is_named():
        return None
    return lambda: _prompt("Passphrase: ")


def new_passphrase() -> str | None:
    """A passphrase for a new keyring, typed twice; None where the environment names it.

    Raises `UsageError` when the two differ or nothing was typed.
    """
    if _is_named():
        return None
    first = _prompt("New passphrase: ")
    if not first:
        raise UsageError("an empty passphrase", "say `sfsc init --no-passphrase` if you want none")
    if first != _prompt("Once more: "):
        raise UsageError("the two passphrases differ", "nothing was written; start again")
    return first


def _is_named() -> bool:
    """Whether the environment says what the passphrase is."""
    # Here, not above: it loads the cryptography, which help and mistakes do without.
    from sfsc.home import PASSPHRASE, PASSPHRASE_FILE

    return PASSPHRASE in os.environ or PASSPHRASE_FILE in os.environ


def _prompt(text: str) -> str:
    if not sys.stdin.isatty():
        from sfsc.home import PASSPHRASE, PASSPHRASE_FILE

        hint = f"set {PASSPHRASE} or {PASSPHRASE_FILE}"
        raise KeyringError("a passphrase is needed and there is no terminal", hint)
    return getpass.getpass(text, stream=sys.stderr)
