"""`sfsd install-unit`, and the units that it writes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfsd.commands.install_unit import units

Sfsd = Callable[..., Any]
NAMES = ["sfsd-backup.service", "sfsd-backup.timer", "sfsd.service", "sfsd.socket"]
ANALYZE = shutil.which("systemd-analyze")


def test_units_are_written_once(tmp_path: Path, sfsd: Sfsd) -> None:
    folder = tmp_path / "units"
    assert sfsd("install-unit", "--to", folder).lines == [str(folder / name) for name in NAMES]
    for name, text in units().items():
        assert (folder / name).read_text() == text
        assert (folder / name).stat().st_mode & 0o777 == 0o644
    (folder / "sfsd.service").write_text("changed by hand")
    answer = sfsd("install-unit", "--to", folder)
    assert [line.rpartition("/")[2] for line in answer.lines] == [
        "sfsd-backup.service is up to date",
        "sfsd-backup.timer is up to date",
        "sfsd.service",
        "sfsd.socket is up to date",
    ]
    assert (folder / "sfsd.service.old").read_text() == "changed by hand"
    assert (folder / "sfsd.service").read_text() == units()["sfsd.service"]
    assert "systemctl enable --now sfsd\n" in answer.err


def test_another_installation(tmp_path: Path, sfsd: Sfsd) -> None:
    other = ("--root", "/srv/store", "--user", "files", "--program", "/usr/local/bin/sfsd")
    sfsd("install-unit", "--to", tmp_path, *other)
    for name in ("sfsd.service", "sfsd-backup.service"):
        text = (tmp_path / name).read_text()
        settings = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        assert not re.search(r"/opt/sfs|/var/lib/sfsd|=sfsd$", settings, re.MULTILINE)
        assert "\nUser=files\nGroup=files\nEnvironment=SFSD_ROOT=/srv/store\n" in settings
        assert "\nExecStart=/usr/local/bin/sfsd " in settings
        assert re.search(r"^ReadWritePaths=/srv/store( |$)", settings, re.MULTILINE)
        assert re.search(r"^RequiresMountsFor=/srv/store( |$)", settings, re.MULTILINE)


@pytest.mark.parametrize(
    "options", [("--root", "relative"), ("--root", "/srv/a b"), ("--user", "a%n"), ("--user", "")]
)
def test_text_that_a_unit_would_read_otherwise(
    tmp_path: Path, sfsd: Sfsd, options: tuple[str, str]
) -> None:
    sfsd("install-unit", "--to", tmp_path, *options, code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["sfsd.service", "sfsd-backup.service"])
def test_exposure(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(units()[name])
    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=yes", "--no-pager", tmp_path / name],
        capture_output=True,
        text=True,
        check=False,
    )
    exposure = re.search(rf"Overall exposure level for {re.escape(name)}: ([0-9.]+)", done.stdout)
    assert exposure is not None, done.stderr
    assert float(exposure[1]) <= 1.5


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for name, text in units(program="/bin/true").items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", *(tmp_path / name for name in NAMES)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "sfsd" in line]
    assert ours == []
