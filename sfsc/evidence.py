"""What proves that a server has told two stories, kept in a file for people to look at.

Two checkpoints, both signed with the log's key, that cannot both be true of one log. The file is
text, lies in HOME/evidence and is never removed by us.
"""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sfsc.errors import LocalError

FOLDER: Final = "evidence"


def save(home: Path, about: str, what: str, notes: tuple[bytes, bytes]) -> Path:
    """Write the file, (0600), unless these two notes are in one already; its path.

    `about` says which server and user, `what` the judgement; `notes` are the checkpoint that was
    known and the one that was shown. Raises `LocalError`.
    """
    known, shown = notes
    name = hashlib.sha256(known + b"\0" + shown).hexdigest()[:16]
    path = home / FOLDER / f"{name}.txt"
    if path.exists():
        return path
    now = datetime.now(UTC).isoformat(timespec="seconds")
    text = (
        f"sfs evidence\n{about}\nfound {now}\n{what}\n\n"
        f"Both of these are signed with the log's key, and cannot both be true of one log.\n\n"
        f"known before:\n\n{_shown(known)}\nshown then:\n\n{_shown(shown)}"
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags, 0o600), "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise LocalError(f"cannot write the evidence {path}: {exc.strerror}") from exc
    return path


def _shown(note: bytes) -> str:
    return note.decode(errors="backslashreplace") or "(an empty log)\n"
