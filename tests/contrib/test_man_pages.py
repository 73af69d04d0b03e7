"""Every command of both programs has a manual page, which says what its --help says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import pytest

from contrib import check_dist, man_pages
from tests.sfsc.cli.shell import all_commands


def test_every_command_has_a_page(tmp_path: Path) -> None:
    count = man_pages.write(tmp_path)
    found = {path.name: path.read_text("utf-8") for path in (tmp_path / "man1").iterdir()}
    assert len(found) == count
    assert {f"sfsc-{words.replace(' ', '-')}.1" for words, _ in all_commands()} < set(found)
    assert {*check_dist.PAGES, "sfsd-user-add.1"} < set(found)
    assert all(".SH NAME" in text and text.count(".SH EXAMPLES") == 1 for text in found.values())
    put = found["sfsc-put.1"]
    assert ".SH EXAMPLES\n.PP\nsfsc put \\-r photos\n.PP\n" in put
    assert "\\-\\-no\\-overwrite" in put
    assert ".SH SEE ALSO\n\\fBsfsc\\fP(1)\n" in put


def test_old_pages_are_removed(tmp_path: Path) -> None:
    (tmp_path / "man1").mkdir()
    (tmp_path / "man1" / "sfsc-frobnicate.1").touch()
    man_pages.write(tmp_path)
    assert not (tmp_path / "man1" / "sfsc-frobnicate.1").exists()


@pytest.fixture
def hostile() -> man_pages.Page:
    """Return the page of a command whose help looks like roff."""

    @click.command()
    @click.option("--one", help=".so /etc/passwd")
    def program(one: str) -> None:
        r"""Say \fBthis\fP.

        .so /etc/passwd
        'so /etc/passwd

        Example: program --one x
        """

    return next(man_pages.pages("program", program))


def test_help_is_never_an_instruction_of_roff(hostile: man_pages.Page) -> None:
    assert "\n.so" not in hostile.source
    assert "\n'so" not in hostile.source
    assert "\\efBthis\\efP" in hostile.source


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_man_shows_what_the_help_says(tmp_path: Path, hostile: man_pages.Page) -> None:
    page = tmp_path / "program.1"
    page.write_text(hostile.source, "utf-8")
    done = subprocess.run(
        ["man", "--warnings", "-l", str(page)],
        capture_output=True,
        check=True,
        env={"MANWIDTH": "80", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )
    shown = done.stdout.decode()
    assert done.stderr == b""
    assert r"Say \fBthis\fP." in shown
    assert shown.count("so /etc/passwd") == 3
    assert "EXAMPLES\n       program --one x" in shown
