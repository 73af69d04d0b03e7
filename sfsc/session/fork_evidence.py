"""What proves that a server has told two stories, kept in a file for people to look at.

Two checkpoints, both signed with the log's key, that cannot both be true of one log; or instead of
the first the record of whoever had seen it, which a server takes only where it is true of its log.
The file is text, lies in HOME/evidence and is never removed by us.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sfsc.atomicfile import make_folder, replace_file
from sfsc.errors import LocalError

FOLDER: Final = "evidence"


def place(home: Path, notes: tuple[bytes, bytes]) -> Path:
    """Where these two are kept: the checkpoint that was known and the one that was shown."""
    known, shown = notes
    name = hashlib.sha256(known + b"\0" + shown).hexdigest()[:16]
    return home / FOLDER / f"{name}.txt"


def save(path: Path, about: str, what: str, notes: tuple[bytes, bytes]) -> None:
    """Write `notes` to their `place` (0600), unless they are there already: whole, or not at all.

    `about` says which server and user, `what` the judgement. Raises `LocalError`.
    """
    known, shown = notes
    now = datetime.now(UTC).isoformat(timespec="seconds")
    text = (
        f"sfs evidence\n{about}\nfound {now}\n{what}\n\n"
        f"Both of these are signed, and cannot both be true of one log.\n\n"
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
