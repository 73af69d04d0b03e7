"""The operator's report of a real store, beside the daemon and after it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Page, chromium
from tests.e2e.accounts import enrolled, new_root
from tests.harness import Daemon


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Yield a daemon with users in every state, and some files."""
    folder = tmp_path_factory.mktemp("served")
    with new_root(folder / "root") as daemon:
        alice = enrolled(daemon, "alice", folder / "alice")
        bob = enrolled(daemon, "bob", folder / "bob")
        enrolled(daemon, "carol", folder / "carol")
        alice.run("put", "-", "--name", "a", stdin=b"x" * 100_000)
        alice.run("put", "-", "--name", "b", stdin=b"x")
        alice.run("share", "a", "bob", "--trust-first-use")
        bob.run("cat", "alice:a", "--trust-first-use")
        alice.run("rm", "b")
        daemon.run("user", "quota", "alice", "1MiB")
        daemon.run("user", "disable", "carol", "--reason", "left <the> company")
        daemon.run("rotate", "bob", "--reason", "a laptop was stolen")
        yield daemon


def cells(page: Path, section: str) -> list[list[str]]:
    """Return the texts of the cells in the tables of a section, row by row."""
    html = (
        page.read_text("utf-8").split(f'<section id="{section}">', 1)[1].split("</section>", 1)[0]
    )
    body = html.rsplit("<tbody>", 1)[1]
    return [
        [
            " ".join(re.sub(r"<[^>]*>", "", cell).split())
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in body.split("</tr>")[:-1]
    ]


def test_report_shows_what_happened(served: Daemon, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    served.run("report", "--html", page)
    assert "The log is intact" in page.read_text()
    states = {row[0]: (row[1], row[3]) for row in cells(page, "rotations")}
    assert states == {
        "alice": ("up to date", "1"),
        "bob": ("required a laptop was stolen", "1"),
        "carol": ("disabled", "1"),
    }
    users = {row[0]: row[2:7] for row in cells(page, "users")}
    assert users["alice"][:4] == ["2", "", "1", "2"]  # put, rm; enrolled and shared
    assert users["bob"][:2] == ["", "1"]
    assert "disabled carol: left &lt;the&gt; company" in page.read_text()
    stored = {row[0]: row[1:5] for row in cells(page, "storage")}
    assert list(stored) == ["alice", "bob", "carol"]
    for name in ("alice", "bob", "carol"):
        account = json.loads(served.run("user", "show", name, "--json").text)
        size = account["used"]
        shown = f"{size / 1024:.1f} KiB" if size else "0 B"
        assert stored[name][1] == shown
    assert stored["alice"][0] == "2"
    assert stored["alice"][2] == "1.0 MiB"


def test_report_of_a_copy_in_a_browser(served: Daemon, tmp_path: Path) -> None:
    program = chromium()
    if program is None:
        pytest.skip("Chromium is not installed")
    shutil.copytree(served.root, tmp_path / "copy")
    page = tmp_path / "report.html"
    served.run("report", "--root", tmp_path / "copy", "--html", page)
    with Page(program, tmp_path / "profile") as browser:
        browser.open(page.as_uri())
        rows = "[...document.querySelectorAll('#log tbody tr:not([hidden])')]"
        browser.evaluate(
            "{const field = document.getElementById('search'); field.value = 'stolen';"
            " field.dispatchEvent(new Event('input', {bubbles: true}))}"
        )
        texts = browser.evaluate(f"{rows}.map(row => row.cells[4].innerText)")
        assert texts == ["requires bob to rotate: a laptop was stolen"]
        assert browser.problems == []
