"""Evidence that a server showed two different logs (a split view), kept in a file for people to
read.

It consists of two signed texts that cannot both be true: two checkpoints signed with the log's key,
one checkpoint and a signed record that quotes another, or two server statements with one number. A
server accepts a record only if the checkpoint in it is one of its log. The text file lies in
HOME/evidence and is never removed by sfsc.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from sfsc.atomicfile import make_folder, replace_file
from sfsc.errors import LocalError
from sfsc.trust.state import EVIDENCE


def place(home: Path, notes: tuple[bytes, bytes]) -> Path:
    """Return the path of the file for these two notes: the one known before and the one shown
    later."""
    known, shown = notes
    name = hashlib.sha256(known + b"\0" + shown).hexdigest()[:16]
    return home / EVIDENCE / f"{name}.txt"


def save(path: Path, about: str, what: str, notes: tuple[bytes, bytes]) -> None:
    """Write `notes` atomically to `path` (mode 0600), unless the file exists.

    `about` names the server and the user, `what` the finding. Raises `LocalError`.
    """
    known, shown = notes
    now = datetime.now(UTC).isoformat(timespec="seconds")
    text = (
        f"sfs evidence\n{about}\nfound {now}\n{what}\n\n"
        f"Both of these are signed, and they cannot both be true of one server.\n\n"
        f"known before:\n\n{_shown(known)}\nshown then:\n\n{_shown(shown)}"
    )
    try:
        if not path.exists():
            make_folder(path.parent)
            replace_file(path, text.encode())
    except OSError as exc:
        raise LocalError(f"cannot write the evidence {path}: {exc.strerror}") from exc


def _shown(note: bytes) -> str:
    return note.decode(errors="backslashreplace") or "(an empty log)\n"
