"""Terminal input and output: results go to stdout, questions to the terminal, the rest to stderr.

With --quiet only results, warnings, errors and questions are left. With --json every line of stdout
and stderr is a JSON object.

A question is asked on the terminal itself, whatever stdin and stderr are, so that
`tar c photos | sfsc put - --name photos.tar` can ask for a passphrase.

Text from elsewhere (names, what a server says) passes through `printable` on its way to a terminal,
so that nobody else's bytes move the cursor, change the title or hide text.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from protocol.codec.standard_streams import print_error
from protocol.codec.tables import error_json
from protocol.codec.terminal_text import counted, printable
from protocol.codec.values import Mutable, Value
from sfsc.atomicfile import sync_to_disk
from sfsc.errors import (
    Damaged,
    IntegrityError,
    KeyringError,
    LocalError,
    NotFound,
    NotRegularFile,
    SfscError,
    UsageError,
)

if TYPE_CHECKING:
    import logging

    from sfsc.cli.progress import ProgressLines

_TRIES: Final = 3


@contextlib.contextmanager
def stdout_errors() -> Iterator[None]:
    """Translate errors of writing to stdout into `LocalError`, as for any other file. A reader that
    has closed its end (`sfsc ls | head`) is no such error: `BrokenPipeError` passes."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise output_error(exc) from exc


def output_error(exc: OSError) -> LocalError:
    """Return the error that says that stdout cannot be written."""
    hint = "the command was carried out; only its output is incomplete"
    return LocalError(f"cannot write to stdout: {exc.strerror}", hint)


def write(text: str) -> None:
    """Write `text` to stdout, without a newline. Raises as `stdout_errors`, which would take longer
    than the writing."""
    for one in _progress:
        if sys.stdout.isatty():
            one.clear()
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise output_error(exc) from exc


def answer(text: str) -> None:
    """Write a line of the result to stdout. The caller has made foreign text printable."""
    write(text + "\n")


def answer_json(value: Value | Mutable | Mapping[str, object]) -> None:
    """Write one JSON object as a line to stdout; in ASCII, which is safe on any terminal."""
    import json  # takes a millisecond, and usage errors and --version do not need it

    shown = value if isinstance(value, Mapping) else fields_of(value)
    write(json.dumps(shown, separators=(",", ":")) + "\n")


def fields_of(value: Value | Mutable) -> dict[str, object]:
    """Return the fields of `value` by name, as --json shows them: bytes in hex."""
    shown = {name: getattr(value, name) for name in value.__struct_fields__}
    return {key: one.hex() if isinstance(one, bytes) else one for key, one in shown.items()}


