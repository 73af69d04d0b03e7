"""Names of what became of one file of a folder: `Put.status`, `Got.status` and others."""

from __future__ import annotations

from typing import Final

STORED: Final = "stored"
FETCHED: Final = "fetched"
UNCHANGED: Final = "unchanged"
"""Both sides have the same content."""
SKIPPED: Final = "skipped"
DELETED: Final = "deleted"
CONFLICT: Final = "conflict"
