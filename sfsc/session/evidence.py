"""Evidence that a server has lied, kept in files for people to read.

A file in HOME/evidence holds the finding, the signed texts that it rests on, and what the server
has answered last, with the questions. Two signed texts that cannot both be true prove to everybody
that there were two histories: two checkpoints signed with the log's key, one checkpoint and a
signed record that quotes another, or two server statements with one number. A server accepts a
record only if the checkpoint in it is one of its log. Other answers are not signed by the server;
they show people what was answered.

The files have mode 0600 and are never removed by sfsc. They hold nothing that the server does not
know. At most `MAX_FILES` have answers without two such texts, so that a server cannot fill a disk.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from protocol.buffers.file_status import exists
from protocol.codec.terminal_text import printable
from protocol.wire.messages import Reply, Request, encode
from sfsc.atomicfile import make_folder, replace_file
from sfsc.errors import IntegrityError, LocalError
from sfsc.trust.state import EVIDENCE

MAX_FILES: Final = 16
MAX_SHOWN: Final = 4 << 20
"""Most bytes of answers in a file, before they are written as base64."""
_RECENT: Final = 1 << 20
_REQUEST: Final = 1000
"""Most characters of a request in a file."""
_CONFLICT: Final = "conflict"
_ANSWERS: Final = "answers"
"""First parts of the names of files with and without two signed texts."""

Asked = Request | type[Request] | None
"""A request, or its type only if it carries contents; None for the greeting."""


class Answers:
    """The newest answers of a server, over all connections of a session: the last one, and those
    before it up to 1 MiB."""

    def __init__(self) -> None:
        self._items: deque[tuple[Asked, Reply, int]] = deque()
        self._size = 0

    def add(self, asked: Asked, reply: Reply, size: int) -> None:
        """Take an answer that came as about `size` bytes."""
        self._items.append((asked, reply, size))
        self._size += size
        while self._size > _RECENT and len(self._items) > 1:
            self._size -= self._items.popleft()[-1]

    def newest(self) -> Iterator[tuple[str, bytes]]:
        """Yield, newest first, a line that names the answer, and the body of its frame."""
        for asked, reply, _ in reversed(self._items):
            yield shown_answer(asked, reply)


def shown_answer(asked: Asked, reply: Reply) -> tuple[str, bytes]:
    """Return a line that names an answer, and the body of a frame with it (msgpack)."""
    request = asked.__name__ if isinstance(asked, type) else repr(asked)
    name = f"{type(reply).__name__}, the answer to {printable(request)[:_REQUEST]}"
    return name if asked is not None else type(reply).__name__, b"".join(encode(0, reply))


def keep(home: Path, about: str, found: IntegrityError, answers: Answers, signed: str = "") -> None:
    """Save what proves `found` in a new file, and name that in its `evidence` and its hint. If that
    fails, the hint says why: it must not hide the finding.

    `about` names the server and the user. `signed` is text that was in force: the server's
    statement and the log's checkpoint. Does nothing if the error does not say that the server has
    lied.
    """
    if not found.blames_server:
        return
    path = place(home, found)
    try:
        save(path, about, found, answers, signed)
    except LocalError as fault:
        found.hint = f"{found.hint} ({fault.cause})"
        return
    found.evidence = str(path)
    if found.notes is not None:
        found.hint = conflict_hint(path)
    else:
        found.hint = f"{found.hint}; what was shown is in {path}"


def conflict_hint(path: Path) -> str:
    """Return what to do about two signed texts that contradict each other, kept at `path`."""
    return restored_hint(f"show others both signed texts, which are in {path}")


def restored_hint(otherwise: str) -> str:
    """Return what to do if the server shows something older than before: `otherwise`, unless a
    backup of the server was put back."""
    restored = "if the operator tells you that a backup of the server was put back"
    hint = f"{restored}, run `sfsc audit accept`; otherwise "
    return otherwise if otherwise.startswith(hint) else hint + otherwise


def place(home: Path, found: IntegrityError) -> Path:
    """Return the path of the file for a finding: for the same two signed texts, the known and the
    shown one, the same file."""
    if found.notes is None:
        now = datetime.now(UTC)
        return home / EVIDENCE / f"{_ANSWERS}-{now:%Y%m%d-%H%M%S-%f}.txt"
    known, shown = found.notes
    name = hashlib.sha256(known + b"\0" + shown).hexdigest()[:16]
    return home / EVIDENCE / f"{_CONFLICT}-{name}.txt"


def save(path: Path, about: str, found: IntegrityError, answers: Answers, signed: str = "") -> None:
    """Write the evidence atomically to `path` (mode 0600), unless the file exists. Arguments as in
    `keep`. Raises `LocalError`, also if there are too many files."""
    try:
        if exists(path):
            return
        make_folder(path.parent)
        others = [name for name in os.listdir(path.parent) if name.startswith(f"{_ANSWERS}-")]
        if found.notes is None and len(others) >= MAX_FILES:
            cause = f"{path.parent} is full of evidence: move its files to another place"
            raise LocalError(cause)
        text = "".join(_text(about, found, answers, signed))
        replace_file(path, text.encode(errors="backslashreplace"))
    except OSError as exc:
        raise LocalError(f"cannot write the evidence {path}: {exc.strerror}") from exc


def _text(about: str, found: IntegrityError, answers: Answers, signed: str) -> Iterator[str]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    yield f"sfs evidence\n{about}\nfound {now}\n{printable(found.cause)}\n"
    if found.notes is not None:
        known, shown = map(_shown, found.notes)
        yield "\nBoth of these are signed, and they cannot both be true of one server.\n"
        yield f"\nknown before:\n\n{known}\nshown then:\n\n{shown}"
    if signed:
        yield f"\nSigned, and in force here:\n\n{signed}"
    yield "\nShown by the server, newest first: the body of a frame (msgpack) each, in base64.\n"
    room = MAX_SHOWN
    for name, data in (*found.proofs, *answers.newest()):
        kept = data[:room]
        room -= len(kept)
        yield f"\n{name}\n{base64.b64encode(kept).decode()}\n"
        if len(kept) < len(data):
            digest = hashlib.sha256(data).hexdigest()
            yield f"and more: {len(data)} bytes with the SHA-256 {digest}\n"


def _shown(note: bytes) -> str:
    return note.decode(errors="backslashreplace") or "(an empty log)\n"
