"""`sfsd report`: what the page says of intact and damaged logs, seen in Chromium too."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from protocol.log.auditlog import EntryDraft
from sfsd.cli import main
from sfsd.datadir import lock_root
from tests.browser import Page, chromium
from tests.sfsd.journals import append_to_log
from tests.sfsd.rewritten_log import rewritten

Sfsd = Callable[..., Any]
HOSTILE = (
    "<script>document.title='owned'</script>",
    "</style></title><img src=x onerror=\"document.title='owned'\">",
    '" onmouseover="document.title=1" x="',
    "{{ 7 * 7 }}",
    "\u202egnp.exe\u2066\x1b[2J\x00\u2028",
    "שלום ‎עולם",
    "Z̷̡̛͚̪̣͇" * 20,
    "x" * 5000,
    "__proto__",
)
FILE = "0123456789abcdef" * 2
ROWS = 40


def drafts() -> list[EntryDraft]:
    made = [
        EntryDraft("user-add", "operator", owner="alice", detail={"quota": 1 << 30, "expires": 1}),
        EntryDraft("upload", "alice", owner="alice", file=FILE, version=1),
        EntryDraft("download", "alice", owner="alice", detail={"items": [[FILE, 1]]}),
        EntryDraft("login", "bob", detail={"address": "192.0.2.7", "access": "full"}),
    ]
    for name in HOSTILE:
        detail = {"address": name, "count": 7, "codes": {name: 7}, "users": {name: 7}}
        made += [
            EntryDraft("refused", "server", detail=detail),
            EntryDraft("user-access", name, owner=name, detail={"disabled": True, "reason": name}),
            EntryDraft(name, "alice", owner="alice", detail={name: name}),
        ]
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root whose intact log has hostile names: somebody had the log's key."""
    root = tmp_path_factory.mktemp("report") / "root"
    assert main(["init", "--root", str(root), "--public", "files.example:7373"]) == 0
    written = drafts()
    begin = datetime(2026, 11, 1, tzinfo=UTC)
    append_to_log(root, written, [begin + timedelta(hours=7 * n) for n in range(len(written))])
    for name, size in (("alice", 700 << 20), ("bob", 20)):
        folder = root / "store" / "users" / name / "files" / FILE[:2]
        folder.mkdir(parents=True)
        (folder / f"{FILE}.1.json").write_bytes(b"{}")
        with (folder / f"{FILE}.1.ct").open("wb") as file:
            file.truncate(size)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the root, named in SFSD_ROOT."""
    path = tmp_path / "root"
    shutil.copytree(made, path, ignore=shutil.ignore_patterns("*.ct"))
    monkeypatch.setenv("SFSD_ROOT", str(path))
    return path


def text_of(page: Path) -> str:
    """Return what is between the tags of a page, with its style and script."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page.read_text("utf-8")))


def test_an_intact_log(root: Path, tmp_path: Path, sfsd: Sfsd) -> None:
    page = tmp_path / "report.html"
    page.write_text("old")
    page.chmod(0o644)
    entries = len((root / "logs" / "audit.jsonl").read_bytes().splitlines())
    assert sfsd("report", "--html", page).lines == [f"{page}: {entries} entries"]
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert sorted(one.name for one in tmp_path.iterdir()) == ["report.html", "root"]
    text = text_of(page)
    verified = json.loads(sfsd("audit", "verify", "--json").out)
    assert f"The log is intact {entries} entries were verified" in text
    assert verified["root"] in text
    assert "63 refused requests" not in text  # the number stands in front of its label, in CSS
    assert "63 requests were refused" in text
    told = json.loads(sfsd("report", "--html", page, "--json").out)
    assert told == {"file": str(page), "entries": entries, "intact": True, "first_wrong": None}


