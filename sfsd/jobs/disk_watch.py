"""Tells the operator when a disk of the root gets low: once when it begins, once when it ends."""

from __future__ import annotations

import logging

from sfsd.operations.health import DiskRoom, disk_rooms
from sfsd.rules.context import ServerContext
from sfsd.service.log_output import event

_log = logging.getLogger(__name__)


class DiskWatch:
    """Compares the room on each disk with the bounds of ``[health]``.

    A disk that is low counts as low until it has a tenth more than the bounds, so that room that
    comes and goes is not said again and again.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._low: set[str] = set()

    def check(self) -> None:
        """Log which disks have become low, and which are low no longer. Waits for the disks."""
        for disk in disk_rooms(self._context):
            fields = {"folder": disk.folder, "free": disk.free, "files": disk.files}
            if disk.problems and disk.folder not in self._low:
                self._low.add(disk.folder)
                why = "; ".join(disk.problems)
                _log.warning("low disk: %s", why, extra=event("disk-low", **fields))
            elif disk.folder in self._low and self._has_recovered(disk):
                self._low.discard(disk.folder)
                _log.info(
                    "the disk of %s/ has room again", disk.folder, extra=event("disk-ok", **fields)
                )

    def _has_recovered(self, disk: DiskRoom) -> bool:
        bounds = self._context.config.health
        enough_files = disk.files is None or disk.files * 10 >= bounds.free_files * 11
        return not disk.problems and disk.free * 10 >= bounds.free_space * 11 and enough_files
