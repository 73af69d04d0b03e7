"""`SfsFileSystem` against a real daemon."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.callbacks import Callback

import sfsc
from protocol.wire.messages import Reply, Request
from protocol.wire.messages.changes import Commit
from protocol.wire.messages.downloads import Bytes, Open
from sfsc.filesystem import SfsFileSystem, os_errors
from tests.lying_server import LyingServer

BIG = 2 * (1 << 20) + 77


@pytest.fixture
def requests(server: LyingServer) -> Iterator[list[Request]]:
    """The requests that the server is sent."""
    seen: list[Request] = []

    def note(_who: object, request: Request) -> Reply | None:
        seen.append(request)
        return None

    server.intercept = note
    yield seen
    server.honest()


def test_a_url_is_a_name_of_the_account_in_sfsc_home(
    home: Path, server: LyingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = server.enrol("other")
    monkeypatch.setenv("SFSC_HOME", str(home))
    with fsspec.open("sfs://url/one", "wb") as file:
        file.write(b"of ada")
    first = fsspec.filesystem("sfs")
    assert first is fsspec.filesystem("sfs", home=home)
    assert first.unstrip_protocol("url/one") == "sfs://url/one"
    with sfsc.connect(home) as store:
        assert store.read_bytes("url/one") == b"of ada"
    monkeypatch.setenv("SFSC_HOME", str(other))
    second = fsspec.filesystem("sfs")
    assert second is not first
    assert second.ls("sfs://") == []
    assert second.fsid != first.fsid
    first.close()
    second.close()
    SfsFileSystem.clear_instance_cache()


def test_no_secret_is_an_argument_or_pickled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="SFSC_PASSPHRASE"):
        fsspec.filesystem("sfs", home=home, passphrase="open sesame")
    files = SfsFileSystem(home=home, skip_instance_cache=True)
    files.pipe_file("pickled", b"content")
    with files.open("pickled") as opened, monkeypatch.context() as patched:
        patched.setenv("SFSC_PASSPHRASE", "open sesame")
        dumped, open_dumped = pickle.dumps(files), pickle.dumps(opened)
    assert b"sesame" not in dumped + open_dumped
    files.close()
    again = pickle.loads(dumped)
    assert again.storage_options == {"home": str(home)}
    assert again.cat_file("pickled") == b"content"
    with pickle.loads(open_dumped) as reopened:
        again.pipe_file("pickled", b"a newer version")
        assert reopened.read() == b"content"
        reopened.fs.close()
    again.close()


@pytest.mark.parametrize("size", [0, 5, BIG])
def test_what_is_written_is_read(files: SfsFileSystem, size: int) -> None:
    content = os.urandom(size)
    with files.open(f"rw/{size}", "wb", block_size=1 << 18) as file:
        for start in range(0, size, 100_000):
            assert file.tell() == start
            file.write(content[start : start + 100_000])
        assert not files.exists(f"rw/{size}")  # visible only when it is closed
    info = files.info(f"rw/{size}")
    assert (info["type"], info["size"], info["version"]) == ("file", size, 1)
    with files.open(f"rw/{size}", "rb") as file:
        assert file.size == size
        assert file.read() == content
        assert file.seek(-min(3, size), 2) == size - min(3, size)
        assert file.read() == content[-3:]
    for limits in ((0, 3), (-10, None), (None, -2), (1 << 20, (1 << 20) + 9), (5, 2)):
        assert files.cat_file(f"rw/{size}", *limits) == content[slice(*limits)]


def test_an_open_file_is_one_version(files: SfsFileSystem) -> None:
    files.pipe_file("versions", b"first")
    with files.open("versions") as old:
        files.pipe_file("versions", b"second")
        files.close()  # the next read connects again
        assert old.read() == b"first"
        assert old.version == 1
    with files.open("versions", version=2) as new, files.open("versions", version=1) as old:
        assert new.read() + old.read() == b"secondfirst"


def test_lines_are_read_without_fetching_blocks(files: SfsFileSystem) -> None:
    lines = [b"%d\n" % number * 50 for number in range(900)]
    files.pipe_file("lines", b"".join(lines))
    with files.open("lines") as file:
        assert b"".join(file) == b"".join(lines)
        file.seek(0)
        assert file.readline() == b"0\n"
        assert file.readline(1) == b"0"
        assert file.readline() == b"\n"
    with files.open("lines", "r", encoding="ascii", newline="") as text:
        assert text.readline() == "0\n"


def _binary(files: SfsFileSystem, path: str) -> None:
    with files.open(path, "wb") as file:
        file.write(b"half")
        raise ZeroDivisionError


def _text(files: SfsFileSystem, path: str) -> None:
    with files.open(path, "w", encoding="utf-8") as file:
        file.write("half")
        raise ZeroDivisionError


def _open_file(files: SfsFileSystem, path: str) -> None:
    with fsspec.core.OpenFile(files, path, "wb") as file:
        file.write(b"half")
        raise ZeroDivisionError


def _exit_stack(files: SfsFileSystem, path: str) -> None:
    with contextlib.ExitStack() as stack:
        file = files.open(path, "wb")
        stack.callback(file.close)
        file.write(b"half")
        raise ZeroDivisionError


@pytest.mark.parametrize("write", [_binary, _text, _open_file, _exit_stack])
def test_a_block_that_raises_stores_nothing(
    files: SfsFileSystem, write: Callable[[SfsFileSystem, str], None]
) -> None:
    with pytest.raises(ZeroDivisionError):
        write(files, "half")
    assert not files.exists("half")


def test_a_file_is_stored_while_another_error_is_handled(files: SfsFileSystem) -> None:
    before = files.open("handled/before", "wb")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        with files.open("handled/block", "wb") as file:
            file.write(b"1")
        with fsspec.core.OpenFile(files, "handled/open_file", "wb") as file:
            file.write(b"2")
        with before:
            before.write(b"3")
    assert files.cat("handled", recursive=True) == {
        "handled/before": b"3",
        "handled/block": b"1",
        "handled/open_file": b"2",
    }


def test_a_file_that_is_never_closed_is_not_stored(
    files: SfsFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    files.open("lost", "wb").write(b"half")
    gc.collect()
    assert "lost was not stored" in caplog.text
    assert not files.exists("lost")


def test_modes_of_writing(files: SfsFileSystem, home: Path) -> None:
    with files.open("modes", "ab") as file:
        file.write(b"one ")
    with files.open("modes", "ab") as file:
        assert file.tell() == 4
        file.write(b"two")
    assert files.cat_file("modes") == b"one two"
    with pytest.raises(FileExistsError):
        files.open("modes", "xb")
    exclusive = files.open("exclusive", "xb")
    exclusive.write(b"mine")
    files.pipe_file("exclusive", b"theirs")
    with pytest.raises(FileExistsError) as caught:
        exclusive.close()
    assert isinstance(caught.value.__cause__, sfsc.ConflictError)
    assert files.cat_file("exclusive") == b"theirs"
    appended = files.open("modes", "ab")
    appended.write(b" three")
    files.pipe_file("modes", b"changed")
    with pytest.raises(FileExistsError):
        appended.close()
    assert files.cat_file("modes") == b"changed"


def test_folders_are_implied_by_names_or_stored(files: SfsFileSystem) -> None:
    files.pipe({"tree/a": b"1", "tree/b/c": b"22", "tree/b/d/e": b"333", "tree-2": b"4"})
    files.mkdir("tree/empty")
    assert files.ls("tree", detail=False) == ["tree/a", "tree/b", "tree/empty"]
    types = {info["name"]: (info["type"], info["size"]) for info in files.ls("sfs://tree/")}
    folder = ("directory", 0)
    assert types == {"tree/a": ("file", 1), "tree/b": folder, "tree/empty": folder}
    assert files.ls("tree/a", detail=False) == ["tree/a"]
    assert files.ls("tree/empty") == []
    assert files.info("tree") == {"name": "tree", "size": 0, "type": "directory"}
    assert files.info("tree/empty")["mode"] == 0o700
    assert files.find("tree") == ["tree/a", "tree/b/c", "tree/b/d/e"]
    assert files.find("tree", maxdepth=1, withdirs=True) == [
        "tree",
        "tree/a",
        "tree/b",
        "tree/empty",
    ]
    assert files.find("tree/a") == ["tree/a"]
    assert list(files.walk("tree", maxdepth=2)) == [
        ("tree", ["b", "empty"], ["a"]),
        ("tree/b", ["d"], ["c"]),
        ("tree/empty", [], []),
    ]
    assert [path for path, _, _ in files.walk("tree", topdown=False)] == [
        "tree/b/d",
        "tree/b",
        "tree/empty",
        "tree",
    ]
    assert files.glob("tree/**/[de]") == ["tree/b/d", "tree/b/d/e"]
    assert files.du("tree") == 6
    assert (files.isdir("tree"), files.isfile("tree"), files.isdir("tree/a")) == (1, 0, 0)


def test_folders_that_cannot_be_made_or_deleted(files: SfsFileSystem) -> None:
    files.pipe_file("dirs/full/file", b"1")
    files.makedirs("dirs/empty")
    files.makedirs("dirs/empty", exist_ok=True)
    refused: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: files.mkdir("dirs/empty"), FileExistsError),
        (lambda: files.mkdir("dirs/full"), FileExistsError),
        (lambda: files.mkdir("dirs/full/file"), FileExistsError),
        (lambda: files.mkdir("dirs/none/new", create_parents=False), FileNotFoundError),
        (lambda: files.makedirs("dirs/full"), FileExistsError),
        (lambda: files.makedirs("dirs/full/file", exist_ok=True), FileExistsError),
        (lambda: files.rmdir("dirs/none"), FileNotFoundError),
        (lambda: files.rmdir("dirs/full/file"), NotADirectoryError),
        (lambda: files.rmdir("dirs/full"), OSError),
        (lambda: files.rm("dirs/full"), IsADirectoryError),
        (lambda: files.rm("dirs/none"), FileNotFoundError),
        (lambda: files.rm("dirs/none", recursive=True), FileNotFoundError),
        (lambda: files.open("dirs/full"), IsADirectoryError),
        (lambda: files.open("dirs/none"), FileNotFoundError),
        (lambda: files.ls("dirs/none"), FileNotFoundError),
        (lambda: files.modified("dirs/full"), IsADirectoryError),
        (lambda: files.pipe_file("dirs//name", b""), ValueError),
        (lambda: list(files.walk("dirs/none", on_error="raise")), FileNotFoundError),
    ]
    for call, error in refused:
        with pytest.raises(error):
            call()
    assert files.find("dirs", withdirs=True)[1:] == ["dirs/empty", "dirs/full", "dirs/full/file"]
    files.rmdir("dirs/empty")
    files.rm("dirs", recursive=True)
    assert not files.exists("dirs")


def test_moves_and_copies(files: SfsFileSystem, requests: list[Request]) -> None:
    files.pipe({"mv/a": b"a", "mv/b": b"b", "mv/d/x": b"x", "mv/d/y/z": b"z"})
    files.mv("mv/a", "mv/b")
    assert files.cat_file("mv/b") == b"a"
    files.mv("mv/b", "mv/d/")
    requests.clear()
    files.mv("mv/d", "mv/e")
    assert not [one for one in requests if isinstance(one, Open)]  # no content is fetched
    with pytest.raises(FileNotFoundError):
        files.mv("mv/d", "mv/f")
    files.pipe_file("mv/g/e/other", b"")
    with pytest.raises(FileExistsError):
        files.mv("mv/e", "mv/g")
    files.copy("mv/e", "mv/h", recursive=True)
    files.rm("mv/e", recursive=True, maxdepth=1)
    assert files.find("mv") == ["mv/e/y/z", "mv/g/e/other", "mv/h/b", "mv/h/x", "mv/h/y/z"]
    assert files.cat_file("mv/h/x") == b"x"


def test_times_are_those_of_the_stored_file(files: SfsFileSystem, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"1")
    os.utime(source, (1_000_000_000, 1_000_000_000))
    files.put(str(source), "times/file")
    assert files.modified("times/file").isoformat() == "2001-09-09T01:46:40+00:00"
    assert abs(files.created("times/file").timestamp() - time.time()) < 60
    files.get("times/file", str(tmp_path / "new" / "copy"))
    assert (tmp_path / "new" / "copy").stat().st_mtime == 1_000_000_000


class Noted(Callback):  # type: ignore[misc]  # fsspec has no types
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int | None, int]] = []

    def call(self, *_arguments: Any, **_options: Any) -> None:
        self.seen.append((self.size, self.value))


def test_callbacks_are_told_of_the_progress(files: SfsFileSystem, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(BIG))
    stored, fetched = Noted(), Noted()
    files.put_file(str(source), "callback", callback=stored)
    files.get_file("callback", io.BytesIO(), callback=fetched)
    for noted in (stored, fetched):
        assert noted.seen[-1] == (BIG, BIG)
        assert len(noted.seen) > 3


def test_contents_of_many_are_fetched_together(
    files: SfsFileSystem, requests: list[Request]
) -> None:
    contents = {f"many/{number}": b"%d" % number for number in range(50)}
    with files.connection.use() as store:
        list(store.put_many((io.BytesIO(value), name) for name, value in contents.items()))
    requests.clear()
    assert files.cat(list(contents)) == contents
    assert files.cat("many", recursive=True) == contents
    assert sum(isinstance(one, Open) for one in requests) <= 4
    names = ["many/1", "many/none", "many/2", "many/1", "many/1"]
    got = files.cat_ranges(names, [None, None, 0, 0, 5], [None, None, 1, 1, None])
    assert [got[0], *got[2:]] == [b"1", b"2", b"1", b""]
    assert isinstance(got[1], FileNotFoundError)
    assert isinstance(got[1].__cause__, sfsc.NotFound)
    with pytest.raises(FileNotFoundError):
        files.cat_ranges(names, None, None, on_error="raise")
    with pytest.raises(FileNotFoundError):
        files.cat(["many/none", "many/1"])
    assert files.cat(["many/none", "many/1"], on_error="omit") == {"many/1": b"1"}
    assert set(files.cat(["many/none", "many/1"], on_error="return")) == {"many/none", "many/1"}


def test_a_range_fetches_only_its_segments(
    files: SfsFileSystem, requests: list[Request], server: LyingServer
) -> None:
    content = os.urandom(12 << 20)
    files.pipe_file("ranges", content)
    sent = 0

    def count(_who: object, _request: object, reply: Any) -> Any:
        nonlocal sent
        sent += len(reply.data) if isinstance(reply, Bytes) else 0
        return reply

    server.tamper = count
    ends = [(11 << 20, (11 << 20) + 5), (3, 9), (11 << 20, (11 << 20) + 1)]
    got = files.cat_ranges(["ranges"] * 3, [one[0] for one in ends], [one[1] for one in ends])
    assert got == [content[start:end] for start, end in ends]
    assert 0 < sent <= 6 << 20


def test_a_transaction_becomes_visible_at_once(
    files: SfsFileSystem, requests: list[Request], tmp_path: Path
) -> None:
    files.pipe({"all/old": b"old", "all/moved": b"moved"})
    (tmp_path / "local").write_bytes(b"local")
    requests.clear()
    with files.transaction:
        with files.open("all/one", "wb") as file:
            file.write(b"replaced")
        with files.open("all/one", "w", encoding="utf-8") as file:
            file.write("one")
        files.pipe_file("all/large", bytes(BIG))
        files.put_file(str(tmp_path / "local"), "all/local")
        files.rm("all/old")
        files.mv("all/moved", "all/new")
        assert not files.exists("all/one")
        assert files.cat_file("all/old") == b"old"
        with contextlib.suppress(ZeroDivisionError):
            _binary(files, "all/half")
    assert sum(isinstance(one, Commit) for one in requests) == 1
    assert files.find("all") == ["all/large", "all/local", "all/new", "all/one"]
    assert files.cat_file("all/one") == b"one"
    with files.open("all/after", "wb") as file:
        file.write(b"1")
    assert files.exists("all/after")


def _too_many(files: SfsFileSystem) -> None:
    for number in range(257):
        files.pipe_file(f"nothing/{number}", b"")


_kept: list[Any] = []


def _still_open(files: SfsFileSystem) -> None:
    _kept.append(files.open("nothing/open", "wb"))


def _in_transaction(files: SfsFileSystem, change: Callable[[SfsFileSystem], object]) -> None:
    with files.transaction:
        files.pipe_file("nothing/y", b"2")
        change(files)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_too_many, ValueError),
        (_still_open, ValueError),
        (lambda files: files.mkdir("nothing/folder"), OSError),
        (lambda files: files.rm("nothing", recursive=True), OSError),
        (lambda files: files.rm("nothing/none"), FileNotFoundError),
        (lambda files: files.pipe_file("nothing/x", b"", mode="create"), FileExistsError),
        (lambda _files: 1 / 0, ZeroDivisionError),
    ],
)
def test_a_transaction_that_fails_changes_nothing(
    files: SfsFileSystem, change: Callable[[SfsFileSystem], object], error: type[Exception]
) -> None:
    if not files.exists("nothing/x"):
        files.pipe_file("nothing/x", b"1")
    with pytest.raises(error):
        _in_transaction(files, change)
    assert files.find("nothing") == ["nothing/x"]
    with files.open("nothing/z", "wb"):
        pass
    files.rm("nothing/z")  # the transaction has ended


def test_threads_take_turns(files: SfsFileSystem) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(4):
                path = f"threads/{number}/{turn}"
                with files.open(path, "wb") as file:
                    file.write(path.encode())
                with files.open(path) as file:
                    assert file.read() == path.encode()
            assert len(files.ls(f"threads/{number}")) == 4
        except BaseException as exc:  # noqa: BLE001  # it is raised in the test
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_a_forked_process_connects_anew(files: SfsFileSystem) -> None:
    files.pipe_file("fork/parent", b"1" * 9)
    opened = files.open("fork/parent")
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            assert opened.read() == b"1" * 9
            files.pipe_file("fork/child", b"2")
            files.close()
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert opened.read() == b"1" * 9
    opened.close()
    assert files.cat_file("fork/child") == b"2"


def test_a_connection_that_is_lost_is_made_again(home: Path, tmp_path: Path) -> None:
    with LyingServer(tmp_path / "root") as server:
        files = SfsFileSystem(home=server.enrol("eve"), skip_instance_cache=True)
        files.pipe_file("file", b"1")
        server.stop()
        server.start()
        assert files.cat_file("file") == b"1"
        files.close()


def test_an_error_is_no_missing_file(tmp_path: Path) -> None:
    files = SfsFileSystem(home=tmp_path / "none", skip_instance_cache=True)
    for call in (files.exists, files.isdir, files.isfile, files.find, files.glob):
        with pytest.raises(PermissionError) as caught:
            call("a")
        assert isinstance(caught.value.__cause__, sfsc.KeyringMissing)
    with pytest.raises(PermissionError):
        list(files.walk("a"))


def test_what_was_tampered_with_is_no_missing_file(
    files: SfsFileSystem, server: LyingServer, caplog: pytest.LogCaptureFixture
) -> None:
    files.pipe({"damaged/one": bytes(BIG), "damaged/two": b"2"})

    def changed(_who: object, _request: object, reply: Any) -> Any:
        if isinstance(reply, Bytes):
            return Bytes(bytes(len(reply.data)))
        return reply

    server.tamper = changed
    try:
        with pytest.raises(sfsc.IntegrityError):
            files.cat_file("damaged/one", 1 << 20)
    finally:
        server.honest()
    assert files.cat_file("damaged/two") == b"2"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (sfsc.NotFound("x"), FileNotFoundError),
        (sfsc.Denied("x"), PermissionError),
        (sfsc.QuotaExceeded("x"), OSError),
        (sfsc.ConflictError("x"), FileExistsError),
        (sfsc.UnsupportedKind("x"), OSError),
        (sfsc.UsageError("x"), ValueError),
        (sfsc.TimedOut("x"), TimeoutError),
        (sfsc.Unreachable("x"), ConnectionError),
        (sfsc.KeyringMissing("x"), PermissionError),
        (sfsc.Damaged("x"), sfsc.Damaged),
    ],
)
def test_errors_are_those_of_python(error: sfsc.SfscError, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught, os_errors.os_errors("a/b"):
        raise error
    assert type(caught.value) is expected
    if isinstance(caught.value, OSError):
        assert caught.value.filename == "a/b"
    assert error in (caught.value, caught.value.__cause__)


def test_an_error_of_this_machine_keeps_its_number() -> None:
    error = sfsc.LocalError("cannot read")
    error.__cause__ = IsADirectoryError(errno.EISDIR, "is a directory", "/")
    made = os_errors.as_os_error(error, "stored")
    assert isinstance(made, IsADirectoryError)
    assert (made.filename, made.__cause__) == ("/", error)


def test_a_store_makes_and_deletes_empty_folders(home: Path) -> None:
    with sfsc.connect(home) as store:
        store.mkdir("made/empty")
        assert [entry.name for entry in store.ls("made/")] == ["made/empty/"]
        with pytest.raises(sfsc.ConflictError):
            store.mkdir("made/empty")
        with pytest.raises(sfsc.UsageError):
            store.rmdir("made")
        store.rmdir("made/empty")
        with pytest.raises(sfsc.NotFound):
            store.rmdir("made/empty")
        store.mkdir("made/empty")
        assert len(list(store.ls("made/"))) == 1