def test_page_on_stdout(
    root: Path, tmp_path: Path, sfsd: Sfsd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sfsd("report", "--html", "-").out.startswith("<!DOCTYPE html>\n")
    assert [one.name for one in tmp_path.iterdir()] == ["root"]


def test_nothing_in_the_page_runs_or_loads_but_its_own_script(
    root: Path, tmp_path: Path, sfsd: Sfsd
) -> None:
    page = tmp_path / "report.html"
    sfsd("report", "--html", page)
    html = page.read_text("utf-8")
    assert html.count("<script>") == html.count("</script>") == 1
    assert html.count("<style>") == html.count("</style>") == 1
    assert "<img" not in html
    assert "http-equiv" in html.split("<style>")[0]
    assert re.search(r"(?i)\b(?:href|src|action)\s*=\s*\"(?!#)", html) is None
    assert "'unsafe" not in html
    assert "{{ 7 * 7 }}" in html
    hidden = {char for char in html if not char.isprintable()} - {"\n"}
    assert hidden == set()
    assert "x" * 301 not in html


def test_a_copy_that_is_not_written_to_and_a_locked_root(
    root: Path, tmp_path: Path, sfsd: Sfsd
) -> None:
    page = tmp_path / "report.html"
    shutil.rmtree(root / "run", ignore_errors=True)
    before = sorted(str(one) for one in root.rglob("*"))
    for path in (*root.rglob("*"), root):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        sfsd("report", "--html", page)
    finally:
        for path in (root, *root.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
    assert sorted(str(one) for one in root.rglob("*")) == before
    with lock_root(root):  # as beside a daemon
        sfsd("report", "--html", page)
    shutil.rmtree(root / "store")
    sfsd("report", "--html", page)
    assert f"{root}/store/users cannot be read: No such file or directory" in text_of(page)


def test_rows_are_bounded_and_the_page_says_so(root: Path, tmp_path: Path, sfsd: Sfsd) -> None:
    page = tmp_path / "report.html"
    sfsd("report", "--html", page, "--rows", "5")
    assert page.read_text().count("<tr data-kind=") == 5
    total = len(drafts())
    assert f"The log has {total - 5} more" in text_of(page)
    sfsd("report", "--html", page, "--since", "2026-11-05", "--until", "2026-11-06", "--utc")
    text = text_of(page)
    assert "entries since 2026-11-05 until 2026-11-06" in text
    assert page.read_text().count("<tr data-kind=") == 4  # one in seven hours
    assert f"{total} entries were verified" in text
    for options in (("--since", "yesterday"), ("--rows", "50001")):
        sfsd("report", "--html", page, *options, code=2)


def test_times_are_in_the_zone_that_the_page_names(
    root: Path, tmp_path: Path, sfsd: Sfsd, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "report.html"
    monkeypatch.setenv("TZ", "Etc/GMT-5")
    import time

    time.tzset()
    try:
        sfsd("report", "--html", page)
        assert "2026-11-01 12:00:00+05:00" in page.read_text()
        assert "(UTC+05:00)" in page.read_text()
        sfsd("report", "--html", page, "--utc")
        assert "2026-11-01 07:00:00Z" in page.read_text()
        assert "(UTC)" in page.read_text()
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


def damaged_byte(log: Path) -> int:
    lines = log.read_bytes().splitlines(keepends=True)
    lines[9] = lines[9].replace(b"a", b"b", 1)
    log.write_bytes(b"".join(lines))
    return 9


def rewritten_tail(log: Path) -> int:
    lines = rewritten(log.read_bytes().splitlines(), 9, chain=True)
    log.write_bytes(b"".join(line + b"\n" for line in lines))
    return 9


def cut_end(log: Path) -> int:
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-3]))
    return len(lines) - 3


def forged_checkpoint(log: Path) -> int:
    note = log.parent / "checkpoint"
    note.write_bytes(note.read_bytes().replace(b"sfs/", b"sfx/"))
    return 0


@pytest.mark.parametrize("damage", [damaged_byte, rewritten_tail, cut_end, forged_checkpoint])
def test_a_damaged_log(
    root: Path, tmp_path: Path, sfsd: Sfsd, damage: Callable[[Path], int]
) -> None:
    first = damage(root / "logs" / "audit.jsonl")
    page = tmp_path / "report.html"
    told = sfsd("report", "--html", page, code=5)
    assert "sfsd: the log is damaged: " in told.err
    assert "hint: " in told.err
    html = page.read_text()
    assert "<title>sfs report: DAMAGED</title>" in html
    assert "The log is intact" not in html
    listed = [int(seq) for seq in re.findall(r'<tr data-kind=[^>]*><td class="n">(\d+)', html)]
    wrong = re.findall(r'<tr data-kind="[a-z]*" class="unverified"><td class="n">(\d+)', html)
    assert [int(seq) for seq in wrong] == [seq for seq in listed if seq >= first]
    if damage in (rewritten_tail, forged_checkpoint):
        assert len(listed) == len(drafts())
        assert min(map(int, wrong)) == first
    assert json.loads(sfsd("report", "--html", page, "--json", code=5).out)["first_wrong"] == first


def test_a_page_that_cannot_be_written(root: Path, tmp_path: Path, sfsd: Sfsd) -> None:
    told = sfsd("report", "--html", tmp_path / "none" / "report.html", code=1)
    assert f"cannot write {tmp_path}/none/report.html: No such file or directory" in told.err
    assert "--html -" in told.err
    sfsd("report", code=2)
    sfsd("report", "--html", tmp_path, code=2)
    other = tmp_path / "other"
    assert "hint: " in sfsd("report", "--root", other, "--html", tmp_path / "x", code=1).err
    assert not other.exists()


# --- in a browser