class Console(Mutable):
    """How this process writes; the options of every command set it.

    `json`: objects instead of text. `quiet`: neither remarks nor confirmations. `verbose`: the
    steps of the work.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False


console: Final = Console()
"""The console of this process, which has one stdout and one stderr."""
_BEGAN: Final = time.monotonic()
_handlers: list[logging.Handler] = []
_progress: list[ProgressLines] = []


def show_progress() -> ProgressLines | None:
    """Return what shows the progress of a long step, until `reset_console`; None with --quiet or
    --json, and if stderr is no terminal."""
    if console.quiet or console.json or not sys.stderr.isatty():
        return None
    from sfsc.cli.progress import progress_lines

    # The warnings of the library are written above the progress, once it is shown.
    if not _progress and (lines := progress_lines(show_library_log)) is not None:
        _progress.append(lines)
    return _progress[0] if _progress else None


def hide_progress() -> None:
    """Remove the progress from the terminal: the command has ended."""
    while _progress:
        _progress.pop().close()


def _print(text: str) -> None:
    """Write a line to stderr, above the progress if that is shown."""
    if _progress:
        _progress[0].above(text)
    else:
        print_error(text)


def say(text: str) -> None:
    """Write a line to stderr: part of a question, which --quiet does not suppress."""
    _print(text)


def note(text: str) -> None:
    """Write a remark or a confirmation to stderr. The caller has made foreign text printable."""
    if not console.quiet and not console.json:
        _print(text)


def warn(message: str, hint: str = "", *, item: str | None = None) -> None:
    """Write a warning to stderr, about the file `item` if one is named."""
    if console.json:
        _say_json("warning", {"message": message, "hint": hint}, item)
        return
    _print(f"sfsc: warning: {printable(message if item is None else f'{item}: {message}')}")
    if hint:
        _print(f"hint: {printable(hint)}")


def report(error: SfscError, item: str | None = None) -> None:
    """Write an error to stderr: that of the command, with its hint, or of its file `item`."""
    if item is None:
        report_failure(error.exit_code, error.cause, error.hint)
        return
    named = error.cause.endswith(f": {item}") or error.cause.startswith(f"{item}: ")
    cause = error.cause if named else f"{item}: {error.cause}"
    if console.json:
        about = {"code": error.exit_code, "message": cause, "hint": error.hint}
        _say_json("error", about, item)
    else:
        _print(f"sfsc: {printable(cause)}")


def report_failure(code: int, cause: str, hint: str = "") -> None:
    """Write the cause and the hint of a failed command with the exit code `code` to stderr."""
    if console.json:
        _print(error_json(code, cause, hint))
        return
    _print(f"sfsc: {printable(cause)}")
    if hint:
        _print(f"hint: {printable(hint)}")


def _say_json(kind: str, about: Mapping[str, object], item: str | None = None) -> None:
    import json

    shown = {kind: about} if item is None else {kind: about, "item": item}
    _print(json.dumps(shown, separators=(",", ":")))


def show_library_log() -> None:
    """Write the warnings of the library as the command writes its own, and with --verbose the steps
    of its work, each with the seconds since the command began. `reset` ends that."""
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if record.levelno >= logging.WARNING:
                warn(message.removeprefix("warning: "))
                return
            seconds = time.monotonic() - _BEGAN
            if console.json:
                _say_json("step", {"message": message, "seconds": round(seconds, 3)})
            else:
                _print(f"{seconds:9.3f} s  {message}")

    logger = logging.getLogger("sfsc")
    logger.setLevel(logging.INFO if console.verbose else logging.WARNING)
    if not _handlers:
        _handlers.append(Handler())
        logger.addHandler(_handlers[0])


def reset_console() -> None:
    """Return to the state at the start of the process, for the next command in it."""
    console.json = console.quiet = console.verbose = False
    hide_progress()
    while _handlers:
        import logging

        logger = logging.getLogger("sfsc")
        logger.removeHandler(_handlers.pop())
        logger.setLevel(logging.NOTSET)


def warn_unstable(name: str) -> None:
    """Warn that the source of a stored file changed each time that it was read."""
    cause = "it changed while it was read; its parts may not match"
    warn(cause, "put it again when nothing writes to it", item=name)


class Failures:
    """Collects the errors of a command on many files: reports each, and sets the exit code.

    A `NotRegularFile` is reported, but does not count as a failure. A damaged version that several
    steps of a command find is reported once.
    """

    def __init__(self) -> None:
        self._count = 0
        self._damaged: set[tuple[str, int]] = set()
        self._worst: SfscError | None = None

    def __call__(self, what: str, error: SfscError) -> None:
        if isinstance(error, Damaged) and error.file_id:
            place = error.file_id, error.version
            if place in self._damaged:
                return
            self._damaged.add(place)
        if isinstance(error, NotRegularFile):
            warn(error.cause, item=what)
            return
        report(error, what)
        self._count += 1
        # An integrity error decides the exit code, otherwise the first error.
        if self._worst is None or isinstance(error, IntegrityError):
            self._worst = error

    @contextlib.contextmanager
    def of_one(self, name: str, names: Sequence[str]) -> Iterator[None]:
        """Take an error that says that there is no such `name`; raise it if that is the only one of
        `names`, since nothing else was done then."""
        try:
            yield
        except (NotFound, UsageError) as exc:
            if len(names) == 1:
                raise
            self(name, exc)

    def check(self) -> None:
        """Raise an error of the class of the worst failure, if there was any."""
        if self._worst is not None:
            cause = f"{counted(self._count, 'item')} failed, the others were done"
            raise type(self._worst)(cause, self._worst.hint)


def passphrase_source(prompt: str = "Passphrase: ") -> Callable[[], str] | None:
    """Return a function that asks for a keyring's passphrase, to be called only if the keyring
    needs one; None if the environment names the passphrase, which the library reads itself."""
    return None if _is_in_environment() else lambda: _prompt(prompt)


def passphrase_source_beside_file() -> Callable[[], str]:
    """Return a function like `passphrase_source`, for a command that locks a new file. The
    passphrase in the environment is that of the file, so the keyring may have none."""
    return passphrase_source() or _from_environment


def _from_environment() -> str:
    from sfsc.keys.home import find_passphrase

    return find_passphrase(None) or ""


def new_passphrase(purpose: str = "") -> str | None:
    """Ask twice for the passphrase of a new keyring, or of what `purpose` (`` for …``) says. Return
    None if the environment names it. Raises as `ask_new_passphrase`."""
    return None if _is_in_environment() else ask_new_passphrase(purpose)


def ask_new_passphrase(purpose: str = "") -> str:
    """Ask twice for a new passphrase, up to three times if the two differ. Warn of a weak one.
    Raises `UsageError` if it is empty, or if the two differ again and again."""
    for _ in range(_TRIES):
        first = _prompt(f"New passphrase{purpose}: ")
        if not first:
            raise UsageError("the passphrase is empty", "use --no-passphrase to have none")
        _warn_if_weak(first)
        if first == _prompt("Repeat the passphrase: "):
            return first
        say("sfsc: the two passphrases differ; type both again")
    raise UsageError("the two passphrases differ", "nothing was written; run the command again")


def _warn_if_weak(passphrase: str) -> None:
    from sfsc.keys.passphrase_strength import is_weak

    if is_weak(passphrase):
        warn(
            "this passphrase is easy to guess for somebody who has your keyring",
            "five words that you draw by lot are hard to guess",
        )


def new_passphrase_source() -> Callable[[], str] | None:
    """Return a function like `new_passphrase`; None if the environment names the passphrase."""
    return None if _is_in_environment() else lambda: new_passphrase() or ""


def _is_in_environment() -> bool:
    from sfsc.keys.home import PASSPHRASE_VARIABLES  # loads the cryptography

    return any(name in os.environ for name in PASSPHRASE_VARIABLES)


def _prompt(text: str) -> str:
    """Read a secret at the terminal. Raises `KeyringError` if there is none."""
    typed = _ask_at_terminal(text, secret=True)
    if typed is None:
        from sfsc.keys.home import PASSPHRASE_HINT

        hint = PASSPHRASE_HINT
        raise KeyringError("a passphrase is needed and there is no terminal", hint)
    return typed


def ask_secret(prompt: str) -> str:
    """Read like `ask`, without showing what is typed."""
    return ask(prompt, secret=True)


def ask(prompt: str, *, secret: bool = False) -> str:
    """Return the next line of stdin if that is a file or a pipe that has one. Otherwise ask for it
    at the terminal; "" if there is none."""
    if not sys.stdin.isatty() and (line := sys.stdin.readline()):
        return line.rstrip("\r\n")
    return _ask_at_terminal(prompt, secret=secret) or ""


def is_interactive() -> bool:
    """Return whether a user can be asked at a terminal."""
    with _open_terminal() as terminal:
        return terminal is not None


def confirmed(question: str) -> bool:
    """Return whether the user at the terminal types `yes`; False if there is no terminal."""
    return ask_user(f"{question} Type yes to do it: ") == "yes"


def ask_user(question: str) -> str:
    """Read a line at the terminal, never from stdin; "" if there is no terminal."""
    return _ask_at_terminal(question, secret=False) or ""


_NAMES: Final = ("CONIN$", "CONOUT$") if sys.platform == "win32" else ("/dev/tty", "/dev/tty")
"""The terminal of this process, for reading and for writing."""


@contextlib.contextmanager
def _open_terminal() -> Iterator[tuple[TextIO, TextIO] | None]:
    """Open the terminal for reading and for writing; None if there is none. After `su -c` or
    `setsid` a process has no terminal of its own, but its stdin may be one."""
    with contextlib.ExitStack() as stack:
        opened = None
        for names in (_NAMES, *_stdin_names()):
            try:
                reading = stack.enter_context(open(names[0], encoding=None))
                writing = stack.enter_context(open(names[1], "w", errors="backslashreplace"))
            except OSError:
                continue
            opened = reading, writing
            break
        yield opened


def _stdin_names() -> list[tuple[str, str]]:
    if sys.platform != "win32" and sys.stdin.isatty():
        with contextlib.suppress(OSError):  # its name may be in another container's /dev
            name = os.ttyname(sys.stdin.fileno())
            return [(name, name)]
    return []


def _ask_at_terminal(prompt: str, *, secret: bool) -> str | None:
    """Show `prompt` on the terminal and return the line that is typed there, without its end; None
    if there is no terminal. Raises `LocalError` if the terminal fails or what is typed is no
    text."""
    for one in _progress:
        one.clear()
    with _open_terminal() as terminal:
        if terminal is None:
            return None
        if secret and sys.platform == "win32":
            import getpass

            return getpass.getpass(prompt)  # reads keys from the console, not stdin
        reading, writing = terminal
        try:
            with contextlib.ExitStack() as stack:
                if secret and sys.platform != "win32":
                    stack.enter_context(_without_echo(reading, writing))
                writing.write(prompt)
                writing.flush()
                return reading.readline().rstrip("\r\n")
        except UnicodeDecodeError as exc:
            cause = "what was typed is not text in the encoding of this terminal"
            raise LocalError(cause, "check the locale: run `locale`") from exc
        except OSError as exc:  # such as EIO in a background process whose shell has ended
            raise LocalError(f"cannot ask at the terminal: {exc.strerror}") from exc


if sys.platform != "win32":

    @contextlib.contextmanager
    def _without_echo(reading: TextIO, writing: TextIO) -> Iterator[None]:
        """Do not show what is typed, and end the line that the user has not seen."""
        import termios

        descriptor = reading.fileno()
        try:
            before = termios.tcgetattr(descriptor)
            silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, silent)
        except termios.error as exc:
            raise OSError(*exc.args) from exc
        try:
            yield
        finally:
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
            writing.write("\n")
            writing.flush()


def require_terminal(*, yes: bool) -> None:
    """Raise `UsageError` if nobody can be asked, and nobody said `yes` in advance."""
    if not yes and not is_interactive():
        raise UsageError("this must be confirmed, and there is no terminal", "use --yes")


def require_yes(question: str, *, yes: bool) -> None:
    """Ask the user at the terminal, unless the user said `yes` in advance. Raises `UsageError` if
    the answer is not yes."""
    require_terminal(yes=yes)
    if not yes and not confirmed(question):
        raise UsageError("nothing was done", "use --yes to confirm in advance")


def qr(text: str) -> str:
    """Return `text` as a QR code of half blocks, dark on light."""
    import segno

    drawn = io.StringIO()
    # The smallest code that holds the text; with what room is left, segno corrects more errors.
    segno.make(text, error="l", micro=False).terminal(drawn, compact=True)
    return drawn.getvalue()


def qr_image(text: str, suffix: str) -> bytes | None:
    """Return `text` as a QR code in an image file; None unless `suffix` is ``.png`` or ``.svg``."""
    if suffix not in (".png", ".svg"):
        return None
    import segno

    drawn = io.BytesIO()
    segno.make(text, error="l", micro=False).save(drawn, kind=suffix[1:], scale=8)
    return drawn.getvalue()


def write_private(path: Path, data: bytes) -> None:
    """Write `data` to a new file (mode 0600) and sync it; `-` is stdout. Raises `LocalError`, also
    if the file exists."""
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
            path.unlink()  # half a key is useless, and would make the next attempt fail
            raise
    except OSError as exc:
        raise LocalError(f"cannot write {path}: {exc.strerror}", "use another file name") from exc
