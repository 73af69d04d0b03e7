"""docs/operating.md names exactly the settings that the daemon has, and fits the systemd unit."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from sfsd.config import Config, default, settings

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "operating.md").read_text("utf-8")
UNIT = (REPOSITORY / "contrib" / "systemd" / "sfsd.service").read_text("utf-8")
READ_BY_USER_ADD = {"public", "quota"}
"""Settings that `sfsd user add` reads by itself; the daemon reads all others once, at its start."""


def settings_table() -> list[list[str]]:
    """Return the cells of the settings table, row by row, without its head."""
    table = PAGE.split("| name | default | form | meaning | restart |\n", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return rows[1:]


ROWS = settings_table()


def test_table_follows_the_definition_of_the_settings() -> None:
    shown = [[cell.replace("`", "") for cell in row] for row in ROWS]
    assert shown == [
        [
            name,
            setting.literal(default(name)),
            setting.form,
            setting.text,
            "no" if name in READ_BY_USER_ADD else "yes",
        ]
        for name, setting in settings().items()
    ]


def test_example_file_is_valid() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert Config.parse(example.encode()).listen == tomllib.loads(example)["listen"]


def test_unit_fits_the_installation() -> None:
    assert "\nExecStart=/opt/sfs/bin/sfsd serve\n" in UNIT
    assert "\nEnvironment=SFSD_ROOT=/var/lib/sfsd\n" in UNIT
    for text in (PAGE, UNIT):
        for path in ("/opt/sfs", "/var/lib/sfsd", "/etc/systemd/system/sfsd.service"):
            assert path in text