@pytest.fixture(scope="module")
def browser(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = chromium()
    if program is None:
        pytest.skip("Chromium is not installed")
    folder = tmp_path_factory.mktemp("browser")
    page = folder / "report.html"
    assert main(["report", "--root", str(made), "--html", str(page), "--utc"]) == 0
    with Page(program, folder / "profile") as opened:
        opened.open(page.as_uri())
        yield opened


def shown_rows(page: Page) -> int:
    """Return the number of rows of the log that can be seen."""
    rows = "[...document.querySelectorAll('#log tbody tr')]"
    count = page.evaluate(f"{rows}.filter(row => row.getBoundingClientRect().height > 0).length")
    assert isinstance(count, int)
    return count


def choose(page: Page, **values: str) -> int:
    """Fill in the filter, as a user would, and return the number of rows that are left."""
    page.evaluate("document.querySelector('#filter button').click()")
    for name, value in values.items():
        page.evaluate(
            f"{{const field = document.getElementById({json.dumps(name)});"
            f" field.value = {json.dumps(value)};"
            " field.dispatchEvent(new Event('input', {bubbles: true}))}"
        )
    return shown_rows(page)


def corner_of(png: bytes) -> str:
    """Return the colour of the first pixel of an image of 8 bits a channel, which every filter of
    PNG leaves as it is, in hex."""
    depth, kind = png[24:26]
    assert (depth, kind) in ((8, 2), (8, 6))
    at = png.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", png[at - 8 : at - 4])
    return zlib.decompressobj().decompress(png[at : at + length], 4)[1:].hex()


def test_page_in_a_browser(browser: Page) -> None:
    """The page is shown, does what it should, and hostile names do nothing."""
    assert browser.evaluate("document.title") == "sfs report: intact"
    assert (
        browser.evaluate("document.querySelector('#verdict h2').innerText") == "The log is intact"
    )
    total = len(drafts())
    assert shown_rows(browser) == total
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate("document.querySelectorAll('script').length") == 1
    assert browser.evaluate("document.querySelectorAll('#log [onmouseover]').length") == 0
    # Every bar has a height, and the chart stands between the labels of its grid.
    bars = "[...document.querySelectorAll('.plot rect')].map(one => one.getBoundingClientRect())"
    assert browser.evaluate(f"Math.min(...{bars}.map(one => one.height)) > 2") is True
    assert browser.evaluate(f"new Set({bars}.map(one => one.left)).size > 20") is True
    storage = "[...document.querySelectorAll('#storage tbody tr')].map(row => row.innerText)"
    rows = browser.evaluate(storage)
    assert isinstance(rows, list)
    assert list(map(str.split, rows)) == [
        ["alice", "1", "700.0", "MiB", "1.0", "GiB", "68", "%"],
        ["bob", "1", "22", "B", "none"],
    ]
    browser.evaluate("document.getElementById('log').dispatchEvent(new Event('mouseover'))")
    assert browser.evaluate("document.title") == "sfs report: intact"
    assert [one.split(":")[0] for one in browser.requests] == ["file"]
    assert browser.problems == []


def test_filter_in_a_browser(browser: Page) -> None:
    total = len(drafts())
    assert choose(browser) == total
    assert choose(browser, search="192.0.2.7") == 1
    assert choose(browser, search="ALICE upload") == 1
    assert choose(browser, search="nothing has this") == 0
    assert browser.evaluate("document.getElementById('count').textContent") == (
        f"0 of {total} entries shown here"
    )
    assert choose(browser, kind="refused") == len(HOSTILE)
    assert choose(browser, user="bob") == 1
    assert choose(browser, user="bob", kind="refused") == 0
    names = browser.evaluate("[...document.getElementById('user').options].map(one => one.value)")
    assert isinstance(names, list)
    for name in names[1:]:
        assert choose(browser, user=name) >= 1
    assert choose(browser) == total
    assert browser.problems == []


LEAST_CONTRAST = """(() => {
  const channel = (value) => (value /= 255) <= 0.03928 ?
    value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
    }
  };
  const texts = "h1, h2, p, dt, dd, th, td, a, code, label, summary, figcaption, .state,"
    + " .legend li, .grid span, .times span";
  return Math.min(...[...document.querySelectorAll(texts)].map((one) => {
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
})()"""


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_page_fits_any_window(browser: Page, width: int) -> None:
    """Nothing makes the page wider than the window, not even a name of 5,000 letters."""
    browser.resize(width, 800)
    choose(browser)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    too_wide = (
        "[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll, svg')"
        " && one.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert browser.evaluate(too_wide) == 0
    # Text has more contrast than 4.5 : 1 in both schemes (WCAG 2, level AA).
    shots = []
    for scheme in ("light", "dark"):
        browser.set_media(scheme=scheme)
        ratio = browser.evaluate(LEAST_CONTRAST)
        assert isinstance(ratio, int | float)
        assert ratio >= 4.5
        shots.append(browser.screenshot())
    assert list(map(corner_of, shots)) == ["f6f7f9", "0f1318"]
    if folder := os.environ.get("SFS_SCREENSHOTS"):
        for name, shot in zip(("light", "dark"), shots, strict=True):
            (Path(folder) / f"report-{width}-{name}.png").write_bytes(shot)
    browser.set_media()


def test_page_on_paper(browser: Page) -> None:
    """What is only of use in a browser is not printed."""
    browser.set_media(media="print")
    hidden = "['nav', '#filter', 'details'].map(one => document.querySelector(one).offsetHeight)"
    assert browser.evaluate(hidden) == [0, 0, 0]
    assert shown_rows(browser) == len(drafts())
    browser.set_media()
