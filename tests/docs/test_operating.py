"""docs/operating.md names exactly the settings that the daemon has, and fits the systemd unit."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from sfsd import server_keys
from sfsd.cli import main
from sfsd.settings.config import Config, default, settings

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "operating.md").read_text("utf-8")
UNIT = (REPOSITORY / "sfsd" / "units" / "sfsd.service").read_text("utf-8")


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
            "no" if setting.reload else "yes",
        ]
        for name, setting in settings().items()
    ]


def test_example_file_is_valid() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert Config.parse(example.encode()).listen == tomllib.loads(example)["listen"]


LOST = PAGE.split("| lost from `keys/` | effect | what to do |\n|---|---|---|\n", 1)[1].split(
    "\n\n"
)[0]


@pytest.mark.parametrize("row", LOST.splitlines())
def test_a_lost_key_is_made_again_as_the_page_says(
    row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "root")
    assert main(["init", "--root", root, "--public", "files.example:7373"]) == 0
    assert main(["user", "list", "--root", root]) == 0  # the log begins
    name, effect, what = [cell.strip().replace("`", "") for cell in row.strip("|").split("|")]
    lost = tmp_path / "root" / "keys" / name
    lost.unlink()
    if name != "tls.key":  # which only a daemon reads
        assert main(["status", "--root", root]) == (0 if "daemon runs" in effect else 1)
    if what.startswith("sfsd "):
        assert main([*what.split()[1:], "--root", root]) == 0
        assert lost.exists()
        keys = server_keys.load(lost.parent)
        keys.tls_context()
        assert server_keys.operator_key(lost.parent).public == keys.operator_public
        assert main(["status", "--root", root]) == 0
    elif "daemon runs" not in effect:
        assert "restore ROOT/keys from a backup" in capsys.readouterr().err


def test_every_key_file_is_in_the_table(tmp_path: Path) -> None:
    assert main(["init", "--root", str(tmp_path / "root"), "--public", "files.example:7373"]) == 0
    named = {line.split("`")[1] for line in LOST.splitlines()}
    assert named == {path.name for path in (tmp_path / "root" / "keys").iterdir()}


def test_unit_fits_the_installation() -> None:
    assert "\nExecStart=/opt/sfs/bin/sfsd serve\n" in UNIT
    assert "\nEnvironment=SFSD_ROOT=/var/lib/sfsd\n" in UNIT
    for text in (PAGE, UNIT):
        for path in ("/opt/sfs", "/var/lib/sfsd", "sfsd.socket"):
            assert path in text
