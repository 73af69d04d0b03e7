"""docs/operating.md names exactly the settings that the daemon has, and fits the systemd unit."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from sfsd.config import Config, ConnectionLimits, HealthBounds, RetentionPolicy, RotationPolicy

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "operating.md").read_text("utf-8")
UNIT = (REPOSITORY / "contrib" / "systemd" / "sfsd.service").read_text("utf-8")
TABLES: dict[str, tuple[str, ...]] = {
    "limits": ConnectionLimits.__struct_fields__,
    "rotation": RotationPolicy.__struct_fields__,
    "retention": RetentionPolicy.__struct_fields__,
    "health": HealthBounds.__struct_fields__,
}
READ_BY_USER_ADD = {"public", "quota"}
"""Settings that `sfsd user add` reads by itself; the daemon reads all others once, at its start."""


def settings_table() -> list[list[str]]:
    """Return the cells of the settings table, row by row, without its head."""
    table = PAGE.split("| name | default | unit | meaning | restart |\n", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return rows[1:]


ROWS = settings_table()
DEFAULTS = {name.strip("`"): default.strip("`") for name, default, *_ in ROWS}


def test_table_names_every_setting_once() -> None:
    expected: list[str] = [name for name in Config.__struct_fields__ if name not in TABLES]
    for table, settings in TABLES.items():
        expected += [f"{table}.{name}" for name in settings]
    assert [name.strip("`") for name, *_ in ROWS] == expected


@pytest.mark.parametrize("name", DEFAULTS)
def test_stated_default_is_the_default(name: str) -> None:
    table, _, setting = name.rpartition(".")
    line = f"{setting} = {DEFAULTS[name]}"
    parsed = Config.parse((f"[{table}]\n{line}" if table else line).encode())
    assert parsed == Config()


def test_every_cell_says_something_and_restart_is_right() -> None:
    for name, _default, unit, meaning, restart in ROWS:
        assert unit
        assert meaning.endswith(".")
        assert restart == ("no" if name.strip("`") in READ_BY_USER_ADD else "yes")


def test_example_file_is_valid() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert Config.parse(example.encode()).listen == tomllib.loads(example)["listen"]


def test_unit_fits_the_installation() -> None:
    assert "\nExecStart=/opt/sfs/bin/sfsd serve\n" in UNIT
    assert "\nEnvironment=SFSD_ROOT=/var/lib/sfsd\n" in UNIT
    for text in (PAGE, UNIT):
        for path in ("/opt/sfs", "/var/lib/sfsd", "/etc/systemd/system/sfsd.service"):
            assert path in text
