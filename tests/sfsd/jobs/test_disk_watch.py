"""A low disk is said once when it begins and once when it ends."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sfsd.jobs.disk_watch import DiskWatch
from sfsd.settings.config import Config, HealthBounds
from tests.sfsd.builders import daemon
from tests.sfsd.faults import FaultyFiles

BOUNDS = HealthBounds(free_space=1000, free_files=100)


class Disk(FaultyFiles):
    """A disk with as much room as the test says."""

    room, rows = 1 << 40, 1 << 30

    def free(self, folder: Path) -> int:
        return self.room

    def free_files(self, folder: Path) -> int | None:
        return self.rows


def test_a_low_disk_is_said_at_its_begin_and_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    disk = Disk()
    said = list[tuple[str, str]]()
    with daemon(tmp_path, config=Config(health=BOUNDS), files=disk) as served:
        watch = DiskWatch(served.context)
        for disk.room, disk.rows in [
            (1000, 100),
            (999, 100),  # begins
            (10, 100),
            (10, 5),
            (1050, 200),  # above the bounds, by less than a tenth
            (1100, 105),
            (1100, 110),  # ends
            (1100, 110),
            (2000, 99),  # begins again
            (2000, 200),
        ]:
            caplog.clear()
            watch.check()
            said += [(one.event, one.levelname) for one in caplog.records]  # type: ignore[attr-defined]
            if said and caplog.records:
                said[-1] = (f"{disk.room}:{disk.rows} {said[-1][0]}", said[-1][1])
    assert said == [
        ("999:100 disk-low", "WARNING"),
        ("1100:110 disk-ok", "INFO"),
        ("2000:99 disk-low", "WARNING"),
        ("2000:200 disk-ok", "INFO"),
    ]
