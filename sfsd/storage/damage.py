"""Whether a file of the store is what the log says: the one check of `sfsd fsck` and the scrub."""

from __future__ import annotations

from collections.abc import Callable

from protocol.codec.values import Value
from sfsd.fs.files import NO_DESCRIPTORS

MISSING = "missing"
UNREADABLE = "unreadable"
CHANGED = "changed"


class Damage(Value):
    """Difference of a file from the log. `kind` is missing, unreadable or changed, and `text` says
    it in words."""

    kind: str
    text: str


def find_damage(digest: bytes, read_digest: Callable[[], bytes]) -> Damage | None:
    """Compare the digest of a file, which `read_digest` finds, with the `digest` that the log says.
    Raises OSError if this process has too much open, which says nothing about the file."""
    try:
        found = read_digest()
    except (FileNotFoundError, NotADirectoryError):
        return Damage(MISSING, "the file is in the log but not on the disk")
    except OSError as exc:
        if exc.errno in NO_DESCRIPTORS:
            raise
        return Damage(UNREADABLE, f"the file cannot be read: {exc.strerror}")
    return None if found == digest else Damage(CHANGED, "the content is not what was written")
