"""Each program of docs/examples does what it says, against a real daemon."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import sfsc
from tests.harness import REPOSITORY, environment
from tests.lying_server import LyingServer

EXAMPLES = REPOSITORY / "docs" / "examples"
SECONDS = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("examples") / "root") as served:
        yield served


@pytest.fixture(scope="module")
def home(server: LyingServer) -> Path:
    return server.enrol("ada", key_type="x25519")


def started(home: Path, name: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment({"SFSC_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}),
    )


def run(home: Path, name: str, *arguments: str | Path, code: int = 0) -> str:
    """Run an example to its end and return its stdout."""
    process = started(home, name, *arguments)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code, err
    return out


@contextmanager
def running(home: Path, name: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Yield an example that runs until the end of the block."""
    with started(home, name, *arguments) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=SECONDS)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_every_example_is_linked_and_run() -> None:
    page = (REPOSITORY / "docs" / "library.md").read_text("utf-8")
    tested = Path(__file__).read_text("utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"(examples/{path.name})" in page
        assert f'"{path.stem}"' in tested


def test_a_database_is_backed_up_whole(home: Path, tmp_path: Path) -> None:
    database = tmp_path / "shop.sqlite3"
    with closing(sqlite3.connect(database)) as shop:
        shop.execute("CREATE TABLE sold (what TEXT)")
        shop.execute("INSERT INTO sold VALUES ('tea')")
        shop.commit()
        assert run(home, "backup_database", database, "db/shop").startswith("version 1 of db/shop")
        shop.execute("INSERT INTO sold VALUES ('never committed')")
        assert run(home, "backup_database", database, "db/shop").startswith("version 2 of db/shop")
    with sfsc.connect(home) as store:
        store.get("db/shop", tmp_path / "restored")
    with closing(sqlite3.connect(tmp_path / "restored")) as restored:
        assert restored.execute("SELECT what FROM sold").fetchall() == [("tea",)]


def test_pictures_are_stored_once(home: Path, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert run(home, "camera", tmp_path, "cam") == "stored a.jpg\nstored b.jpg\n"
    (tmp_path / "a.jpg").write_bytes(b"another")
    (tmp_path / "c.jpg").write_bytes(b"c.jpg")
    assert run(home, "camera", tmp_path, "cam", code=1) == "stored c.jpg\n"
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "notes.txt"]
    with sfsc.connect(home) as store:
        assert [one.name for one in store.ls("cam/")] == ["cam/a.jpg", "cam/b.jpg", "cam/c.jpg"]
        assert store.read_bytes("cam/a.jpg") == b"a.jpg"


def test_a_table_is_written_and_read_by_name(home: Path) -> None:
    assert run(home, "parquet", "sfs://tables/sales.parquet").splitlines()[-1] == "sum 16"
    with sfsc.connect(home) as store:
        assert store.read_bytes("tables/sales.parquet")[:4] == b"PAR1"


def test_files_are_served_over_http(home: Path) -> None:
    with sfsc.connect(home) as store:
        store.write_bytes("public/page one", b"<p>one")
        store.write_bytes("private", b"secret")
    with running(home, "service", "public", "0") as process:
        port = line_of(process).split()[-1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/page%20one") as found:
            assert found.read() == b"<p>one"
        for missing in ("none", "../private", ""):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{missing}")


def test_a_folder_is_watched(home: Path, tmp_path: Path) -> None:
    (tmp_path / "first").write_bytes(b"1")
    with running(home, "watch_folder", tmp_path, "watched") as process:
        assert line_of(process) == "stored watched/first\n"
        (tmp_path / "second").write_bytes(b"2")
        assert line_of(process) == "stored watched/second\n"
    with sfsc.connect(home) as store:
        assert store.read_bytes("watched/second") == b"2"
